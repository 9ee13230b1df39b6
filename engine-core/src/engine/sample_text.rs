//! One sample's way from tokens to its reader: text, stop strings, counts.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use radix_cache::Token;

use super::command::QueuePlace;
use crate::error::GenerationError;
use crate::request::{
    Feed, FinishReason, Finished, GenerationEvent, StopMatch, TokenLogprobs, Usage,
};
use crate::text::{IncrementalDetokenizer, StopMatcher};

#[derive(Debug)]
pub(super) struct SampleText {
    pub(super) number: u32,
    pub(super) feed: Feed,
    /// Given back when the sample first runs, or ends without.
    pub(super) queue_place: Option<QueuePlace>,
    /// `None` in an engine without tokenizer: tokens only.
    pub(super) detokenizer: Option<IncrementalDetokenizer>,
    pub(super) stop_strings: Option<StopMatcher>,
    /// What the matcher's indices mean.
    pub(super) stop: Arc<[Arc<str>]>,
    /// End the sample without being part of its text.
    pub(super) stop_tokens: Arc<[Token]>,
    /// Stop strings count from here on.
    pub(super) min_tokens: u32,
    pub(super) usage: Usage,
    pub(super) last_token: Option<Token>,
    pub(super) shown: Shown,
}

/// What is to be done about a sample after it was told something.
#[derive(Debug)]
pub(super) enum Taken {
    /// Nothing.
    Goes,
    /// Its text has met a stop string.
    Stopped(StopMatch),
    /// Its reader can't be told any more.
    Broken,
}

impl SampleText {
    /// A branch begins with so many tokens.
    pub(super) fn continue_from(&mut self, prompt_tokens: u32, last_token: Option<Token>) {
        self.usage.prompt_tokens = prompt_tokens;
        self.continue_after(last_token.as_slice());
    }

    /// The sample's text continues that of the tokens, rather than being one of its own.
    pub(super) fn continue_after(&mut self, tokens: &[Token]) {
        if let Some(detokenizer) = &mut self.detokenizer {
            detokenizer.continue_after(tokens);
        }
    }

    /// The sample runs.
    pub(super) fn admit(&mut self, cached_tokens: u32, at: Instant) -> Taken {
        self.queue_place = None;
        self.usage.cached_tokens = cached_tokens;
        self.usage.admitted = Some(at);
        self.tell(GenerationEvent::Admitted {
            sample: self.number,
            prompt_tokens: self.usage.prompt_tokens,
            cached_tokens,
            queue_time: self.usage.queue_time().unwrap_or_default(),
        })
    }

    /// Takes a token.
    pub(super) fn take(
        &mut self,
        token: Token,
        logprobs: Option<Box<TokenLogprobs>>,
        at: Instant,
    ) -> Taken {
        let sample = self.number;
        let index = self.usage.completion_tokens;
        self.usage.first_token.get_or_insert(at);
        self.usage.completion_tokens += 1;
        self.last_token = Some(token);
        let taken = self.tell(GenerationEvent::Token { sample, token, logprobs, at });
        let Some(detokenizer) = &mut self.detokenizer else { return taken };
        if self.stop_tokens.contains(&token) {
            return taken;
        }
        let text = detokenizer.push(token);
        self.shown.decode(index, text);
        let (text, stopped) = match &mut self.stop_strings {
            Some(matcher) if self.usage.completion_tokens < self.min_tokens => {
                (matcher.push_early(text), None)
            }
            Some(matcher) => {
                let scan = matcher.push(text);
                (scan.text, scan.stopped)
            }
            None => (text, None),
        };
        let is_told = show(&self.feed, sample, &mut self.shown, text);
        match stopped.and_then(|index| self.stop.get(index)) {
            _ if !is_told => Taken::Broken,
            Some(text) => Taken::Stopped(StopMatch::Text(Arc::clone(text))),
            None => taken,
        }
    }

    /// The sample has ended.
    pub(super) fn finish(
        mut self: Box<Self>,
        reason: FinishReason,
        matched: Option<StopMatch>,
        at: Instant,
    ) {
        let sample = self.number;
        let tail = self.detokenizer.as_mut().map_or("", IncrementalDetokenizer::finish);
        self.shown.decode(self.usage.completion_tokens.saturating_sub(1), tail);
        match self.stop_strings.take() {
            None => drop(show(&self.feed, sample, &mut self.shown, tail)),
            Some(mut matcher) => {
                show(&self.feed, sample, &mut self.shown, matcher.push(tail).text);
                show(&self.feed, sample, &mut self.shown, &matcher.finish());
            }
        }
        let usage = Usage { finish: at, ..self.usage };
        // Before the reader hears of the end, so that it may submit at once.
        drop(self.queue_place.take());
        self.feed.end(Ok(GenerationEvent::Finished(Finished { sample, reason, matched, usage })));
    }

    /// The sample has ended with an error.
    pub(super) fn fail(mut self: Box<Self>, error: GenerationError) {
        drop(self.queue_place.take());
        self.feed.end(Err(error));
    }

    pub(super) fn tell(&self, event: GenerationEvent) -> Taken {
        if self.feed.push(event) { Taken::Goes } else { Taken::Broken }
    }
}

/// False if the reader can't be told any more.
fn show(feed: &Feed, sample: u32, shown: &mut Shown, text: &str) -> bool {
    if text.is_empty() {
        return true;
    }
    let tokens = shown.show(text);
    feed.push(GenerationEvent::Text { sample, text: text.to_owned(), tokens })
}

/// Which tokens a piece of text comes from, though text is shown later than decoded: where a
/// character is incomplete, or a stop string may have begun.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Tokens whose text is not all shown: index, and where the text of each begins and ends.
    open: VecDeque<(u32, usize, usize)>,
    decoded: usize,
    shown: usize,
    last: u32,
}

impl Shown {
    /// The text of token `index` has become certain.
    fn decode(&mut self, index: u32, text: &str) {
        let end = self.decoded + text.len();
        self.open.push_back((index, self.decoded, end));
        self.decoded = end;
    }

    /// The next piece is shown. Returns the tokens that it comes from.
    fn show(&mut self, text: &str) -> Range<u32> {
        self.shown += text.len();
        let first = self.open.front().map_or(self.last, |&(index, ..)| index);
        while let Some(&(index, begin, end)) = self.open.front()
            && (end <= self.shown || begin < self.shown)
        {
            self.last = index;
            if end > self.shown {
                break;
            }
            self.open.pop_front();
        }
        first..self.last + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_name_the_tokens_that_they_come_from() {
        let mut shown = Shown::default();
        shown.decode(0, "ab");
        assert_eq!(shown.show("ab"), 0..1);
        // A token without text, one with some, and one whose end is held back.
        shown.decode(1, "");
        shown.decode(2, "cd");
        shown.decode(3, "efg");
        assert_eq!(shown.show("cde"), 1..4);
        shown.decode(4, "h");
        assert_eq!(shown.show("fgh"), 3..5);
        // What is left of a character belongs to the last token.
        shown.decode(4, "?");
        assert_eq!(shown.show("?"), 4..5);
    }
}
