//! Launches of products with weights, and of mixtures of experts.

use backend_api::program::{
    ExpertLinear, MixtureOfExperts, Op, Program, Scoring, ValueId, WeightId,
};
use backend_api::{BackendError, Limits};

use crate::blas::{Operands, ProductShape};
use crate::device::{Argument, Device, Shape};
use crate::forward::Forward;
use crate::load::{BACKEND, LoadedProgram, is_wide};
use crate::{BlockLayout, Kernel, Variant};
use Argument::{Address, Float, Int};

/// Rows of a tile of `blocks_tile`, and its columns.
const TILE: [u32; 2] = [64, 128];
/// So many rows of dense products stay with `linear`, which reads weights once, as cuBLASLt has to.
const FEW_ROWS: u32 = 8;
/// Most experts, and most of them that a row goes through.
const MOST_EXPERTS: u32 = 1024;
const MOST_CHOSEN: u32 = 32;

/// What is multiplied: rows of an input with a matrix in blocks, or with those of several experts.
struct BlocksProduct {
    out: u64,
    input: u64,
    weight: u64,
    bias: u64,
    layout: BlockLayout,
    rows: u32,
    columns: u32,
    inner: u32,
    wide: bool,
    work: Option<Work>,
}

/// Which rows go through which expert.
#[derive(Clone, Copy)]
struct Work {
    /// A list of tiles of at most `height` rows.
    tiles: u64,
    count: u32,
    height: u32,
    /// By place its choice, where the input has a row for `chosen` choices.
    order: u64,
    chosen: u32,
}

/// Memory of mixtures of experts, as much as the largest of a program's needs.
#[derive(Debug, Default)]
pub(crate) struct MixtureMemory {
    /// By choice.
    experts: u64,
    weights: u64,
    places: u64,
    /// By place.
    order: u64,
    gate: u64,
    up: u64,
    inner: u64,
    results: u64,
    /// By expert.
    counts: u64,
    tiles: u64,
}

impl MixtureMemory {
    /// # Errors
    ///
    /// Mixtures that the kernels don't compute; memory.
    pub(crate) fn new(
        device: &mut Device,
        program: &Program,
        limits: &Limits,
    ) -> Result<Self, BackendError> {
        let rows = limits.tokens.max(limits.outputs) as usize;
        let (mut choices, mut experts, mut inner, mut results) = (0, 0, 0, 0);
        for op in program.ops() {
            let Op::MixtureOfExperts(op) = op else { continue };
            let of_step = check(program, op, rows)?;
            choices = choices.max(of_step);
            experts = experts.max(op.experts as usize);
            inner = inner.max(of_step * expert_width(program, op));
            results = results.max(of_step * program.values()[op.out.index()].width as usize);
        }
        if choices == 0 {
            return Ok(Self::default());
        }
        let mut room = |bytes: usize| device.allocate(bytes);
        Ok(Self {
            experts: room(choices * 4)?,
            weights: room(choices * 4)?,
            places: room(choices * 4)?,
            order: room(choices * 4)?,
            gate: room(inner * 2)?,
            up: room(inner * 2)?,
            inner: room(inner * 2)?,
            results: room(results * 2)?,
            counts: room(experts * 8)?,
            tiles: room((choices + experts.min(choices)) * 16)?,
        })
    }
}

/// The choices of the largest step.
fn check(program: &Program, op: &MixtureOfExperts, rows: usize) -> Result<usize, BackendError> {
    let unsupported = |what| Err(BackendError::Unsupported { backend: BACKEND, what });
    let (experts, chosen) = (op.experts, op.routing.chosen);
    if experts > MOST_EXPERTS || chosen > MOST_CHOSEN {
        return unsupported(format!("mixtures of {experts} experts, {chosen} to a row"));
    }
    let (width, inner) =
        (program.values()[op.out.index()].width as usize, expert_width(program, op));
    if !width.is_multiple_of(8) || !inner.is_multiple_of(8) {
        return unsupported(format!(
            "experts of {inner} columns in {width}, which 8 doesn't divide"
        ));
    }
    // Kernels count numbers in 32 bits.
    let choices = rows * chosen as usize;
    if i32::try_from(choices * width.max(inner)).is_err() {
        return unsupported(format!("steps of {choices} choices of experts of {inner} columns"));
    }
    Ok(choices)
}

/// Rows of a tile where experts have so many choices: twice the mean fit one tile.
fn tile_height(choices: u32, experts: u32) -> u32 {
    let mean = choices.div_ceil(experts.max(1));
    let vector = Kernel::VECTORS.into_iter().find(|(_, most)| 2 * mean <= *most);
    vector.map_or(TILE[0], |(_, most)| most)
}

fn expert_width(program: &Program, op: &MixtureOfExperts) -> usize {
    program.weights()[op.gate.weight.index()].shape.get(1).copied().unwrap_or(0)
}

impl LoadedProgram {
    /// The variant of kernels that decode a layout.
    fn of_blocks(&self, layout: &BlockLayout) -> Variant {
        Variant { weight: layout.format(), ..self.plain() }
    }

    /// The kernels that weights in blocks and mixtures of experts need.
    pub(crate) fn product_kernels(&self) -> Vec<(Kernel, Variant)> {
        let mut kernels = Vec::new();
        for op in self.program.ops() {
            let mut needs = |weight: WeightId, all: &[Kernel]| {
                let variant = self.blocks(weight).map(|layout| self.of_blocks(layout));
                kernels
                    .extend(variant.into_iter().flat_map(|it| all.iter().map(move |&k| (k, it))));
            };
            let products = [Kernel::BlocksVector, Kernel::BlocksTile];
            match op {
                Op::Embed { weight, .. } => needs(*weight, &[Kernel::BlocksEmbed]),
                Op::Linear { weight, .. } | Op::Logits { weight, .. } => needs(*weight, &products),
                Op::MixtureOfExperts(op) => {
                    for layer in [op.gate, op.up, op.down] {
                        needs(layer.weight, &products);
                    }
                    kernels.push((Kernel::Experts, self.plain()));
                }
                _ => {}
            }
        }
        kernels.sort_by_key(|(kernel, variant)| (kernel.name(), variant.weight));
        kernels.dedup();
        kernels
    }
}

impl Forward<'_> {
    pub(crate) fn product(
        &mut self,
        input: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let loaded = self.loaded;
        let (rows, columns, inner) =
            (self.rows(out) as u32, loaded.width(out) as u32, loaded.width(input) as u32);
        let wide = is_wide(&loaded.program, out);
        let bias = bias.map_or(0, |bias| loaded.weight(bias));
        let (out, input) = (loaded.value(out), loaded.value(input));
        let address = loaded.weight(weight);
        if let Some(&layout) = loaded.blocks(weight) {
            let work = None;
            let weight = address;
            return self.blocks_product(&BlocksProduct {
                out,
                input,
                weight,
                bias,
                layout,
                rows,
                columns,
                inner,
                wide,
                work,
            });
        }
        if rows > FEW_ROWS
            && let Some(blas) = &mut self.blas
        {
            let shape = ProductShape {
                rows: rows as usize,
                columns: columns as usize,
                inner: inner as usize,
                wide,
                has_bias: bias != 0,
            };
            let operands = Operands { out, input, weight: address, bias };
            if blas.multiply(self.device, shape, &operands)? {
                return Ok(());
            }
        }
        let addresses = [out, input, address, bias].map(Address);
        let numbers = [rows, columns, inner, u32::from(wide)].map(|number| Int(number as i32));
        let arguments: Vec<_> = addresses.into_iter().chain(numbers).collect();
        let grid = [columns.div_ceil(64), rows.div_ceil(64)];
        self.launch(Kernel::Linear, "linear", Shape { grid, threads: 128, shared: 0 }, &arguments)
    }

    fn blocks_product(&self, product: &BlocksProduct) -> Result<(), BackendError> {
        let height = product.work.map_or(product.rows, |work| work.height);
        let work =
            product.work.unwrap_or(Work { tiles: 0, count: 0, height: 0, order: 0, chosen: 1 });
        let addresses =
            [product.out, product.input, product.weight, product.bias, work.tiles, work.order];
        let numbers = [work.chosen, product.rows, product.columns, product.inner];
        let mut arguments: Vec<_> = addresses.map(Address).to_vec();
        arguments.extend(numbers.map(|number| Int(number as i32)));
        arguments.push(Address(product.layout.stride() as u64));
        arguments.push(Int(i32::from(product.wide)));
        let vector = Kernel::VECTORS.into_iter().find(|(_, most)| height <= *most);
        let (kernel, name, rows, columns) = match vector {
            Some((name, most)) => (Kernel::BlocksVector, name, most, if most > 2 { 4 } else { 8 }),
            None => (Kernel::BlocksTile, "blocks_tile", TILE[0], TILE[1]),
        };
        let tiles = if work.tiles == 0 { product.rows.div_ceil(rows) } else { work.count };
        let grid = [product.columns.div_ceil(columns), tiles];
        let variant = self.loaded.of_blocks(&product.layout);
        self.device.launch(
            kernel,
            &variant,
            name,
            Shape { grid, threads: 128, shared: 0 },
            &arguments,
        )
    }

    /// Looks rows of an embedding in blocks up.
    pub(crate) fn embed_blocks(
        &self,
        layout: &BlockLayout,
        weight: WeightId,
        [tokens, next]: [u64; 2],
        scale: f32,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let loaded = self.loaded;
        let vocabulary =
            loaded.program.weights()[weight.index()].shape.first().copied().unwrap_or(0);
        let arguments = [
            Address(loaded.value(out)),
            Address(loaded.weight(weight)),
            Address(tokens),
            Address(next),
            Int(vocabulary as i32),
            Int(loaded.width(out) as i32),
            Float(scale),
        ];
        let shape = Shape { grid: [self.rows(out) as u32, 1], threads: 128, shared: 0 };
        let variant = loaded.of_blocks(layout);
        self.device.launch(Kernel::BlocksEmbed, &variant, "blocks_embed", shape, &arguments)
    }

    pub(crate) fn mixture(&self, op: &MixtureOfExperts) -> Result<(), BackendError> {
        let (loaded, memory) = (self.loaded, &self.loaded.mixture);
        let (rows, chosen) = (self.rows(op.out) as u32, op.routing.chosen);
        let (choices, width) = (rows * chosen, loaded.width(op.out) as u32);
        if choices == 0 {
            return Ok(());
        }
        let height = tile_height(choices, op.experts);
        // An expert's last tile may be anything but full.
        let most = op.experts.min(choices) + choices / height;
        self.route(op, rows)?;
        let threads = |grid, threads| Shape { grid: [grid, 1], threads, shared: 0 };
        let arguments = [memory.order, memory.places, memory.counts, memory.experts].map(Address);
        let arguments: Vec<_> = arguments.into_iter().chain([Int(choices as i32)]).collect();
        self.launch(Kernel::Experts, "sort_choices", threads(op.experts, 32), &arguments)?;
        let numbers = [op.experts, height, most].map(|number| Int(number as i32));
        let arguments: Vec<_> =
            [memory.tiles, memory.counts].map(Address).into_iter().chain(numbers).collect();
        self.launch(Kernel::Experts, "list_tiles", threads(1, MOST_EXPERTS), &arguments)?;

        let work = Work { tiles: memory.tiles, count: most, height, order: memory.order, chosen };
        let input = loaded.value(op.input);
        self.experts(op.gate, [memory.gate, input], choices, work)?;
        self.experts(op.up, [memory.up, input], choices, work)?;
        let inner = expert_width(&loaded.program, op);
        let values = [memory.inner, memory.gate, memory.up];
        self.activate(op.activation, values, [inner, inner], choices as usize * inner)?;
        let by_place = Work { order: 0, chosen: 1, ..work };
        self.experts(op.down, [memory.results, memory.inner], choices, by_place)?;

        let count = rows * width / 8;
        let addresses =
            [loaded.value(op.out), memory.results, memory.places, memory.weights].map(Address);
        let numbers = [chosen, width, count].map(|number| Int(number as i32));
        let arguments: Vec<_> = addresses.into_iter().chain(numbers).collect();
        self.launch(Kernel::Experts, "combine", Shape::covering(count as usize), &arguments)
    }

    fn route(&self, op: &MixtureOfExperts, rows: u32) -> Result<(), BackendError> {
        let (loaded, routing) = (self.loaded, &op.routing);
        let of =
            |weight: Option<WeightId>| Address(weight.map_or(0, |weight| loaded.weight(weight)));
        let arguments = [
            Address(loaded.mixture.experts),
            Address(loaded.mixture.weights),
            Address(loaded.value(op.scores)),
            of(routing.selection_bias),
            of(routing.scales),
            Int(op.experts as i32),
            Int(routing.chosen as i32),
            Int(i32::from(routing.scoring == Scoring::Sigmoid)),
            Int(i32::from(routing.normalize)),
            Float(routing.factor),
        ];
        let shape = Shape { grid: [rows, 1], threads: 32, shared: 0 };
        self.launch(Kernel::Experts, "route", shape, &arguments)
    }

    /// A layer of all experts that any row chose.
    fn experts(
        &self,
        layer: ExpertLinear,
        [out, input]: [u64; 2],
        choices: u32,
        work: Work,
    ) -> Result<(), BackendError> {
        let loaded = self.loaded;
        let shape = &loaded.program.weights()[layer.weight.index()].shape;
        let (&[_, columns, inner], Some(&layout)) = (shape.as_slice(), loaded.blocks(layer.weight))
        else {
            let what = format!("experts of shape {shape:?}");
            return Err(BackendError::Unsupported { backend: BACKEND, what });
        };
        self.blocks_product(&BlocksProduct {
            out,
            input,
            weight: loaded.weight(layer.weight),
            bias: layer.bias.map_or(0, |bias| loaded.weight(bias)),
            layout,
            rows: choices,
            columns: columns as u32,
            inner: inner as u32,
            wide: false,
            work: Some(work),
        })
    }
}
