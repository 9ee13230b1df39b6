//! Shardy's annotations: how a tensor lies on the mesh, and code that runs on each device apart.

use super::{Element, Function, Type, Value, list, names, types};

/// The name of the mesh's only axis: tensor parallelism.
pub(crate) const AXIS: &str = "tp";

/// How a tensor lies on the devices: divided along one dimension, or whole on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sharding {
    dim: Option<usize>,
}

impl Sharding {
    pub(crate) const REPLICATED: Self = Self { dim: None };

    /// Divided along dimension `dim`.
    pub(crate) fn along(dim: usize) -> Self {
        Self { dim: Some(dim) }
    }

    /// The dimension that is divided.
    pub(crate) fn dim(self) -> Option<usize> {
        self.dim
    }

    /// The attribute of an argument or result.
    pub(super) fn attribute(self, rank: usize) -> String {
        format!("sdy.sharding = #sdy.sharding{}", self.short(rank))
    }

    /// `<@mesh, [{}, {"tp"}]>`
    fn short(self, rank: usize) -> String {
        let dims = (0..rank).map(|dim| match self.dim == Some(dim) {
            true => format!("{{\"{AXIS}\"}}"),
            false => "{}".to_owned(),
        });
        format!("<@mesh, [{}]>", list(dims))
    }

    /// What one of `partitions` devices has of a tensor.
    fn local(self, kind: &Type, partitions: usize) -> Type {
        let mut local = kind.clone();
        if let Some(dim) = self.dim {
            local.dims[dim] /= partitions;
        }
        local
    }
}

impl Function {
    /// Tells the partitioner how a value lies on the devices.
    pub(crate) fn constrain(&mut self, value: &Value, sharding: Sharding) -> Value {
        let short = sharding.short(value.dims().len());
        let kind = value.kind.clone();
        let text = format!("sdy.sharding_constraint {} {short} : {kind}", value.name);
        self.define(kind, &text)
    }

    /// Code that each device runs on its own shards: the partitioner leaves it alone, and
    /// whatever crosses devices in it is written out. On a single device it is plain code.
    pub(crate) fn on_each_device(
        &mut self,
        partitions: usize,
        inputs: &[(&Value, Sharding)],
        outputs: &[Sharding],
        body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        if partitions == 1 {
            let local: Vec<Value> = inputs.iter().map(|(value, _)| (*value).clone()).collect();
            return body(self, &local);
        }
        let locals: Vec<Value> = inputs
            .iter()
            .map(|(value, sharding)| Value {
                name: self.fresh(),
                kind: sharding.local(&value.kind, partitions),
            })
            .collect();
        let globals: Vec<&Value> = inputs.iter().map(|(value, _)| *value).collect();
        let in_shardings =
            list(inputs.iter().map(|(value, sharding)| sharding.short(value.dims().len())));
        let arguments = list(locals.iter().map(|local| format!("{}: {}", local.name, local.kind)));

        // The body is written first, since the header needs the types of its results.
        let outside = std::mem::take(&mut self.lines);
        self.depth += 1;
        let results = body(self, &locals);
        let returned: Vec<&Value> = results.iter().collect();
        self.line(&format!("sdy.return {} : {}", names(&returned), types(&returned)));
        self.depth -= 1;
        let inside = std::mem::replace(&mut self.lines, outside);

        let kinds: Vec<Type> = results
            .iter()
            .zip(outputs)
            .map(|(result, sharding)| {
                let mut kind = result.kind.clone();
                if let Some(dim) = sharding.dim {
                    kind.dims[dim] *= partitions;
                }
                kind
            })
            .collect();
        let out_shardings =
            list(kinds.iter().zip(outputs).map(|(kind, sharding)| sharding.short(kind.dims.len())));
        let name = self.fresh();
        let defined =
            if kinds.len() == 1 { name.clone() } else { format!("{name}:{}", kinds.len()) };
        self.line(&format!(
            "{defined} = sdy.manual_computation({}) in_shardings=[{in_shardings}] \
             out_shardings=[{out_shardings}] manual_axes={{\"{AXIS}\"}} ({arguments}) {{",
            names(&globals)
        ));
        self.lines.push_str(&inside);
        self.line(&format!("}} : ({}) -> ({})", types(&globals), list(&kinds)));
        self.results(&name, kinds)
    }

    /// The number of the device that runs this, as a scalar `i32`. Inside
    /// [`Function::on_each_device`] only.
    pub(crate) fn device_index(&mut self) -> Value {
        let kind = Type::new(Element::U32, &[]);
        let index = self.define(kind, "stablehlo.partition_id : tensor<ui32>");
        self.convert(&index, Element::I32)
    }

    /// The sum of a value over all devices. Inside [`Function::on_each_device`] only.
    pub(crate) fn sum_over_devices(&mut self, value: &Value, partitions: usize) -> Value {
        let group = list(0..partitions);
        let scalar = value.kind.with_dims(&[]);
        let (a, b, c) = (self.fresh(), self.fresh(), self.fresh());
        let kind = value.kind.clone();
        let text = format!(
            "\"stablehlo.all_reduce\"({}) <{{replica_groups = dense<[[{group}]]> : \
             tensor<1x{partitions}xi64>, channel_handle = #stablehlo.channel_handle<handle = 1, \
             type = 1>, use_global_device_ids}}> ({{ ^bb0({a}: {scalar}, {b}: {scalar}): {c} = \
             stablehlo.add {a}, {b} : {scalar} stablehlo.return {c} : {scalar} }}) : ({kind}) -> \
             {kind}",
            value.name
        );
        self.define(kind, &text)
    }
}
