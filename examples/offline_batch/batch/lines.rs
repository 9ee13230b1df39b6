//! The lines of a batch file, read on a thread of their own: a slow input holds no answer up.

use std::io::{self, BufRead};
use std::thread;

use tokio::sync::mpsc::{Receiver, channel};

/// Lines that are read ahead.
const AHEAD: usize = 64;

/// A line that isn't blank.
#[derive(Debug)]
pub(super) struct Line {
    /// Counted from 1, blank lines included.
    pub(super) number: usize,
    pub(super) bytes: Vec<u8>,
}

/// Starts to read. The channel ends with the input, or after an error. A reader that waits for its
/// input when the batch ends is left behind; it ends with the input or with the process.
pub(super) fn read_ahead(
    input: impl BufRead + Send + 'static,
) -> io::Result<Receiver<io::Result<Line>>> {
    let (sender, receiver) = channel(AHEAD);
    let mut lines = Lines { input, number: 0 };
    thread::Builder::new().name("batch-lines".to_owned()).spawn(move || {
        while let Some(line) = lines.next().transpose() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                break;
            }
        }
    })?;
    Ok(receiver)
}

struct Lines<R> {
    input: R,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            if self.input.read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Line { number: self.number, bytes }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_with_blank_ones_and_come_without_them() {
        let mut lines = read_ahead(&b"\n{}\r\n  \n\xff"[..]).unwrap();
        let mut next = || lines.blocking_recv().map(|line| line.unwrap());
        let mut next = || next().map(|line| (line.number, line.bytes));
        assert_eq!(next(), Some((2, b"{}\r\n".to_vec())));
        assert_eq!(next(), Some((4, b"\xff".to_vec())));
        assert_eq!(next(), None);
    }
}
