//! Chains of rows: proposals that are accepted one after another, and what is counted of them.

use super::{Field, GENERATED, Rows, Switch};
use crate::stablehlo::{Element, Function, Order, Value};

impl Rows<'_> {
    /// A row's counts as they are once the proposals before it in its chain are accepted: a row
    /// does not count otherwise. One turn for each step back in the longest chain.
    pub(super) fn with_proposals(&self, f: &mut Function, counts: &Value) -> Value {
        let rows = [counts.dim(0)];
        let row = f.iota(Element::I32, &rows, 0);
        let start = self.control.field(f, Field::Start);
        let proposal = self.control.field(f, Field::Proposal);
        let longest = self.control.switch(f, Switch::Chain);
        let width = f.splat(Element::I32, &rows, self.vocab_size as f64);
        let first_entry = f.multiply(&row, &width);
        let nowhere = f.splat(Element::I32, &rows, f64::from(i32::MAX));
        let zero = f.splat(Element::I32, &rows, 0.0);
        let added = f.splat(Element::I32, &rows, GENERATED.into());
        let flat = f.reshape(counts, &[rows[0] * self.vocab_size]);
        let one = f.int(1);
        let state = f.while_loop(
            &[&one, &flat],
            |f, state| f.compare(&state[0], Order::LessEqual, &longest),
            |f, state| {
                let [distance, flat] = state else { return Vec::new() };
                let wide = f.broadcast_to(distance, &row, &[]);
                let before = f.subtract(&row, &wide);
                let is_in_chain = f.compare(&before, Order::GreaterEqual, &start);
                let before = f.maximum(&before, &zero);
                let token = f.take(&proposal, &before);
                let entry = f.add(&first_entry, &token);
                let entry = f.select(&is_in_chain, &entry, &nowhere);
                let flat = f.put_add(flat, &entry, &added);
                vec![f.add(distance, &one), flat]
            },
        );
        f.reshape(&state[1], counts.dims())
    }

    /// Which rows count, and which of them are the last of their chain: those whose token is not
    /// the proposal, or where none is left.
    pub(super) fn verify(&self, f: &mut Function, token: &Value) -> (Value, Value) {
        let rows = token.dims().to_vec();
        let proposal = self.control.field(f, Field::Proposal);
        let is_proposal = f.compare(token, Order::Equal, &proposal);
        let differs = f.not(&is_proposal);
        let row = f.iota(Element::I32, &rows, 0);
        let none = f.splat(Element::I32, &rows, -1.0);
        let last = f.select(&differs, &row, &none);
        // The last row before each that differs, by doubling the distance that is looked back.
        let mut last = self.back(f, &last, 1);
        let mut distance = 1;
        while distance < rows[0] {
            let before = self.back(f, &last, distance);
            last = f.maximum(&last, &before);
            distance *= 2;
        }
        let start = self.control.field(f, Field::Start);
        let is_used = f.compare(&last, Order::Less, &start);
        let is_last = f.and(&is_used, &differs);
        (is_used, is_last)
    }

    /// The values of the rows `distance` before, and -1 where there are none.
    fn back(&self, f: &mut Function, values: &Value, distance: usize) -> Value {
        let rows = values.dim(0);
        let none = f.splat(Element::I32, &[distance], -1.0);
        if distance >= rows {
            return none;
        }
        let kept = f.slice(values, 0, 0, rows - distance);
        f.concatenate(&[&none, &kept], 0)
    }

    /// Counts the sampled tokens. Only rows with penalties read their counts, which are set when
    /// their slot is opened, so those of others may say anything.
    pub(super) fn count(
        &self,
        f: &mut Function,
        counts: &Value,
        slot: &Value,
        token: &Value,
    ) -> Value {
        let [slots, vocab_size] = [counts.dim(0), counts.dim(1)];
        let rows = slot.dims().to_vec();
        let flat = f.reshape(counts, &[slots * vocab_size]);
        let stride = f.splat(Element::I32, &rows, vocab_size as f64);
        let index = f.multiply(slot, &stride);
        let index = f.add(&index, token);
        let added = f.splat(Element::I32, &rows, GENERATED.into());
        let flat = f.put_add(&flat, &index, &added);
        f.reshape(&flat, &[slots, vocab_size])
    }
}
