//! StableHLO as text: typed values and a function being written.
//!
//! Only what the lowering needs, spelled as MLIR's textual form spells it. The result of every
//! operation is inferred here, so that a lowering reads like arithmetic; the plugin's verifier
//! checks the text again.

mod arithmetic;
mod control;
mod function;
mod indexing;
mod sharding;
mod sort;

pub(crate) use arithmetic::{Order, Reduction};
pub(crate) use function::{Function, Input, Output};
pub(crate) use sharding::{AXIS, Sharding};

use crate::pjrt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    BF16,
    F16,
    I8,
    I32,
    U32,
    U64,
    Bool,
}

impl Element {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::U32 => "ui32",
            Self::U64 => "ui64",
            Self::Bool => "i1",
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::BF16 | Self::F16)
    }
}

impl From<pjrt::ElementType> for Element {
    fn from(element: pjrt::ElementType) -> Self {
        match element {
            pjrt::ElementType::F32 => Self::F32,
            pjrt::ElementType::BF16 => Self::BF16,
            pjrt::ElementType::F16 => Self::F16,
            pjrt::ElementType::I8 => Self::I8,
            pjrt::ElementType::I32 => Self::I32,
            pjrt::ElementType::U32 => Self::U32,
        }
    }
}

/// Element type and dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Type {
    pub(crate) element: Element,
    pub(crate) dims: Vec<usize>,
}

impl Type {
    pub(crate) fn new(element: Element, dims: &[usize]) -> Self {
        Self { element, dims: dims.to_vec() }
    }

    /// Bytes that a dense array of the type takes.
    pub(crate) fn byte_len(&self) -> u64 {
        let size = match self.element {
            Element::U64 => 8,
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::BF16 | Element::F16 => 2,
            Element::I8 | Element::Bool => 1,
        };
        self.dims.iter().map(|&dim| dim as u64).product::<u64>() * size
    }

    fn with_dims(&self, dims: &[usize]) -> Self {
        Self::new(self.element, dims)
    }

    fn with_element(&self, element: Element) -> Self {
        Self::new(element, &self.dims)
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("tensor<")?;
        for dim in &self.dims {
            write!(formatter, "{dim}x")?;
        }
        write!(formatter, "{}>", self.element.name())
    }
}

/// A value of a function: its name in the text, and its type.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    name: String,
    kind: Type,
}

impl Value {
    pub(crate) fn dims(&self) -> &[usize] {
        &self.kind.dims
    }

    pub(crate) fn dim(&self, index: usize) -> usize {
        self.kind.dims[index]
    }

    pub(crate) fn element(&self) -> Element {
        self.kind.element
    }
}

/// `a, b, c`
fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

fn names(values: &[&Value]) -> String {
    list(values.iter().map(|value| &value.name))
}

fn types(values: &[&Value]) -> String {
    list(values.iter().map(|value| &value.kind))
}
