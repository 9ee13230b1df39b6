//! Arguments of a kernel as the command line describes them.

use std::path::PathBuf;
use std::str::FromStr;

use cuda_emulator::{Arguments, Memory, MemoryError};

/// The type of a number or of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Unsigned(u8),
    Signed(u8),
    F32,
    F64,
    Bf16,
}

/// A number, or a buffer in device memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Argument {
    Number { element: Element, text: String },
    Buffer { element: Element, count: usize, content: Content },
}

/// What a buffer holds before the kernel runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// Nothing: a read before a write is an error.
    Fresh,
    Constant(f64),
    /// 0, 1, 2 and so on.
    Counted,
    /// From -1 to 1, or from 0 to 99 for whole numbers.
    Random(u64),
    File(PathBuf),
}

impl Element {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "u8" => Self::Unsigned(1),
            "u16" => Self::Unsigned(2),
            "u32" => Self::Unsigned(4),
            "u64" => Self::Unsigned(8),
            "i8" => Self::Signed(1),
            "i16" => Self::Signed(2),
            "i32" => Self::Signed(4),
            "i64" => Self::Signed(8),
            "f32" => Self::F32,
            "f64" => Self::F64,
            "bf16" => Self::Bf16,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::Unsigned(bytes) | Self::Signed(bytes) => usize::from(bytes),
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Bf16 => 2,
        }
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Unsigned(_) | Self::Signed(_))
    }

    /// The bits of a value, in the low bytes.
    fn bits(self, value: f64) -> u64 {
        match self {
            Self::Unsigned(_) => value as u64,
            Self::Signed(_) => value as i64 as u64,
            Self::F32 => u64::from((value as f32).to_bits()),
            Self::F64 => value.to_bits(),
            Self::Bf16 => u64::from((value as f32).to_bits() >> 16),
        }
    }

    fn value(self, bytes: &[u8]) -> f64 {
        let mut all = [0; 8];
        for (to, from) in all.iter_mut().zip(bytes) {
            *to = *from;
        }
        let bits = u64::from_le_bytes(all);
        let unused = 64 - 8 * self.bytes() as u32;
        match self {
            Self::Unsigned(_) => bits as f64,
            Self::Signed(_) => ((bits << unused) as i64 >> unused) as f64,
            Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F64 => f64::from_bits(bits),
            Self::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
        }
    }

    fn parse_number(self, text: &str) -> Option<u64> {
        match self {
            Self::Unsigned(_) => text.parse().ok(),
            Self::Signed(_) => text.parse::<i64>().ok().map(|value| value as u64),
            _ => text.parse().ok().map(|value| self.bits(value)),
        }
    }
}

impl FromStr for Argument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither like i32:5 nor like f32[64]=random");
        if let Some((name, number)) = text.split_once(':')
            && let Some(element) = Element::parse(name)
        {
            element.parse_number(number).ok_or_else(wrong)?;
            return Ok(Self::Number { element, text: number.to_owned() });
        }
        let (name, rest) = text.split_once('[').ok_or_else(wrong)?;
        let (count, content) = rest.split_once(']').ok_or_else(wrong)?;
        let element = Element::parse(name).ok_or_else(wrong)?;
        let count = count.parse().map_err(|_| wrong())?;
        let content = match content.strip_prefix('=') {
            None if content.is_empty() => Content::Fresh,
            Some("zero") => Content::Constant(0.0),
            Some("ones") => Content::Constant(1.0),
            Some("iota") => Content::Counted,
            Some("random") => Content::Random(1),
            Some(other) => match (other.strip_prefix("random:"), other.strip_prefix('@')) {
                (Some(seed), _) => Content::Random(seed.parse().map_err(|_| wrong())?),
                (_, Some(path)) => Content::File(path.into()),
                _ => return Err(wrong()),
            },
            None => return Err(wrong()),
        };
        Ok(Self::Buffer { element, count, content })
    }
}

/// An argument that has its place.
#[derive(Debug)]
pub(crate) enum Placed {
    Number(Vec<u8>),
    Buffer(Buffer),
}

/// A buffer in device memory.
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    element: Element,
    address: u64,
    count: usize,
}

impl Argument {
    /// Allocates and fills what the argument needs.
    pub(crate) fn place(&self, memory: &mut Memory) -> Result<Placed, Box<dyn std::error::Error>> {
        let (element, count, content) = match self {
            Self::Number { element, text } => {
                let bits = element.parse_number(text).unwrap_or_default();
                let bytes = bits.to_le_bytes().into_iter().take(element.bytes()).collect();
                return Ok(Placed::Number(bytes));
            }
            Self::Buffer { element, count, content } => (*element, *count, content),
        };
        let address = memory.allocate((count * element.bytes()) as u64)?;
        let mut value: Box<dyn FnMut(usize) -> f64> = match content {
            Content::Fresh => return Ok(Placed::Buffer(Buffer { element, address, count })),
            Content::File(path) => {
                let mut bytes =
                    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
                bytes.truncate(count * element.bytes());
                memory.write(address, &bytes)?;
                return Ok(Placed::Buffer(Buffer { element, address, count }));
            }
            Content::Constant(value) => {
                let value = *value;
                Box::new(move |_| value)
            }
            Content::Counted => Box::new(|index| index as f64),
            Content::Random(seed) => {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                Box::new(move |_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let share = (state >> 11) as f64 / (1u64 << 53) as f64;
                    if element.is_whole() { (share * 100.0).floor() } else { share * 2.0 - 1.0 }
                })
            }
        };
        let mut bytes = Vec::with_capacity(count * element.bytes());
        for index in 0..count {
            let bits = element.bits(value(index)).to_le_bytes();
            bytes.extend(bits.iter().take(element.bytes()));
        }
        memory.write(address, &bytes)?;
        Ok(Placed::Buffer(Buffer { element, address, count }))
    }
}

impl Placed {
    pub(crate) fn append(&self, arguments: Arguments) -> Arguments {
        match self {
            Self::Buffer(buffer) => arguments.with(buffer.address),
            Self::Number(bytes) => match *bytes.as_slice() {
                [a] => arguments.with(a),
                [a, b] => arguments.with(u16::from_le_bytes([a, b])),
                [a, b, c, d] => arguments.with(u32::from_le_bytes([a, b, c, d])),
                _ => {
                    let mut all = [0; 8];
                    for (to, from) in all.iter_mut().zip(bytes) {
                        *to = *from;
                    }
                    arguments.with(u64::from_le_bytes(all))
                }
            },
        }
    }

    pub(crate) fn buffer(&self) -> Option<Buffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer.clone()),
            Self::Number(_) => None,
        }
    }
}

impl Buffer {
    /// The first `most` values.
    pub(crate) fn values(&self, memory: &Memory, most: usize) -> Result<Vec<f64>, MemoryError> {
        let count = self.count.min(most);
        let bytes: Vec<u8> = memory.download(self.address, count * self.element.bytes())?;
        Ok(bytes.chunks(self.element.bytes()).map(|chunk| self.element.value(chunk)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_buffers_are_told_apart() {
        let number = "i32:-5".parse::<Argument>().unwrap();
        assert!(matches!(number, Argument::Number { element: Element::Signed(4), .. }));
        let buffer = "f32[64]=random:9".parse::<Argument>().unwrap();
        let expected =
            Argument::Buffer { element: Element::F32, count: 64, content: Content::Random(9) };
        assert_eq!(buffer, expected);
        for wrong in ["f32", "i32:x", "f32[a]", "f99[3]", "f32[3]=some", "f32[3"] {
            assert!(wrong.parse::<Argument>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn buffers_hold_what_is_asked_for() {
        let mut memory = Memory::default();
        let mut values = |text: &str| {
            let placed = text.parse::<Argument>().unwrap().place(&mut memory).unwrap();
            placed.buffer().unwrap().values(&memory, 3).unwrap()
        };
        assert_eq!(values("i16[4]=iota"), [0.0, 1.0, 2.0]);
        assert_eq!(values("bf16[2]=ones"), [1.0, 1.0]);
        assert!(values("f32[3]=random").iter().all(|value| value.abs() <= 1.0));
    }
}
