//! Server-sent events.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Serialize;

/// Events that wait to be written, each with the blank line that ends it.
#[derive(Debug, Default)]
pub(crate) struct Frames(VecDeque<Bytes>);

impl Frames {
    /// An event of data alone.
    pub(crate) fn data(&mut self, data: &str) {
        self.0.push_back(Bytes::from(format!("data: {data}\n\n")));
    }

    /// A value as JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) {
        self.write(b"data: ", value);
    }

    /// A value as JSON, under a name, for the protocols that name their events.
    pub(crate) fn named(&mut self, name: &str, value: &impl Serialize) {
        self.write(format!("event: {name}\ndata: ").as_bytes(), value);
    }

    /// The end of OpenAI's and SGLang's streams.
    pub(crate) fn done(&mut self) {
        self.0.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }

    /// What clients skip.
    pub(crate) fn comment(&mut self) {
        self.0.push_back(Bytes::from_static(b": keep-alive\n\n"));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }

    fn write(&mut self, begin: &[u8], value: &impl Serialize) {
        let mut frame = Vec::with_capacity(256);
        frame.extend_from_slice(begin);
        match serde_json::to_writer(&mut frame, value) {
            Ok(()) => {
                frame.extend_from_slice(b"\n\n");
                self.0.push_back(frame.into());
            }
            // Memory is the only thing that writing could lack, and the types have string keys alone.
            Err(error) => tracing::error!(%error, "an event can't be written"),
        }
    }
}
