//! A batch as the vector that a step's module reads.

use backend_api::{Batch, InputToken, kit::output_rows};

use crate::{
    buckets::wants_hidden,
    lower::{Geometry, step::StepShape},
};

/// Stands for the slot's next token.
const PRODUCED: u32 = u32::MAX;

/// The step's control vector; see [`StepShape::control_len`]. The batch fits the shape.
pub(super) fn pack_step(batch: &Batch<'_>, shape: StepShape, geometry: &Geometry) -> Vec<u32> {
    let tokens = shape.tokens();
    let mut control = vec![0; shape.control_len()];
    let (ids, rest) = control.split_at_mut(tokens);
    let (slots, rest) = rest.split_at_mut(tokens);
    let (positions, rest) = rest.split_at_mut(tokens);
    let (outputs, rest) = rest.split_at_mut(shape.outputs);
    let (hidden, of_rows) = rest.split_at_mut(shape.hidden);
    slots.fill(geometry.padding_slot() as u32);

    // Where each token of the batch lies in the step.
    let mut places = vec![0u32; batch.tokens.len()];
    let first_block = if shape.is_ragged { batch.decode_rows as usize } else { shape.decode };
    let mut next_block = first_block;
    for (index, row) in batch.rows.iter().enumerate() {
        let is_decode = index < batch.decode_rows as usize && index < first_block;
        let range = row.tokens.range();
        let start = if is_decode { index } else { next_block };
        if !is_decode {
            next_block += shape.runs(range.len()) * shape.block;
        }
        let place = start..start + range.len();
        for (id, token) in ids[place.clone()].iter_mut().zip(&batch.tokens[range.clone()]) {
            *id = match *token {
                InputToken::Known(token) => token,
                InputToken::Produced(_) => PRODUCED,
            };
        }
        slots[place.clone()].fill(row.slot.0);
        positions[place].iter_mut().zip(row.position..).for_each(|(to, position)| *to = position);
        places[range].iter_mut().zip(start as u32..).for_each(|(to, place)| *to = place);
    }
    let (mut outputs, mut hidden) = (outputs.iter_mut(), hidden.iter_mut());
    for row in output_rows(batch) {
        let list = if wants_hidden(batch.outputs[row.output as usize].want) {
            &mut hidden
        } else {
            &mut outputs
        };
        if let Some(place) = list.next() {
            *place = places[row.token as usize];
        }
    }
    if shape.is_ragged {
        pack_rows(batch, of_rows, geometry);
    }
    control
}

/// What a ragged step reads of rows; see [`StepShape::control_len`].
fn pack_rows(batch: &Batch<'_>, of_rows: &mut [u32], geometry: &Geometry) {
    let padded_rows = (of_rows.len() - 2) / 3;
    let (slots, rest) = of_rows.split_at_mut(padded_rows);
    let (kv_lens, rest) = rest.split_at_mut(padded_rows);
    let (bounds, count) = rest.split_at_mut(padded_rows + 1);
    slots.fill(geometry.padding_slot() as u32);
    for (index, row) in batch.rows.iter().enumerate() {
        (slots[index], kv_lens[index]) = (row.slot.0, row.kv_len());
        bounds[index] = row.tokens.start;
    }
    let rows = batch.rows.len();
    bounds[rows..].fill(batch.tokens.len() as u32);
    count.fill(rows as u32);
}

#[cfg(test)]
mod tests {
    use backend_api::{InputToken, OutputRequest, Row, SlotId, Slots, Span, Want};

    use super::*;
    use crate::stablehlo::Element;

    /// One decode row and other rows of 2 and 3 tokens, in slots 4, 0 and 2. A sample is wanted of
    /// the first and the last, and hidden states of both tokens between.
    fn pack(shape: StepShape) -> Vec<Vec<u32>> {
        let geometry = Geometry::new(16, 5, vec![9], 64, Element::F32);
        let (slots, spans) = ([4, 0, 2], [(0, 1, 30), (1, 2, 0), (3, 3, 17)]);
        let rows = slots.iter().zip(spans).map(|(&slot, (start, len, position))| Row {
            slot: SlotId(slot),
            tokens: Span { start, len },
            position,
            outputs: Span::default(),
        });
        let rows: Vec<Row> = rows.collect();
        let mut tokens = vec![InputToken::Produced(SlotId(4))];
        tokens.extend((11..=15).map(InputToken::Known));
        let states = Span { start: 1, len: 2 };
        let hidden = OutputRequest { row: 1, tokens: states, want: Want::Hidden, deferred: false };
        let outputs = [OutputRequest::sample(0, 0), hidden, OutputRequest::sample(2, 5)];
        let outputs =
            if shape.hidden > 0 { outputs.to_vec() } else { vec![outputs[0], outputs[2]] };
        let all = Slots::new(5, 1);
        let batch = Batch::new(0, &tokens, &rows, 1, &outputs, &[], &all);
        let mut control = pack_step(&batch, shape, &geometry).into_iter();
        let of_rows = if shape.is_ragged { [4, 4, 5, 1] } else { [0; 4] };
        let tokens = shape.tokens();
        let lengths = [tokens, tokens, tokens, shape.outputs, shape.hidden];
        let lengths = lengths.into_iter().chain(of_rows);
        let parts = lengths.map(|length| control.by_ref().take(length).collect()).collect();
        assert_eq!(control.next(), None);
        parts
    }

    fn shape(decode: usize, blocks: usize, block: usize, hidden: usize) -> StepShape {
        StepShape { decode, blocks, block, outputs: 2, hidden, is_ragged: block == 1 }
    }

    #[test]
    fn runs_of_a_row_end_in_padding() {
        let parts = pack(shape(2, 3, 4, 0));
        assert_eq!(parts[0], [PRODUCED, 0, 11, 12, 0, 0, 13, 14, 15, 0, 0, 0, 0, 0]);
        assert_eq!(parts[1], [4, 5, 0, 0, 5, 5, 2, 2, 2, 5, 5, 5, 5, 5]);
        assert_eq!(parts[2], [30, 0, 0, 1, 0, 0, 17, 18, 19, 0, 0, 0, 0, 0]);
        assert_eq!(parts[3], [0, 8]);
    }

    #[test]
    fn without_decode_rows_every_row_lies_in_runs() {
        let parts = pack(shape(0, 3, 4, 3));
        assert_eq!(parts[0], [PRODUCED, 0, 0, 0, 11, 12, 0, 0, 13, 14, 15, 0]);
        assert_eq!(parts[1], [4, 5, 5, 5, 0, 0, 5, 5, 2, 2, 2, 5]);
        assert_eq!(parts[2], [30, 0, 0, 0, 0, 1, 0, 0, 17, 18, 19, 0]);
        assert_eq!((&parts[3][..], &parts[4][..]), (&[0, 10][..], &[4, 5, 0][..]));
    }

    #[test]
    fn ragged_rows_lie_one_behind_the_other_and_padding_at_the_end() {
        let parts = pack(shape(4, 5, 1, 0));
        assert_eq!(parts[0], [PRODUCED, 11, 12, 13, 14, 15, 0, 0, 0]);
        assert_eq!(parts[1], [4, 0, 0, 2, 2, 2, 5, 5, 5]);
        assert_eq!(parts[2], [30, 0, 1, 17, 18, 19, 0, 0, 0]);
        assert_eq!(parts[3], [0, 5]);
        // Slots, KV lengths, bounds and number of rows.
        assert_eq!(parts[5], [4, 0, 2, 5]);
        assert_eq!(parts[6], [31, 2, 20, 0]);
        assert_eq!(parts[7], [0, 1, 3, 6, 6]);
        assert_eq!(parts[8], [3]);
    }
}
