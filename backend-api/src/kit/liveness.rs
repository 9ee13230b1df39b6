//! When values are needed, and what can lie in the same memory.

use crate::{
    Limits,
    program::{Program, RowsOf, ValueId},
};

/// Bytes of a program's values in f32, for steps of up to `limits`: values whose lives don't overlap,
/// and that have one shape, lie in the same memory.
pub fn activation_bytes(program: &Program, limits: &Limits) -> u64 {
    let liveness = Liveness::new(program, &[program.logits(), program.hidden()]);
    let mut buffers = Buffers::<(u32, u64)>::default();
    let mut places = vec![None; program.values().len()];
    for (index, op) in program.ops().iter().enumerate() {
        for value in op.outputs() {
            let Some(described) = program.values().get(value.index()) else { continue };
            let rows = match described.rows {
                RowsOf::Tokens => limits.tokens,
                RowsOf::Outputs => limits.outputs,
            };
            places[value.index()] = Some(buffers.take((rows, described.width.into())));
        }
        for value in liveness.dying_after(index) {
            if let Some(buffer) = places.get_mut(value.index()).and_then(Option::take) {
                buffers.give_back(buffer);
            }
        }
    }
    let values =
        buffers.into_kinds().into_iter().map(|(rows, width)| width.saturating_mul(rows.into()));
    values.fold(0, u64::saturating_add).saturating_mul(size_of::<f32>() as u64)
}

/// For each operation of a program the values that are not needed after it.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// By operation.
    dying: Vec<Vec<ValueId>>,
}

impl Liveness {
    /// Walks a program. `kept` values are needed after its end: the logits, say.
    pub fn new(program: &Program, kept: &[ValueId]) -> Self {
        let mut last_use = vec![None; program.values().len()];
        for (index, op) in program.ops().iter().enumerate() {
            // A value that is written and never read needs its place until it is written.
            for value in op.inputs().chain(op.outputs()) {
                if let Some(last) = last_use.get_mut(value.index()) {
                    *last = Some(index);
                }
            }
        }
        let mut dying = vec![Vec::new(); program.ops().len()];
        for (value, last) in (0..).map(ValueId).zip(last_use) {
            if let Some(dying) = last.and_then(|last| dying.get_mut(last))
                && !kept.contains(&value)
            {
                dying.push(value);
            }
        }
        Self { dying }
    }

    /// The values that operation number `op` is the last to read or write.
    pub fn dying_after(&self, op: usize) -> &[ValueId] {
        self.dying.get(op).map_or(&[], Vec::as_slice)
    }
}

/// Hands out buffers of a kind `K` (a size, say) and takes them back, so that values whose lives
/// don't overlap lie in the same memory.
#[derive(Clone, Debug)]
pub struct Buffers<K> {
    /// By buffer.
    kinds: Vec<K>,
    free: Vec<usize>,
}

impl<K> Default for Buffers<K> {
    fn default() -> Self {
        Self { kinds: Vec::new(), free: Vec::new() }
    }
}

impl<K: PartialEq> Buffers<K> {
    /// The number of a buffer of this kind that is free, or of a new one.
    pub fn take(&mut self, kind: K) -> usize {
        match self.free.iter().position(|&buffer| self.kinds[buffer] == kind) {
            Some(place) => self.free.swap_remove(place),
            None => {
                self.kinds.push(kind);
                self.kinds.len() - 1
            }
        }
    }

    /// Takes back a buffer that [`take`](Self::take) handed out.
    pub fn give_back(&mut self, buffer: usize) {
        self.free.push(buffer);
    }

    /// The kinds of all buffers, by number.
    pub fn into_kinds(self) -> Vec<K> {
        self.kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Activation, ProgramBuilder, ProgramError, Split};

    /// `x` and `y = up(x)`, `x + act(y) * y`, then its logits; `unused` is never read.
    fn program() -> Result<Program, ProgramError> {
        let mut b = ProgramBuilder::new("test", 16);
        let x = b.embed("embed", 8, 1.0);
        let _unused = b.scale(x, 2.0);
        let up = b.linear(x, "up", 8, Split::None);
        let gated = b.gated_activation(up, up, Activation::Silu);
        let sum = b.add(x, gated);
        let selected = b.select_outputs(sum);
        b.finish_with_logits(selected, "embed", None)
    }

    #[test]
    fn a_value_dies_after_the_last_operation_that_names_it() {
        let program = program().expect("well formed");
        let liveness = Liveness::new(&program, &[program.logits()]);
        let dying: Vec<Vec<u32>> = (0..program.ops().len())
            .map(|op| liveness.dying_after(op).iter().map(|value| value.0).collect())
            .collect();
        assert_eq!(dying, [vec![], vec![1], vec![], vec![2], vec![0, 3], vec![4], vec![5]]);
        assert!(liveness.dying_after(99).is_empty());
    }

    #[test]
    fn kept_values_never_die() {
        let program = program().expect("well formed");
        let kept = [program.logits(), program.hidden()];
        let liveness = Liveness::new(&program, &kept);
        let mut all = (0..program.ops().len()).flat_map(|op| liveness.dying_after(op));
        assert!(!all.any(|value| kept.contains(value)));
    }

    #[test]
    fn a_buffer_is_used_again_for_its_own_kind_only() {
        let mut buffers = Buffers::default();
        assert_eq!([buffers.take(8), buffers.take(8)], [0, 1]);
        buffers.give_back(0);
        assert_eq!([buffers.take(9), buffers.take(8), buffers.take(8)], [2, 0, 3]);
        assert_eq!(buffers.into_kinds(), [8, 8, 9, 8]);
    }
}
