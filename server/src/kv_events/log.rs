//! The batches that were published last, for those who missed some.

use std::collections::VecDeque;

use bytes::Bytes;

/// A published batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) payload: Bytes,
}

/// Numbers batches and keeps the last.
#[derive(Debug)]
pub(super) struct BatchLog {
    kept: VecDeque<Batch>,
    bytes: usize,
    next: u64,
    most: usize,
    most_bytes: usize,
}

/// What somebody gets who asks for batches from a number on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// All there are, which may be none.
    Kept(Vec<Batch>),
    /// Some are no longer kept. The last that was published has this number.
    Gone { last: u64 },
}

impl BatchLog {
    pub(super) fn new(most: usize, most_bytes: usize) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, next: 0, most, most_bytes }
    }

    /// Gives a payload its number.
    pub(super) fn push(&mut self, payload: Bytes) -> Batch {
        let batch = Batch { number: self.next, payload };
        self.next += 1;
        self.bytes += batch.payload.len();
        self.kept.push_back(batch.clone());
        while self.kept.len() > self.most || self.bytes > self.most_bytes {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.payload.len();
        }
        batch
    }

    pub(super) fn since(&self, start: u64) -> Since {
        let oldest = self.kept.front().map_or(self.next, |batch| batch.number);
        match self.next.checked_sub(1) {
            Some(last) if start < oldest => Since::Gone { last },
            _ => Since::Kept(self.kept.iter().filter(|b| b.number >= start).cloned().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_given_and_what_is_gone_is_told() {
        let mut log = BatchLog::new(3, 10);
        assert_eq!(log.since(0), Since::Kept(Vec::new()));
        let batches: Vec<Batch> =
            (0..5_u8).map(|byte| log.push(Bytes::from(vec![byte; 2]))).collect();
        assert_eq!(log.since(2), Since::Kept(batches[2..].to_vec()));
        assert_eq!(log.since(4), Since::Kept(batches[4..].to_vec()));
        assert_eq!(log.since(9), Since::Kept(Vec::new()));
        assert_eq!(log.since(1), Since::Gone { last: 4 });
        // One that is too large is published, and not kept.
        log.push(Bytes::from(vec![0; 11]));
        assert_eq!(log.since(5), Since::Gone { last: 5 });
        assert_eq!(log.since(6), Since::Kept(Vec::new()));
    }
}
