//! A step's forward pass: one launch, or a few, for each operation.

use backend_api::program::{Activation, Attention, Op, RopePairs, ValueId};
use backend_api::{BackendError, Batch};
use bytemuck::NoUninit;

use crate::blas::Blas;
use crate::device::{Argument, Device, Layer, Parts, Shape};
use crate::load::{LoadedProgram, is_wide};
use crate::plan::{self, AppendRow, DecodeRow, Plan, SharedRun};
use crate::sampling::Parameters;
use crate::{Hopper, Kernel, Variant, append_shared_bytes, append_slices};
use Argument::{Address, Float, Int};

/// Blocks that attention is divided for, where the device doesn't say how many processors it has.
const BLOCKS_EACH: u32 = 2;

/// KV of a page group: an allocation for each layer, and the page tables of all slots.
#[derive(Debug)]
pub(crate) struct GroupMemory {
    /// By layer: `[page][K, V][position][KV head][head_dim]`.
    pub(crate) layers: Vec<u64>,
    /// Bytes of a page in one layer.
    pub(crate) page_bytes: usize,
    /// `[slot][table_width]` page ids.
    pub(crate) tables: u64,
    /// Entries of a table.
    pub(crate) table_width: usize,
}

/// Memory that grows to what a step needs, and then stays.
#[derive(Debug, Default)]
struct Scratch {
    address: u64,
    bytes: usize,
}

impl Scratch {
    fn room(&mut self, device: &mut Device, bytes: usize) -> Result<u64, BackendError> {
        if bytes > self.bytes {
            let bytes = bytes.next_power_of_two().max(1 << 10);
            self.address = device.allocate(bytes)?;
            self.bytes = bytes;
        }
        Ok(self.address)
    }

    fn filled<T: NoUninit>(
        &mut self,
        device: &mut Device,
        values: &[T],
    ) -> Result<u64, BackendError> {
        let address = self.room(device, size_of_val(values).max(1))?;
        device.write(address, values)?;
        Ok(address)
    }
}

/// What the kernels of a step read beside weights and values; refilled each step.
#[derive(Debug, Default)]
pub(crate) struct StepInput {
    tokens: Scratch,
    positions: Scratch,
    slots: Scratch,
    selected: Scratch,
    lists: [Scratch; 7],
    sums: Scratch,
    marks: Scratch,
    parameters: Scratch,
    sampled: Scratch,
    plan: Plan,
}

/// A batch as the kernels take it.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) batch: &'a Batch<'a>,
    /// By token; `-1 - slot` stands for the slot's next token.
    pub(crate) tokens: &'a [i32],
    /// Address of the next tokens, by slot.
    pub(crate) next: u64,
    /// By output, where the device samples: how.
    pub(crate) parameters: Option<&'a [Parameters]>,
    /// By token.
    pub(crate) positions: &'a [i32],
    /// By token.
    pub(crate) slots: &'a [i32],
    /// By output row: its token.
    pub(crate) selected: &'a [i32],
}

/// One run of a program.
pub(crate) struct Forward<'a> {
    pub(crate) device: &'a mut Device,
    pub(crate) blas: Option<&'a mut Blas>,
    pub(crate) loaded: &'a LoadedProgram,
    pub(crate) groups: &'a [GroupMemory],
    pub(crate) page_size: u32,
    pub(crate) processors: u32,
    pub(crate) capability: (u32, u32),
    pub(crate) step: &'a mut StepInput,
    pub(crate) inputs: Inputs<'a>,
}

/// Addresses of a step's lists.
struct Lists {
    tokens: u64,
    positions: u64,
    slots: u64,
    selected: u64,
}

impl Forward<'_> {
    /// Queues the whole pass. Gives the address of the tokens, by output, where the device samples.
    ///
    /// # Errors
    ///
    /// The device's.
    pub(crate) fn run(&mut self) -> Result<Option<u64>, BackendError> {
        let lists = Lists {
            tokens: self.step.tokens.filled(self.device, self.inputs.tokens)?,
            positions: self.step.positions.filled(self.device, self.inputs.positions)?,
            slots: self.step.slots.filled(self.device, self.inputs.slots)?,
            selected: self.step.selected.filled(self.device, self.inputs.selected)?,
        };
        let loaded = self.loaded;
        for (index, op) in loaded.program.ops().iter().enumerate() {
            self.operation(index, op, &lists)?;
        }
        self.inputs.parameters.map(|parameters| self.sample(parameters)).transpose()
    }

    /// Samples a token for each row of logits.
    fn sample(&mut self, parameters: &[Parameters]) -> Result<u64, BackendError> {
        let program = &self.loaded.program;
        let StepInput { parameters: room, sampled, .. } = &mut *self.step;
        let sampled = sampled.room(self.device, size_of_val(self.inputs.selected).max(1))?;
        let arguments = [
            Address(sampled),
            Address(self.inputs.next),
            Address(self.loaded.value(program.logits())),
            Address(room.filled(self.device, parameters)?),
            Address(0),
            Int(program.vocab_size() as i32),
        ];
        let shape = Shape { grid: [parameters.len() as u32, 1], threads: 512, shared: 0 };
        self.launch(Kernel::Sample, "sample", shape, &arguments)?;
        Ok(sampled)
    }

    fn operation(&mut self, index: usize, op: &Op, lists: &Lists) -> Result<(), BackendError> {
        let loaded = self.loaded;
        let value = |id: ValueId| Address(loaded.value(id));
        match op {
            Op::Embed { weight, scale, out } => {
                if let Some(layout) = loaded.blocks(*weight) {
                    return self.embed_blocks(
                        layout,
                        *weight,
                        [lists.tokens, self.inputs.next],
                        *scale,
                        *out,
                    );
                }
                let width = loaded.width(*out) as i32;
                let arguments = [
                    value(*out),
                    Address(loaded.weight(*weight)),
                    Address(lists.tokens),
                    Address(self.inputs.next),
                    Int(width),
                    Float(*scale),
                ];
                let shape = Shape { grid: [self.rows(*out) as u32, 1], threads: 128, shared: 0 };
                self.launch(Kernel::Embed, "embed", shape, &arguments)
            }
            Op::RmsNorm { input, residual, weight, run, weight_offset, epsilon, out } => {
                let runs = self.rows(*out) * loaded.width(*out) / *run as usize;
                let threads = run.div_ceil(8).next_multiple_of(32).clamp(32, 1024);
                let arguments = [
                    value(*out),
                    residual.map_or(Address(0), |residual| value(residual.sum)),
                    value(*input),
                    residual.map_or(Address(0), |residual| value(residual.value)),
                    Address(weight.map_or(0, |weight| loaded.weight(weight))),
                    Int(*run as i32),
                    Float(*epsilon),
                    Float(*weight_offset),
                ];
                let shape = Shape { grid: [runs as u32, 1], threads, shared: 0 };
                self.launch(Kernel::RmsNorm, "rms_norm", shape, &arguments)
            }
            Op::Linear { input, weight, bias, out } => self.product(*input, *weight, *bias, *out),
            Op::Logits { input, weight, out } => self.product(*input, *weight, None, *out),
            Op::Rope { input, head_dim, inverse_frequencies, attention_factor, pairs, out } => {
                let (head, pair_count) = (*head_dim as usize, inverse_frequencies.len());
                let heads = loaded.width(*out) / head;
                let count = self.rows(*out) * heads * (head - pair_count);
                let arguments = [
                    value(*out),
                    value(*input),
                    Address(lists.positions),
                    Address(loaded.frequencies[index]),
                    Int(pair_count as i32),
                    Int(head as i32),
                    Int(heads as i32),
                    Float(*attention_factor),
                    Int(i32::from(*pairs == RopePairs::Adjacent)),
                    Int(count as i32),
                ];
                self.launch(Kernel::Elementwise, "rope", Shape::covering(count), &arguments)
            }
            Op::Attention(attention) => self.attention(attention, lists),
            Op::GatedActivation { gate, up, activation, out } => {
                let widths = [loaded.width(*out), loaded.width(*gate)];
                let values = [*out, *gate, *up].map(|id| loaded.value(id));
                self.activate(*activation, values, widths, self.count(*out))
            }
            Op::Add { left, right, out } => {
                let count = self.count(*out);
                let arguments = [value(*out), value(*left), value(*right), Int(count as i32)];
                self.launch(Kernel::Elementwise, "add", Shape::covering(count), &arguments)
            }
            Op::Scale { input, factor, out } => {
                self.pointwise(["scale", "scale_wide"], *input, *factor, *out)
            }
            Op::SoftCap { input, cap, out } => {
                self.pointwise(["soft_cap", "soft_cap_wide"], *input, *cap, *out)
            }
            Op::Multiply { input, weight, out } => {
                let (count, width) = (self.count(*out), loaded.width(*out));
                let weight_width: usize =
                    loaded.program.weights()[weight.index()].shape.iter().product();
                let arguments = [
                    value(*out),
                    value(*input),
                    Address(loaded.weight(*weight)),
                    Int(width as i32),
                    Int(weight_width as i32),
                    Int(count as i32),
                ];
                self.launch(Kernel::Elementwise, "multiply", Shape::covering(count), &arguments)
            }
            Op::SelectColumns { input, first, out } => {
                let count = self.count(*out);
                let widths = [
                    loaded.width(*input) as i32,
                    *first as i32,
                    loaded.width(*out) as i32,
                    count as i32,
                ];
                let arguments: Vec<_> =
                    [value(*out), value(*input)].into_iter().chain(widths.map(Int)).collect();
                self.launch(
                    Kernel::Elementwise,
                    "select_columns",
                    Shape::covering(count),
                    &arguments,
                )
            }
            Op::ScaleByPosition { input, beta, original_context, out } => {
                let count = self.count(*out);
                let arguments = [
                    value(*out),
                    value(*input),
                    Address(lists.positions),
                    Int(loaded.width(*out) as i32),
                    Float(*beta),
                    Int(*original_context as i32),
                    Int(count as i32),
                ];
                self.launch(
                    Kernel::Elementwise,
                    "scale_by_position",
                    Shape::covering(count),
                    &arguments,
                )
            }
            Op::SelectOutputs { input, out } => {
                let count = self.count(*out);
                let arguments = [
                    value(*out),
                    value(*input),
                    Address(lists.selected),
                    Int(loaded.width(*out) as i32),
                    Int(count as i32),
                ];
                self.launch(Kernel::Elementwise, "select_rows", Shape::covering(count), &arguments)
            }
            Op::MixtureOfExperts(op) => self.mixture(op),
        }
    }

    /// Rows of a value in this step.
    pub(crate) fn rows(&self, value: ValueId) -> usize {
        if self.loaded.is_of_outputs(value) {
            self.inputs.selected.len()
        } else {
            self.inputs.tokens.len()
        }
    }

    /// Numbers of a value in this step.
    fn count(&self, value: ValueId) -> usize {
        self.rows(value) * self.loaded.width(value)
    }

    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        name: &'static str,
        shape: Shape,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        self.device.launch(kernel, &self.loaded.plain(), name, shape, arguments)
    }

    fn pointwise(
        &self,
        names: [&'static str; 2],
        input: ValueId,
        number: f32,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let count = self.count(out);
        let name = names[usize::from(is_wide(&self.loaded.program, out))];
        let values = [Address(self.loaded.value(out)), Address(self.loaded.value(input))];
        let arguments = [values[0], values[1], Float(number), Int(count as i32)];
        self.launch(Kernel::Elementwise, name, Shape::covering(count), &arguments)
    }

    /// `values`: out, gate, up. `widths`: theirs, and the gate's.
    pub(crate) fn activate(
        &self,
        activation: Activation,
        values: [u64; 3],
        widths: [usize; 2],
        count: usize,
    ) -> Result<(), BackendError> {
        let (kind, slope, limit) = match activation {
            Activation::Identity => (0, 0.0, 0.0),
            Activation::Sigmoid => (1, 0.0, 0.0),
            Activation::Silu => (2, 0.0, 0.0),
            Activation::GeluTanh => (3, 0.0, 0.0),
            Activation::ClampedSwiglu { slope, limit } => (4, slope, limit),
        };
        let [width, gate_width] = widths.map(|width| Int(width as i32));
        let mut arguments = values.map(Address).to_vec();
        arguments.extend([width, gate_width, Int(kind), Float(slope), Float(limit)]);
        arguments.push(Int(count as i32));
        let shape = Shape::covering(count);
        self.launch(Kernel::GatedActivation, "gated_activation", shape, &arguments)
    }

    fn attention(&mut self, attention: &Attention, lists: &Lists) -> Result<(), BackendError> {
        let loaded = self.loaded;
        let variant = loaded.of_heads(attention);
        let group = &self.groups[loaded.group(attention.group)];
        let layer = Layer {
            kv: group.layers[attention.layer as usize],
            tables: group.tables,
            table_width: group.table_width as i32,
            page_size: self.page_size as i32,
            kv_heads: attention.kv_heads as i32,
            scale: attention.scale,
            soft_cap: attention.soft_cap.unwrap_or(0.0),
            key_scale: 1.0,
            value_scale: 1.0,
            padding: 0,
        };
        let query = loaded.value(attention.query);
        if let Some(new) = attention.new {
            let arguments = [
                Address(query),
                Address(loaded.value(new.key)),
                Address(loaded.value(new.value)),
                Argument::Layer(layer),
                Address(layer.kv),
                Address(lists.slots),
                Address(lists.positions),
                Address(0),
                // Queries and keys are rotated by operations of their own.
                Int(0),
                Float(1.0),
                Int(0),
            ];
            let shape =
                Shape { grid: [self.inputs.tokens.len() as u32, 1], threads: 128, shared: 0 };
            self.device.launch(
                Kernel::RopeAndStore,
                &variant,
                "rope_and_store",
                shape,
                &arguments,
            )?;
        }
        self.attend(attention, &variant, layer, query)
    }

    fn attend(
        &mut self,
        attention: &Attention,
        variant: &Variant,
        layer: Layer,
        query: u64,
    ) -> Result<(), BackendError> {
        let batch = self.inputs.batch;
        let decode_rows = batch.decode_rows as usize;
        let decode: Vec<DecodeRow> = batch.rows[..decode_rows]
            .iter()
            .map(|row| DecodeRow { slot: row.slot.0, kv_len: row.kv_len() })
            .collect();
        let append: Vec<AppendRow> = batch.rows[decode_rows..]
            .iter()
            .map(|row| AppendRow {
                slot: row.slot.0,
                first: row.tokens.start,
                tokens: row.tokens.len,
                position: row.position,
            })
            .collect();
        let shared: Vec<SharedRun> = batch
            .shared
            .iter()
            .map(|shared| SharedRun {
                rows: shared.rows.start..shared.rows.start + shared.rows.len,
                positions: shared.pages * self.page_size,
            })
            .collect();
        let shape = plan::Shape {
            kv_heads: attention.kv_heads,
            group: variant.group,
            window: attention.window,
            blocks: self.processors * BLOCKS_EACH,
        };
        let StepInput { plan, lists, sums, marks, .. } = &mut *self.step;
        plan.fill(&shape, &decode, &shared, &append);
        let device = &mut *self.device;
        let (heads, head) = (attention.heads as usize, attention.head_dim as usize);
        let parts = Parts {
            sums: sums.room(device, plan.parts as usize * heads * head * 4)?,
            marks: marks.room(device, plan.parts as usize * heads * 2 * 4)?,
        };
        let out = Address(self.loaded.value(attention.out));
        let sinks = attention.sinks.map_or(0, |sinks| self.loaded.weight(sinks));
        let [pieces, shares, tiles, shared_tiles, token_list, wholes, part_list] = lists;

        let pieces = pieces.filled(device, &plan.pieces)?;
        let share_list = shares.filled(device, &plan.shares)?;
        let layer_and = |rest: &[Argument]| {
            let head = [out, Address(query), Argument::Layer(layer)];
            head.into_iter().chain(rest.iter().copied()).collect::<Vec<_>>()
        };
        let arguments = layer_and(&[
            Address(pieces),
            Address(share_list),
            Address(sinks),
            Argument::Parts(parts),
        ]);
        let grid = [plan.shares.len() as u32, attention.kv_heads];
        let blocks = Shape { grid, threads: 128, shared: 0 };
        device.launch(Kernel::AttentionDecode, variant, "attention_decode", blocks, &arguments)?;

        let token_list = token_list.filled(device, &plan.token_list)?;
        let hopper = Hopper::new(self.capability, variant, self.page_size);
        for (list, place) in [(&plan.tiles, tiles), (&plan.shared_tiles, shared_tiles)] {
            let address = place.filled(device, list)?;
            let window = attention.window.unwrap_or(0) as i32;
            let mut arguments = layer_and(&[
                Address(address),
                Address(token_list),
                Address(sinks),
                Int(window),
                Argument::Parts(parts),
            ]);
            if let Some(hopper) = hopper {
                arguments.insert(0, Argument::Map(device.map(layer.kv)?));
                arguments.extend([Int(list.len() as i32), Int(hopper.box_rows as i32)]);
                let grid = [Hopper::blocks(list.len()), attention.kv_heads];
                let blocks = Shape { grid, threads: Hopper::THREADS, shared: hopper.shared };
                let kernel = Kernel::PrefillHopper;
                device.launch(kernel, variant, kernel.name(), blocks, &arguments)?;
                continue;
            }
            let grid = [list.len() as u32, attention.kv_heads * append_slices(variant.head)];
            let blocks = Shape { grid, threads: 128, shared: append_shared_bytes(variant) };
            device.launch(
                Kernel::AttentionAppend,
                variant,
                "attention_append",
                blocks,
                &arguments,
            )?;
        }

        let whole_list = wholes.filled(device, &plan.wholes)?;
        let part_list = part_list.filled(device, &plan.part_list)?;
        let arguments = [
            out,
            Argument::Parts(parts),
            Address(whole_list),
            Address(part_list),
            Address(sinks),
            Int(attention.heads as i32),
        ];
        let blocks =
            Shape { grid: [plan.wholes.len() as u32, attention.heads], threads: 32, shared: 0 };
        device.launch(Kernel::AttentionMerge, variant, "attention_merge", blocks, &arguments)
    }
}
