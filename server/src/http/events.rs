//! The events of an HTTP request's generations, in the order in which they happen.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{FusedStream, SelectAll};
use futures_util::{Stream, StreamExt};
use understory::engine::Generation;
use understory::error::GenerationError;
use understory::request::GenerationEvent;

use super::running::Entered;
use crate::metrics::Observer;

/// Dropping it gives all of them up.
pub(crate) struct Events {
    generations: SelectAll<Numbered>,
    _entered: Vec<Entered>,
}

struct Numbered {
    prompt: usize,
    generation: Generation,
    observer: Observer,
}

impl Events {
    pub(crate) fn new(
        generations: impl IntoIterator<Item = (Generation, Observer)>,
        entered: Vec<Entered>,
    ) -> Self {
        let numbered = generations.into_iter().enumerate();
        let numbered = numbered.map(|(prompt, (generation, observer))| Numbered {
            prompt,
            generation,
            observer,
        });
        Self { generations: numbered.collect(), _entered: entered }
    }

    /// What happens next, and to which prompt.
    pub(crate) async fn next(
        &mut self,
    ) -> Option<(usize, Result<GenerationEvent, GenerationError>)> {
        self.generations.next().await
    }

    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(usize, Result<GenerationEvent, GenerationError>)>> {
        if self.generations.is_terminated() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.generations).poll_next(context)
    }
}

impl Stream for Numbered {
    type Item = (usize, Result<GenerationEvent, GenerationError>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let prompt = self.prompt;
        let polled = Pin::new(&mut self.generation).poll_next(context);
        if let Poll::Ready(Some(event)) = &polled {
            self.observer.observe(event);
        }
        polled.map(|event| event.map(|event| (prompt, event)))
    }
}
