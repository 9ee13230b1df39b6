//! Types of matrix elements.

use crate::machine::float::{Bf16, Eight, F16, Half};

/// A real type of `cudaDataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F64,
    F32,
    F16,
    Bf16,
    E4m3,
    E5m2,
    I8,
    I32,
}

impl Element {
    /// By its number in `library_types.h`.
    pub(crate) fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F64,
            2 => Self::F16,
            3 => Self::I8,
            10 => Self::I32,
            14 => Self::Bf16,
            28 => Self::E4m3,
            29 => Self::E5m2,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 | Self::E5m2 | Self::I8 => 1,
        }
    }

    pub(crate) fn is_eight(self) -> bool {
        matches!(self, Self::E4m3 | Self::E5m2)
    }

    /// A value from its bytes; all values of all types are exact in f64.
    pub(crate) fn read(self, bytes: &[u8]) -> f64 {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        let bits = u64::from_le_bytes(word);
        match self {
            Self::F64 => f64::from_bits(bits),
            Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F16 => f64::from(F16::widen(bits as u16)),
            Self::Bf16 => f64::from(Bf16::widen(bits as u16)),
            Self::E4m3 => f64::from(Eight::E4m3.widen(bits as u8)),
            Self::E5m2 => f64::from(Eight::E5m2.widen(bits as u8)),
            Self::I8 => f64::from(bits as u8 as i8),
            Self::I32 => f64::from(bits as u32 as i32),
        }
    }

    /// The bytes of the nearest value; fp8 and integers are clamped to their largest.
    pub(crate) fn write(self, value: f64, bytes: &mut [u8]) {
        let word = match self {
            Self::F64 => value.to_bits(),
            Self::F32 => u64::from((value as f32).to_bits()),
            Self::F16 => u64::from(F16::narrow_double(value)),
            Self::Bf16 => u64::from(Bf16::narrow_double(value)),
            Self::E4m3 => u64::from(Eight::E4m3.narrow(value as f32)),
            Self::E5m2 => u64::from(Eight::E5m2.narrow(value as f32)),
            Self::I8 => u64::from(value.round_ties_even().clamp(-128.0, 127.0) as i8 as u8),
            Self::I32 => u64::from(value as i32 as u32),
        };
        for (to, from) in bytes.iter_mut().zip(word.to_le_bytes()) {
            *to = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_their_bytes() {
        for element in [
            Element::F64,
            Element::F32,
            Element::F16,
            Element::Bf16,
            Element::E4m3,
            Element::E5m2,
            Element::I8,
            Element::I32,
        ] {
            for value in [0.0, 1.0, -2.0, 96.0] {
                let mut bytes = vec![0; element.bytes() as usize];
                element.write(value, &mut bytes);
                assert_eq!(element.read(&bytes), value, "{element:?}");
            }
        }
    }
}
