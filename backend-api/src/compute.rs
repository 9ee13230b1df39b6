//! In what precision products with weights are computed.

use std::{fmt, str::FromStr};

use crate::weights::Format;

/// In what precision linear operations are computed. Sums are f32 or exact integers in all of them.
///
/// ```
/// use backend_api::{Compute, weights::Format};
///
/// let fast = [Compute::Bf16, Compute::Int8];
/// assert_eq!(Compute::Auto.of(Format::Q4_1, &fast), Compute::Int8);
/// assert_eq!(Compute::Auto.of(Format::F32, &fast), Compute::Exact);
/// assert_eq!("int8".parse(), Ok(Compute::Int8));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compute {
    /// Activations and weights are f32 when they are multiplied: results are those of the weights
    /// in the file, up to rounding.
    #[default]
    Exact,
    /// Activations are rounded to bf16, and weights that aren't quantized too.
    Bf16,
    /// Activations are quantized to eight bits for each row and block of 32 inputs, as in ggml's Q8_0
    /// (weights that aren't quantized too).
    Int8,
    /// What suits the format of each weight, where it is faster on the device: bf16 for bf16, int8
    /// for quantized weights, and exact for the others.
    Auto,
}

impl Compute {
    /// Every precision.
    pub const ALL: [Self; 4] = [Self::Exact, Self::Bf16, Self::Int8, Self::Auto];

    /// The precision for a weight of `format` on a device on which the precisions of `fast` are
    /// faster than exact: never [`Auto`](Self::Auto).
    pub fn of(self, format: Format, fast: &[Self]) -> Self {
        let wanted = match self {
            Self::Auto if format == Format::BF16 => Self::Bf16,
            Self::Auto if format.is_quantized() => Self::Int8,
            Self::Auto => Self::Exact,
            given => return given,
        };
        if fast.contains(&wanted) { wanted } else { Self::Exact }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Auto => "auto",
        })
    }
}

/// A precision or format of KV that isn't known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is none of {known}")]
pub struct UnknownName {
    /// What was written.
    pub text: String,
    /// What there is.
    pub known: String,
}

impl UnknownName {
    pub(crate) fn new<T: fmt::Display>(text: &str, known: &[T]) -> Self {
        let known: Vec<String> = known.iter().map(T::to_string).collect();
        Self { text: text.to_owned(), known: known.join(", ") }
    }
}

impl FromStr for Compute {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let known = Self::ALL.into_iter().find(|compute| compute.to_string() == text);
        known.ok_or_else(|| UnknownName::new(text, &Self::ALL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_exact_where_nothing_is_faster() {
        for format in Format::ALL {
            assert_eq!(Compute::Auto.of(format, &[]), Compute::Exact);
            assert_eq!(Compute::Int8.of(format, &[]), Compute::Int8);
        }
        assert_eq!(Compute::Auto.of(Format::BF16, &[Compute::Int8]), Compute::Exact);
        assert_eq!(Compute::Auto.of(Format::BF16, &[Compute::Bf16]), Compute::Bf16);
    }

    #[test]
    fn names_read_back() {
        for compute in Compute::ALL {
            assert_eq!(compute.to_string().parse(), Ok(compute));
        }
        let error = "int9".parse::<Compute>().unwrap_err();
        assert_eq!(error.to_string(), "`int9` is none of exact, bf16, int8, auto");
    }
}
