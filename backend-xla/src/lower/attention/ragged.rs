//! Attention by the ragged paged attention kernel ([`crate::pallas`]), on TPUs.
//!
//! Tokens lie row behind row. The new tokens' K and V are scattered into their pages as in the
//! portable lowering; then each device calls the kernel on its own heads. The kernel reads the KV
//! array as it lies, so there is no copy of it.

use backend_api::{
    BackendError,
    program::{Attention, Op, Program},
};

use super::{Heads, kv_index};
use crate::{
    lower::{
        Geometry,
        placement::Placement,
        step::{Lowering, StepShape, kv_sharding},
        unsupported,
    },
    pallas::{AttentionChoice, AttentionUsed, KernelError, KernelShape, KernelSource, Kernels},
    stablehlo::{Element, Function, Order, Sharding, Value},
};

/// The kernel works on whole vector registers, which are so wide.
const LANES: usize = 128;

/// How a program's steps attend.
#[derive(Clone, Debug)]
pub(crate) struct AttentionPlan {
    /// `None` for the portable lowering.
    pub(crate) kernels: Option<Kernels>,
    pub(crate) used: AttentionUsed,
}

/// Finds out how a program's steps attend on a kind of device: with the kernel if it is wanted and
/// can be had for all of `shapes`, which are ragged.
///
/// # Errors
///
/// [`BackendError::Unsupported`] if only the kernel will do and it can't be had.
pub(crate) fn plan(
    choice: &AttentionChoice,
    device: &str,
    program: &Program,
    placement: &Placement,
    geometry: &Geometry,
    shapes: &[StepShape],
) -> Result<AttentionPlan, BackendError> {
    let load = |source: &KernelSource| {
        let target = source.target(device)?;
        let mut kernels = Vec::new();
        for &shape in shapes {
            for attention in attentions(program) {
                let shape = kernel_shape(&target, attention, placement, geometry, shape)?;
                if !kernels.contains(&shape) {
                    kernels.push(shape);
                }
            }
        }
        source.load(&target, &kernels)
    };
    let (source, is_required) = match choice {
        AttentionChoice::Portable => {
            return Ok(AttentionPlan { kernels: None, used: AttentionUsed::Portable });
        }
        AttentionChoice::Pallas(source) => (source, false),
        AttentionChoice::PallasOnly(source) => (source, true),
    };
    match load(source) {
        Ok(kernels) => Ok(AttentionPlan { kernels: Some(kernels), used: AttentionUsed::Pallas }),
        Err(reason) if is_required => {
            Err(unsupported(format!("attention by the Pallas kernel: {reason}")))
        }
        Err(reason) => {
            tracing::warn!(%reason, "attention is portable, without the Pallas kernel");
            Ok(AttentionPlan { kernels: None, used: AttentionUsed::Fallback(reason) })
        }
    }
}

fn attentions(program: &Program) -> impl Iterator<Item = &Attention> {
    program.ops().iter().filter_map(|op| match op {
        Op::Attention(attention) => Some(attention),
        _ => None,
    })
}

/// The kernel that an attention layer calls in a step.
fn kernel_shape(
    target: &str,
    attention: &Attention,
    placement: &Placement,
    geometry: &Geometry,
    shape: StepShape,
) -> Result<KernelShape, KernelError> {
    let unknown = |what: String| KernelError::Program { what };
    let head_dim = attention.head_dim as usize;
    if attention.sinks.is_some() {
        return Err(unknown("attention sinks".to_owned()));
    }
    if !head_dim.is_multiple_of(LANES) {
        return Err(unknown(format!("heads of {head_dim}, which {LANES} does not divide")));
    }
    let of_device = |width: usize| width / head_dim / placement.devices;
    let group = usize::from(attention.group.0);
    Ok(KernelShape {
        target: target.to_owned(),
        element: geometry.kv_element,
        tokens: shape.tokens(),
        heads: of_device(placement.widths[attention.query.index()]),
        kv_heads: placement.kv_heads(attention.kv_heads as usize) / placement.devices,
        head_dim,
        pages: geometry.pages[group] + 1,
        page_size: geometry.page_size,
        rows: shape.decode,
        pages_per_row: geometry.table_len,
        scale: attention.scale,
        window: attention.window,
        soft_cap: attention.soft_cap,
    })
}

/// What the kernel reads of a step's rows.
#[derive(Clone, Debug)]
pub(crate) struct RaggedRows {
    /// `[rows]`.
    slots: Value,
    /// `[rows]`: positions whose KV there is, the new tokens' included.
    kv_lens: Value,
    /// `[rows + 1]`: where each row's tokens start, and where the last one's end.
    bounds: Value,
    /// `[1]`: how many rows there are.
    count: Value,
    /// For each page group whose rows' page tables were read, `[rows, table_len]`.
    tables: Vec<(usize, Value)>,
    /// The kernels called so far; number `i` is the function `@kernel<i>`.
    kernels: Vec<KernelShape>,
}

impl RaggedRows {
    /// Reads them off a step's control vector; see [`StepShape::control_len`].
    pub(crate) fn new(f: &mut Function, control: &Value, shape: StepShape) -> Self {
        let mut start = 3 * shape.tokens() + shape.outputs + shape.hidden;
        let mut next = |f: &mut Function, size: usize| {
            start += size;
            f.slice(control, 0, start - size, size)
        };
        Self {
            slots: next(f, shape.decode),
            kv_lens: next(f, shape.decode),
            bounds: next(f, shape.decode + 1),
            count: next(f, 1),
            tables: Vec::new(),
            kernels: Vec::new(),
        }
    }

    /// The page tables of the rows in a group.
    fn tables(&mut self, f: &mut Function, group: usize, all: &Value) -> Value {
        if let Some((_, known)) = self.tables.iter().find(|(known, _)| *known == group) {
            return known.clone();
        }
        let tables = f.take(all, &self.slots);
        self.tables.push((group, tables.clone()));
        tables
    }

    /// The name of a kernel's function, which is added to the module at its first use.
    fn kernel(
        &mut self,
        f: &mut Function,
        kernels: &Kernels,
        shape: &KernelShape,
    ) -> Option<String> {
        if let Some(index) = self.kernels.iter().position(|known| known == shape) {
            return Some(format!("@kernel{index}"));
        }
        let name = format!("@kernel{}", self.kernels.len());
        f.add_functions(&kernels.functions(shape, &name)?);
        self.kernels.push(shape.clone());
        Some(name)
    }
}

impl Lowering<'_> {
    pub(super) fn ragged_attention(&mut self, attention: &Attention) -> Result<(), BackendError> {
        let missing = || unsupported("a ragged step without its kernel");
        let kernels = self.kernels.ok_or_else(missing)?;
        let shape =
            kernel_shape(kernels.target(), attention, self.placement, self.geometry, self.shape)
                .map_err(|error| unsupported(error.to_string()))?;
        let (devices, group) = (self.placement.devices, usize::from(attention.group.0));
        let layer = kv_index(self.program, attention);
        let query = self.value(attention.query)?;
        let new = self.new_kv(attention)?;
        let rows = self.rows.as_mut().ok_or_else(missing)?;
        let name = rows.kernel(&mut self.function, kernels, &shape).ok_or_else(missing)?;
        let tables = rows.tables(&mut self.function, group, &self.tables[group]);
        let heads = Heads {
            attention,
            geometry: self.geometry,
            kv_heads: shape.kv_heads,
            group: shape.heads / shape.kv_heads,
        };
        let across = if devices == 1 { Sharding::REPLICATED } else { Sharding::along(1) };
        let whole = Sharding::REPLICATED;
        let kv_sharding = kv_sharding(self.placement);
        let mut inputs = vec![(&query, across), (&self.kv[layer], kv_sharding)];
        inputs.push((&self.token_slots, whole));
        let of_rows = [&rows.kv_lens, &tables, &rows.bounds, &rows.count];
        inputs.extend(of_rows.map(|value| (value, whole)));
        if let Some([key, value, destinations]) = &new {
            inputs.extend([(key, across), (value, across), (destinations, whole)]);
        }
        let body = |f: &mut Function, local: &[Value]| {
            let [query, kv, slots, rows @ ..] = local else { return Vec::new() };
            let (rows, new) = rows.split_at(of_rows.len());
            let kv = match new {
                [key, value, destinations] => heads.write(f, key, value, kv, destinations),
                _ => kv.clone(),
            };
            let out = heads.call(f, (&name, &shape), query, &kv, rows);
            vec![heads.without_padding(f, &out, slots), kv]
        };
        let mut results =
            self.function.on_each_device(devices, &inputs, &[across, kv_sharding], body);
        // The body returns the output and the KV array.
        if let (Some(kv), Some(out)) = (results.pop(), results.pop()) {
            self.kv[layer] = kv;
            self.set(attention.out, out);
        }
        Ok(())
    }
}

impl Heads<'_> {
    /// Calls the kernel: `[tokens, heads * head_dim]` to the same.
    fn call(
        &self,
        f: &mut Function,
        (name, shape): (&str, &KernelShape),
        query: &Value,
        kv: &Value,
        rows: &[Value],
    ) -> Value {
        let [query_kind, ..] = shape.operands();
        let q = f.convert(query, kv.element());
        let q = f.reshape(&q, &query_kind.dims);
        let operands: Vec<&Value> = [&q, kv].into_iter().chain(rows).collect();
        let out = f.call(name, &operands, query_kind);
        let out = f.convert(&out, query.element());
        f.reshape(&out, query.dims())
    }

    /// Zeros for padding tokens, for which the kernel writes nothing: what is left there need not
    /// be a number, and would be written into the padding page by the next layer.
    fn without_padding(&self, f: &mut Function, out: &Value, slots: &Value) -> Value {
        let padding = f.splat(Element::I32, slots.dims(), self.geometry.padding_slot() as f64);
        let is_padding = f.compare(slots, Order::Equal, &padding);
        let is_padding = f.broadcast_to(&is_padding, out, &[0]);
        let nothing = f.splat(out.element(), out.dims(), 0.0);
        f.select(&is_padding, &nothing, out)
    }
}

#[cfg(test)]
mod tests {
    use backend_api::program::{AttentionOptions, ProgramBuilder, Split};

    use super::*;
    use crate::{
        lower::{Placed, step::step},
        stablehlo::Element,
    };

    const TPU: &str = "TPU v6 lite";

    /// Layers of attention alone, one for each window.
    fn program(head_dim: usize, windows: &[Option<u32>], sinks: Option<&str>) -> Program {
        let mut b = ProgramBuilder::new("attention", 32);
        b.page_group(2, head_dim as u32, None);
        let mut x = b.embed("embed", 16, 1.0);
        for (layer, &window) in windows.iter().enumerate() {
            let q = b.linear(x, &format!("{layer}.q"), 4 * head_dim, Split::Columns);
            let k = b.linear(x, &format!("{layer}.k"), 2 * head_dim, Split::Columns);
            let v = b.linear(x, &format!("{layer}.v"), 2 * head_dim, Split::Columns);
            let mut options = AttentionOptions::full(head_dim as u32);
            options.window = window;
            options.sinks = sinks.map(str::to_owned);
            let out = b.attention(q, k, v, &options);
            x = b.linear(out, &format!("{layer}.o"), 16, Split::Rows);
        }
        let x = b.select_outputs(x);
        b.finish_with_logits(x, "logits", None).expect("the program is well formed")
    }

    fn geometry() -> Geometry {
        Geometry::new(64, 3, vec![10], 256, Element::BF16)
    }

    fn shape() -> StepShape {
        StepShape { decode: 3, blocks: 5, block: 1, outputs: 3, hidden: 0, is_ragged: true }
    }

    fn planned(program: &Program, devices: usize, folder: &std::path::Path) -> AttentionPlan {
        let placement = Placement::new(program, devices, Element::BF16).expect("it divides");
        let choice = AttentionChoice::Pallas(KernelSource::folder(folder));
        plan(&choice, TPU, program, &placement, &geometry(), &[shape()]).expect("a plan")
    }

    /// The module of a step, with kernels that return their queries.
    fn module(program: &Program, devices: usize) -> String {
        let placement = Placement::new(program, devices, Element::BF16).expect("it divides");
        let folder = tempfile::tempdir().expect("a folder");
        let kernels: Vec<KernelShape> = attentions(program)
            .map(|attention| kernel_shape(TPU, attention, &placement, &geometry(), shape()))
            .collect::<Result<_, _>>()
            .expect("the kernel takes it");
        Kernels::write_stand_ins(folder.path(), &kernels);
        let plan = planned(program, devices, folder.path());
        assert_eq!(plan.used, AttentionUsed::Pallas);
        let (program, geometry, kernels) = (program.clone(), geometry(), plan.kernels);
        let placed = Placed { program, placement, geometry, kernels };
        step(&placed, shape()).expect("the program lowers").text
    }

    #[test]
    fn a_step_with_the_kernel_is_written_as_recorded() {
        insta::assert_snapshot!("ragged_step", module(&program(128, &[None], None), 1));
    }

    #[test]
    fn a_step_with_the_kernel_over_two_devices_is_written_as_recorded() {
        insta::assert_snapshot!("two_devices_ragged_step", module(&program(128, &[None], None), 2));
    }

    #[test]
    fn layers_that_attend_alike_share_a_kernel() {
        let text = module(&program(128, &[None, Some(64), None, Some(64)], None), 1);
        let count = |what: &str| text.matches(what).count();
        assert_eq!(count("func.func private @kernel"), 2);
        assert_eq!(count("func.call @kernel0("), 2);
        assert_eq!(count("func.call @kernel1("), 2);
        // The rows' page tables are looked up once.
        assert_eq!(count("-> tensor<3x4xi32>"), 1);
        assert_eq!(count("tensor<11x64x4x128xbf16>, tensor<3xi32>, "), 4);
    }

    #[test]
    fn where_the_kernel_cant_be_had_a_reason_is_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let reason = |program: &Program| match planned(program, 1, folder.path()) {
            AttentionPlan { kernels: None, used: AttentionUsed::Fallback(reason) } => reason,
            plan => panic!("{plan:?}"),
        };
        let error = reason(&program(64, &[None], None));
        assert!(matches!(&error, KernelError::Program { what } if what.contains("64")), "{error}");
        let error = reason(&program(128, &[None], Some("sinks")));
        assert!(matches!(&error, KernelError::Program { what } if what.contains("sinks")));
        // There is no kernel in the folder.
        let error = reason(&program(128, &[None], None));
        assert!(matches!(error, KernelError::File { .. }), "{error}");
    }
}
