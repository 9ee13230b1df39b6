//! Weights on the device, and the place of each value of a program.

use std::collections::HashMap;

use backend_api::kit::{Buffers, Liveness, check_weight_shape};
use backend_api::program::{Attention, Op, Program, RowsOf, ValueId, WeightId};
use backend_api::weights::Weights;
use backend_api::{BackendError, GroupId, Limits};
use half::{bf16, f16};

use crate::device::Device;
use crate::products::MixtureMemory;
use crate::weights::{Placed, Use};
use crate::{BlockLayout, Variant, append_slices};

/// What errors call this backend.
pub(crate) const BACKEND: &str = "cuda";
/// The variant of kernels that know nothing of heads.
const PLAIN: (u32, u32) = (64, 1);

/// A program with everything that its kernels are told.
#[derive(Debug)]
pub(crate) struct LoadedProgram {
    pub(crate) program: Program,
    /// By [`WeightId`].
    weights: Vec<Placed>,
    /// By [`ValueId`].
    values: Vec<u64>,
    /// By operation: rotary frequencies.
    pub(crate) frequencies: Vec<u64>,
    /// The executor's number of the program's first page group.
    pub(crate) first_group: usize,
    /// Activations in f16; otherwise in bfloat16.
    half: bool,
    pub(crate) mixture: MixtureMemory,
}

impl LoadedProgram {
    /// Places values and loads weights. `by_name` has the weights of the programs before, with their shapes.
    ///
    /// # Errors
    ///
    /// Weights that are missing or of another shape; operations that there is no kernel for; memory.
    pub(crate) fn new(
        device: &mut Device,
        program: &Program,
        weights: &dyn Weights,
        by_name: &mut HashMap<(String, Use), Placed>,
        limits: &Limits,
        first_group: usize,
        half: bool,
    ) -> Result<Self, BackendError> {
        check_operations(program)?;
        let mut places = Vec::new();
        for (weight, read_as) in program.weights().iter().zip(Use::of_program(program)?) {
            let place = match by_name.get(&(weight.name.clone(), read_as)) {
                Some(place) if place.shape == weight.shape => place.clone(),
                Some(place) => {
                    let (name, expected) = (weight.name.clone(), weight.shape.clone());
                    return Err(BackendError::Shape { name, expected, found: place.shape.clone() });
                }
                None => {
                    let tensor = weights.tensor(&weight.name)?;
                    check_weight_shape(weight, tensor.shape())?;
                    let place = read_as.place(device, &tensor, half)?;
                    by_name.insert((weight.name.clone(), read_as), place.clone());
                    place
                }
            };
            places.push(place);
        }
        let mut frequencies = Vec::new();
        for op in program.ops() {
            frequencies.push(match op {
                Op::Rope { inverse_frequencies, .. } => device.upload(inverse_frequencies)?,
                _ => 0,
            });
        }
        let values = place_values(device, program, limits)?;
        let mixture = MixtureMemory::new(device, program, limits)?;
        Ok(Self {
            program: program.clone(),
            weights: places,
            values,
            frequencies,
            first_group,
            half,
            mixture,
        })
    }

    pub(crate) fn weight(&self, id: WeightId) -> u64 {
        self.weights[id.index()].address
    }

    /// The layout of a weight that is kept in chunks of blocks.
    pub(crate) fn blocks(&self, id: WeightId) -> Option<&BlockLayout> {
        self.weights[id.index()].blocks.as_ref()
    }

    pub(crate) fn value(&self, id: ValueId) -> u64 {
        self.values[id.index()]
    }

    /// Bytes that the largest step gives back: logits, and hidden states.
    pub(crate) fn step_bytes(&self, limits: &Limits) -> usize {
        let row = self.program.vocab_size() as usize * size_of::<f32>()
            + self.width(self.program.hidden()) * size_of::<u16>();
        row.saturating_mul(limits.outputs as usize)
    }

    pub(crate) fn width(&self, id: ValueId) -> usize {
        self.program.values()[id.index()].width as usize
    }

    /// Whether a value's rows are the requested outputs.
    pub(crate) fn is_of_outputs(&self, id: ValueId) -> bool {
        self.program.values()[id.index()].rows == RowsOf::Outputs
    }

    /// The executor's number of a group.
    pub(crate) fn group(&self, group: GroupId) -> usize {
        self.first_group + group.index()
    }

    /// The variant of kernels that know nothing of heads.
    pub(crate) fn plain(&self) -> Variant {
        Variant { half: self.half, ..Variant::new(PLAIN.0, PLAIN.1) }
    }

    /// The variant of an attention's kernels.
    pub(crate) fn of_heads(&self, attention: &Attention) -> Variant {
        let group = attention.heads / attention.kv_heads.max(1);
        Variant { half: self.half, ..Variant::new(attention.head_dim, group) }
    }
}

/// The 16 bits of a number.
pub(crate) fn narrow(x: f32, half: bool) -> u16 {
    if half { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() }
}

/// The number that 16 bits are.
pub(crate) fn widen(bits: u16, half: bool) -> f32 {
    if half { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
}

/// Whether a value holds logits, which are f32.
pub(crate) fn is_wide(program: &Program, value: ValueId) -> bool {
    program.ops().iter().any(|op| match op {
        Op::Logits { out, .. } => *out == value,
        Op::Scale { input, out, .. } | Op::SoftCap { input, out, .. } => {
            *out == value && is_wide(program, *input)
        }
        _ => false,
    })
}

/// Gives values whose lives don't overlap the same memory.
fn place_values(
    device: &mut Device,
    program: &Program,
    limits: &Limits,
) -> Result<Vec<u64>, BackendError> {
    let liveness = Liveness::new(program, &[program.logits(), program.hidden()]);
    let mut buffers = Buffers::default();
    let mut buffer_of = vec![None; program.values().len()];
    for (index, op) in program.ops().iter().enumerate() {
        for out in op.outputs() {
            let value = program.values()[out.index()];
            let rows = if value.rows == RowsOf::Outputs { limits.outputs } else { limits.tokens };
            let bytes = if is_wide(program, out) { 4 } else { 2 };
            // Kernels count numbers in 32 bits.
            if i32::try_from(u64::from(rows) * u64::from(value.width)).is_err() {
                return Err(BackendError::Unsupported {
                    backend: BACKEND,
                    what: format!("steps of {rows} rows of {} numbers", value.width),
                });
            }
            buffer_of[out.index()] =
                Some(buffers.take(rows as usize * value.width as usize * bytes));
        }
        for dead in liveness.dying_after(index) {
            if let Some(buffer) = buffer_of[dead.index()] {
                buffers.give_back(buffer);
            }
        }
    }
    let addresses = buffers
        .into_kinds()
        .into_iter()
        .map(|bytes| device.allocate(bytes))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(buffer_of.into_iter().map(|buffer| buffer.map_or(0, |buffer| addresses[buffer])).collect())
}

/// Refuses what no kernel computes.
fn check_operations(program: &Program) -> Result<(), BackendError> {
    let unsupported = |what: String| Err(BackendError::Unsupported { backend: BACKEND, what });
    for op in program.ops() {
        match op {
            Op::Attention(attention) => {
                let (head, group) =
                    (attention.head_dim, attention.heads / attention.kv_heads.max(1));
                let slice = head / append_slices(head).max(1);
                if !slice.is_multiple_of(8) || head > 512 || group > 64 || head * group > 2048 {
                    return unsupported(format!(
                        "heads of {head} dimensions, {group} to a KV head"
                    ));
                }
            }
            Op::Linear { input, .. } | Op::Logits { input, .. } => {
                let width = program.values()[input.index()].width;
                if !width.is_multiple_of(8) {
                    return unsupported(format!(
                        "products over {width} columns, which 8 doesn't divide"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
