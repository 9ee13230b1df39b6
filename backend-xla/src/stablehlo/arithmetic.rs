//! Elementwise operations, shapes, reductions and products.

use super::{Element, Function, Type, Value, list, names, types};

/// How two numbers are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Equal,
    Less,
    LessEqual,
    GreaterEqual,
    Greater,
}

/// What a reduction does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reduction {
    Sum,
    Max,
    Min,
}

macro_rules! binary {
    ($($method:ident: $name:literal,)*) => { $(
        #[doc = concat!("`stablehlo.", $name, "`, elementwise.")]
        pub(crate) fn $method(&mut self, left: &Value, right: &Value) -> Value {
            let kind = left.kind.clone();
            let text = format!(concat!("stablehlo.", $name, " {}, {} : {}"), left.name, right.name, kind);
            self.define(kind, &text)
        }
    )* };
}

macro_rules! unary {
    ($($method:ident: $name:literal,)*) => { $(
        #[doc = concat!("`stablehlo.", $name, "`, elementwise.")]
        pub(crate) fn $method(&mut self, value: &Value) -> Value {
            let kind = value.kind.clone();
            let text = format!(concat!("stablehlo.", $name, " {} : {}"), value.name, kind);
            self.define(kind, &text)
        }
    )* };
}

impl Function {
    binary! {
        add: "add", subtract: "subtract", multiply: "multiply", divide: "divide",
        remainder: "remainder", maximum: "maximum", minimum: "minimum",
        and: "and", or: "or", xor: "xor",
        shift_right: "shift_right_logical",
    }
    unary! {
        exponential: "exponential", log: "log", tanh: "tanh", logistic: "logistic",
        cosine: "cosine", sine: "sine", rsqrt: "rsqrt", not: "not",
        log_plus_one: "log_plus_one", negate: "negate",
    }

    /// A constant with `value` everywhere.
    pub(crate) fn splat(&mut self, element: Element, dims: &[usize], value: f64) -> Value {
        let kind = Type::new(element, dims);
        let text = format!("stablehlo.constant dense<{}> : {kind}", literal(element, value));
        self.define(kind, &text)
    }

    /// A scalar `i32` constant.
    pub(crate) fn int(&mut self, value: usize) -> Value {
        self.splat(Element::I32, &[], value as f64)
    }

    /// A vector of `f32` constants.
    pub(crate) fn vector(&mut self, values: &[f32]) -> Value {
        let kind = Type::new(Element::F32, &[values.len()]);
        let values = values.iter().map(|&value| literal(Element::F32, value.into()));
        let text = format!("stablehlo.constant dense<[{}]> : {kind}", list(values));
        self.define(kind, &text)
    }

    /// `0, 1, 2, ..` along dimension `dim`.
    pub(crate) fn iota(&mut self, element: Element, dims: &[usize], dim: usize) -> Value {
        let kind = Type::new(element, dims);
        let text = format!("stablehlo.iota dim = {dim} : {kind}");
        self.define(kind, &text)
    }

    /// The same numbers as another type of element.
    pub(crate) fn convert(&mut self, value: &Value, element: Element) -> Value {
        if value.element() == element {
            return value.clone();
        }
        let kind = value.kind.with_element(element);
        let text = format!("stablehlo.convert {} : ({}) -> {kind}", value.name, value.kind);
        self.define(kind, &text)
    }

    /// The same bits as another type of element of the same size.
    pub(crate) fn bitcast(&mut self, value: &Value, element: Element) -> Value {
        let kind = value.kind.with_element(element);
        let text = format!("stablehlo.bitcast_convert {} : ({}) -> {kind}", value.name, value.kind);
        self.define(kind, &text)
    }

    /// The same elements, in order, under other dimensions.
    pub(crate) fn reshape(&mut self, value: &Value, dims: &[usize]) -> Value {
        if value.dims() == dims {
            return value.clone();
        }
        let kind = value.kind.with_dims(dims);
        let text = format!("stablehlo.reshape {} : ({}) -> {kind}", value.name, value.kind);
        self.define(kind, &text)
    }

    /// Repeats a value: its dimension `i` becomes dimension `places[i]` of `dims`.
    pub(crate) fn broadcast(&mut self, value: &Value, dims: &[usize], places: &[usize]) -> Value {
        if value.dims() == dims {
            return value.clone();
        }
        let kind = value.kind.with_dims(dims);
        let text = format!(
            "stablehlo.broadcast_in_dim {}, dims = [{}] : ({}) -> {kind}",
            value.name,
            list(places),
            value.kind
        );
        self.define(kind, &text)
    }

    /// Repeats a value so that it fits `like`; see [`Function::broadcast`].
    pub(crate) fn broadcast_to(&mut self, value: &Value, like: &Value, places: &[usize]) -> Value {
        self.broadcast(value, like.dims(), places)
    }

    /// Reorders dimensions: dimension `i` of the result is dimension `order[i]` of the value.
    pub(crate) fn transpose(&mut self, value: &Value, order: &[usize]) -> Value {
        let dims: Vec<usize> = order.iter().map(|&dim| value.dim(dim)).collect();
        let kind = value.kind.with_dims(&dims);
        let text = format!(
            "stablehlo.transpose {}, dims = [{}] : ({}) -> {kind}",
            value.name,
            list(order),
            value.kind
        );
        self.define(kind, &text)
    }

    /// `value * factor`, with the factor in the value's type.
    pub(crate) fn scale(&mut self, value: &Value, factor: f32) -> Value {
        if factor == 1.0 {
            return value.clone();
        }
        let factor = self.splat(value.element(), &value.kind.dims.clone(), factor.into());
        self.multiply(value, &factor)
    }

    /// Where a comparison holds.
    pub(crate) fn compare(&mut self, left: &Value, order: Order, right: &Value) -> Value {
        let direction = match order {
            Order::Equal => "EQ",
            Order::Less => "LT",
            Order::LessEqual => "LE",
            Order::GreaterEqual => "GE",
            Order::Greater => "GT",
        };
        let family = match left.element() {
            element if element.is_float() => "FLOAT",
            Element::I32 => "SIGNED",
            _ => "UNSIGNED",
        };
        let kind = left.kind.with_element(Element::Bool);
        let text = format!(
            "stablehlo.compare {direction}, {}, {}, {family} : ({}, {}) -> {kind}",
            left.name, right.name, left.kind, right.kind
        );
        self.define(kind, &text)
    }

    /// Where a value is neither infinite nor NaN.
    pub(crate) fn is_finite(&mut self, value: &Value) -> Value {
        let kind = value.kind.with_element(Element::Bool);
        let text = format!("stablehlo.is_finite {} : ({}) -> {kind}", value.name, value.kind);
        self.define(kind, &text)
    }

    /// `yes` where `condition` holds, else `no`.
    pub(crate) fn select(&mut self, condition: &Value, yes: &Value, no: &Value) -> Value {
        let kind = yes.kind.clone();
        let text = format!(
            "stablehlo.select {}, {}, {} : {}, {kind}",
            condition.name, yes.name, no.name, condition.kind
        );
        self.define(kind, &text)
    }

    /// Reduces the dimensions `over`; they are gone from the result.
    pub(crate) fn reduce(&mut self, value: &Value, reduction: Reduction, over: &[usize]) -> Value {
        let element = value.element();
        let (name, start) = match (reduction, element.is_float()) {
            (Reduction::Sum, _) => ("add", 0.0),
            (Reduction::Max, true) => ("maximum", f64::NEG_INFINITY),
            (Reduction::Max, false) if element == Element::I32 => ("maximum", i32::MIN.into()),
            (Reduction::Max, false) => ("maximum", 0.0),
            (Reduction::Min, true) => ("minimum", f64::INFINITY),
            (Reduction::Min, false) if element == Element::I32 => ("minimum", i32::MAX.into()),
            (Reduction::Min, false) => ("minimum", u32::MAX.into()),
        };
        let start = self.splat(element, &[], start);
        let kept = value.dims().iter().enumerate().filter(|(dim, _)| !over.contains(dim));
        let dims: Vec<usize> = kept.map(|(_, &size)| size).collect();
        let kind = value.kind.with_dims(&dims);
        let text = format!(
            "stablehlo.reduce({} init: {}) applies stablehlo.{name} across dimensions = [{}] : ({}) \
             -> {kind}",
            value.name,
            start.name,
            list(over),
            types(&[value, &start]),
        );
        self.define(kind, &text)
    }

    /// Products of matrices: sums over the `contracted` pair of dimensions, for each index of the
    /// `batched` pairs. The result has the batched dimensions, then the left's others, then the
    /// right's others, and elements of type `element`.
    pub(crate) fn dot(
        &mut self,
        (left, right): (&Value, &Value),
        batched: &[(usize, usize)],
        contracted: (usize, usize),
        element: Element,
    ) -> Value {
        let left_batched: Vec<usize> = batched.iter().map(|pair| pair.0).collect();
        let right_batched: Vec<usize> = batched.iter().map(|pair| pair.1).collect();
        let mut dims: Vec<usize> = left_batched.iter().map(|&dim| left.dim(dim)).collect();
        for (value, batched, contracted) in
            [(left, &left_batched, contracted.0), (right, &right_batched, contracted.1)]
        {
            let free = |dim: &usize| *dim != contracted && !batched.contains(dim);
            dims.extend((0..value.dims().len()).filter(free).map(|dim| value.dim(dim)));
        }
        let kind = Type::new(element, &dims);
        let batching = match batched.is_empty() {
            true => String::new(),
            false => {
                format!("batching_dims = [{}] x [{}], ", list(&left_batched), list(&right_batched))
            }
        };
        // On a TPU the default multiplies f32 in one pass of bf16.
        let precision = match left.element() {
            Element::F32 => ", precision = [HIGHEST, HIGHEST]",
            _ => "",
        };
        let text = format!(
            "stablehlo.dot_general {}, {batching}contracting_dims = [{}] x [{}]{precision} : ({}) \
             -> {kind}",
            names(&[left, right]),
            contracted.0,
            contracted.1,
            types(&[left, right]),
        );
        self.define(kind, &text)
    }
}

/// A number as MLIR spells it in a tensor of this element.
fn literal(element: Element, value: f64) -> String {
    match element {
        Element::Bool => (value != 0.0).to_string(),
        Element::I8 | Element::I32 | Element::U32 | Element::U64 => format!("{value:.0}"),
        // MLIR takes bits for what has no decimal form.
        Element::F32 if !value.is_finite() => format!("{:#010X}", (value as f32).to_bits()),
        Element::BF16 if !value.is_finite() => format!("{:#06X}", (value as f32).to_bits() >> 16),
        Element::F16 if !value.is_finite() => match value > 0.0 {
            true => "0x7C00".to_owned(),
            false => "0xFC00".to_owned(),
        },
        _ => {
            let text = format!("{:?}", value as f32);
            match text.split_once('e') {
                Some((digits, exponent)) if !digits.contains('.') => {
                    format!("{digits}.0e{exponent}")
                }
                _ => text,
            }
        }
    }
}
