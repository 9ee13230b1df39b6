//! The tokens of a batch after which something is wanted.

use radix_cache::Token;

use crate::{Batch, InputToken, Want};

/// One token after which something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRow {
    /// The output, as an index into [`Batch::outputs`].
    pub output: u32,
    /// Which token of the output's run.
    pub index: u32,
    /// The row, as an index into [`Batch::rows`].
    pub row: u32,
    /// The token, as an index into [`Batch::tokens`].
    pub token: u32,
    /// Position of the token that follows.
    pub position: u32,
    /// The token that is proposed to follow, where one is verified.
    pub proposal: Option<Token>,
}

/// The output rows of a batch, in their order. The batch keeps the rules of
/// [`Batch::check`].
pub fn output_rows<'a>(batch: &Batch<'a>) -> impl Iterator<Item = OutputRow> + use<'a> {
    let (rows, tokens) = (batch.rows, batch.tokens);
    (0..).zip(batch.outputs).flat_map(move |(output, request)| {
        let row = &rows[request.row as usize];
        let (run, is_verified) = (request.tokens, matches!(request.want, Want::Verify(_)));
        (0..run.len).map(move |index| {
            let token = run.start + index;
            let next = tokens.get(token as usize + 1);
            let proposal = match next {
                Some(&InputToken::Known(next)) if is_verified && index + 1 < run.len => Some(next),
                _ => None,
            };
            let position = row.position + (token - row.tokens.start) + 1;
            OutputRow { output, index, row: request.row, token, position, proposal }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, OutputRequest, Row, SlotId, Slots, Span};

    #[test]
    fn output_rows_lie_one_after_the_other() {
        let span = |start, len| Span { start, len };
        let tokens = [
            InputToken::Produced(SlotId(4)),
            InputToken::Produced(SlotId(1)),
            InputToken::Known(8),
            InputToken::Known(9),
        ];
        let row = |slot, tokens, position, outputs| Row { slot, tokens, position, outputs };
        let rows =
            [row(SlotId(4), span(0, 1), 30, span(0, 1)), row(SlotId(1), span(1, 3), 7, span(1, 2))];
        let request = |tokens, want| OutputRequest { row: 1, tokens, want, deferred: false };
        let outputs = [
            OutputRequest::sample(0, 0),
            request(span(2, 1), Want::Hidden),
            request(span(1, 3), Want::Verify(Draft::Chain)),
        ];
        let slots = Slots::new(5, 1);
        let batch = Batch::new(0, &tokens, &rows, 1, &outputs, &[], &slots);

        let found: Vec<_> = output_rows(&batch)
            .map(|row| (row.output, row.index, row.row, row.token, row.position, row.proposal))
            .collect();
        let expected = [
            (0, 0, 0, 0, 31, None),
            (1, 0, 1, 2, 9, None),
            (2, 0, 1, 1, 8, Some(8)),
            (2, 1, 1, 2, 9, Some(9)),
            (2, 2, 1, 3, 10, None),
        ];
        assert_eq!(found, expected);
        assert_eq!(found.len(), batch.output_rows());
    }
}
