//! Which tokens may be sampled: top-k, top-p, min-p.
//!
//! No sort is needed. The shortest run of likeliest tokens that reaches a count (top-k) or a
//! probability (top-p) is found by its end: 32 halvings find the logit where it ends, and 32 more
//! the token id among equals. Each halving is one pass over the vocabulary. Loops and branches
//! that no row wants take no turn.

use super::{Field, Rows, Switch};
use crate::stablehlo::{Element, Function, Order, Reduction, Value};

impl Rows<'_> {
    /// Which tokens top-k, then top-p of those, then min-p keep.
    pub(super) fn filtered(&self, f: &mut Function, distance: &Value) -> Value {
        let (dims, rows) = (distance.dims().to_vec(), [distance.dim(0)]);
        let zero = f.splat(Element::F32, &dims, 0.0);
        let one = f.splat(Element::F32, &dims, 1.0);
        let key = sort_key(f, distance);

        let top_k = self.control.field(f, Field::TopK);
        let none = f.splat(Element::I32, &rows, 0.0);
        let has_top_k = f.compare(&top_k, Order::Greater, &none);
        let target = f.convert(&top_k, Element::F32);
        let any = self.control.is_on(f, Switch::TopK);
        let kept = keep_reaching(f, &any, &has_top_k, &key, &one, &target);

        let weight = f.exponential(distance);
        let weight = f.select(&kept, &weight, &zero);
        let total = f.reduce(&weight, Reduction::Sum, &[1]);
        let top_p = self.control.float(f, Field::TopP);
        let all = f.splat(Element::F32, &rows, 1.0);
        let has_top_p = f.compare(&top_p, Order::Less, &all);
        let target = f.multiply(&top_p, &total);
        let any = self.control.is_on(f, Switch::TopP);
        let likely = keep_reaching(f, &any, &has_top_p, &key, &weight, &target);

        let floor = self.wide(f, Field::MinP);
        let above = f.compare(distance, Order::GreaterEqual, &floor);
        let kept = f.and(&kept, &likely);
        f.and(&kept, &above)
    }
}

/// Keys that compare as unsigned integers the way the floats compare.
fn sort_key(f: &mut Function, x: &Value) -> Value {
    // Adding zero makes the two zeros equal.
    let zero = f.splat(Element::F32, x.dims(), 0.0);
    let x = f.add(x, &zero);
    let bits = f.bitcast(&x, Element::U32);
    let sign = f.splat(Element::U32, x.dims(), 2_147_483_648.0);
    let is_negative = f.compare(&bits, Order::GreaterEqual, &sign);
    let flipped = f.not(&bits);
    let raised = f.or(&bits, &sign);
    f.select(&is_negative, &flipped, &raised)
}

/// Marks, in each row for which `wanted` holds, the shortest run of tokens in the order of falling
/// keys (of equal ones the lowest ids first) whose weights add up to `target`; in other rows, and
/// if `any` does not hold, all tokens.
fn keep_reaching(
    f: &mut Function,
    any: &Value,
    wanted: &Value,
    key: &Value,
    weight: &Value,
    target: &Value,
) -> Value {
    let dims = key.dims().to_vec();
    f.if_else(
        any,
        |f| {
            let zero = f.splat(Element::F32, &dims, 0.0);
            let sum_where = |f: &mut Function, mask: &Value| {
                let part = f.select(mask, weight, &zero);
                f.reduce(&part, Reduction::Sum, &[1])
            };
            // The largest key such that the tokens from it upwards reach the target.
            let end = largest_word(f, target.dims(), |f, bound| {
                let bound = f.broadcast_to(bound, key, &[0]);
                let from = f.compare(key, Order::GreaterEqual, &bound);
                let reached = sum_where(f, &from);
                f.compare(&reached, Order::GreaterEqual, target)
            });
            let end = f.broadcast_to(&end, key, &[0]);
            let is_above = f.compare(key, Order::Greater, &end);
            let is_equal = f.compare(key, Order::Equal, &end);
            let above = sum_where(f, &is_above);
            // Of those with that key, the largest id such that the ones below don't reach it.
            let id = f.iota(Element::U32, &dims, 1);
            let last = largest_word(f, target.dims(), |f, bound| {
                let bound = f.broadcast_to(bound, &id, &[0]);
                let below = f.compare(&id, Order::Less, &bound);
                let below = f.and(&below, &is_equal);
                let reached = sum_where(f, &below);
                let reached = f.add(&reached, &above);
                f.compare(&reached, Order::Less, target)
            });
            let last = f.broadcast_to(&last, &id, &[0]);
            let is_first = f.compare(&id, Order::LessEqual, &last);
            let is_equal = f.and(&is_equal, &is_first);
            let kept = f.or(&is_above, &is_equal);
            let wanted = f.broadcast(wanted, &dims, &[0]);
            let unwanted = f.not(&wanted);
            f.or(&kept, &unwanted)
        },
        |f| f.splat(Element::Bool, &dims, 1.0),
    )
}

/// For each row the largest word for which a falling condition holds, bit by bit from the top.
fn largest_word(
    f: &mut Function,
    rows: &[usize],
    holds: impl FnOnce(&mut Function, &Value) -> Value,
) -> Value {
    let start = f.splat(Element::U32, rows, 0.0);
    let top = f.splat(Element::U32, &[], 2_147_483_648.0);
    let zero = f.splat(Element::U32, &[], 0.0);
    let state = f.while_loop(
        &[&top, &start],
        |f, state| f.compare(&state[0], Order::Greater, &zero),
        |f, state| {
            let [bit, found] = state else { return Vec::new() };
            let wide = f.broadcast_to(bit, found, &[]);
            let candidate = f.or(found, &wide);
            let holds = holds(f, &candidate);
            let found = f.select(&holds, &candidate, found);
            let one = f.splat(Element::U32, &[], 1.0);
            vec![f.shift_right(bit, &one), found]
        },
    );
    state[1].clone()
}
