//! Kernels with their arguments.

use cuda_emulator::{Launch, Swizzle, TensorMap, TensorType};

/// The type of an output's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    Bf16,
    I32,
}

/// A buffer that a kernel writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) element: Element,
    /// The root mean square error, relative to the values, up to which results agree.
    pub(crate) tolerance: f64,
}

/// An argument of a kernel.
#[derive(Debug, Clone)]
pub(crate) enum Argument {
    /// A number of 4 bytes.
    Number([u8; 4]),
    Input(Vec<u8>),
    /// A buffer of so many bytes.
    Output(usize, Output),
    /// A buffer that is read and written.
    Changed(Vec<u8>, Output),
    /// A tensor map of a buffer: a matrix of so many rows and columns of 2 bytes.
    Tiles(Box<Argument>, [u64; 2]),
}

/// Tiles of a matrix in device memory, 64 by 64, in the order that `wgmma` reads.
pub(crate) fn tiles(address: u64, [rows, columns]: [u64; 2]) -> TensorMap {
    TensorMap {
        element: TensorType::Bfloat16,
        address,
        sizes: vec![columns, rows],
        strides: vec![2 * columns],
        tile: vec![64, 64],
        element_strides: vec![1, 1],
        interleave: 0,
        swizzle: Swizzle::B128,
        promotion: 0,
        fill_nan: false,
    }
}

impl Argument {
    /// Size of a buffer.
    pub(crate) fn bytes(&self) -> Option<usize> {
        match self {
            Self::Number(_) => None,
            Self::Input(content) | Self::Changed(content, _) => Some(content.len()),
            Self::Output(bytes, _) => Some(*bytes),
            Self::Tiles(buffer, _) => buffer.bytes(),
        }
    }

    /// What a buffer holds at first.
    pub(crate) fn content(&self) -> Option<&[u8]> {
        match self {
            Self::Input(content) | Self::Changed(content, _) => Some(content),
            Self::Tiles(buffer, _) => buffer.content(),
            _ => None,
        }
    }

    pub(crate) fn output(&self) -> Option<&Output> {
        match self {
            Self::Output(_, output) | Self::Changed(_, output) => Some(output),
            Self::Tiles(buffer, _) => buffer.output(),
            _ => None,
        }
    }

    /// Appends it to a parameter block: a number, the address of its buffer, or the tensor map that
    /// `encode` makes.
    pub(crate) fn append<E>(
        &self,
        block: &mut Vec<u8>,
        address: Option<u64>,
        encode: impl FnOnce(&TensorMap) -> Result<[u8; 128], E>,
    ) -> Result<(), E> {
        let mut put = |bytes: &[u8], align| {
            block.resize(block.len().next_multiple_of(align), 0);
            block.extend(bytes);
        };
        let address = address.unwrap_or(0);
        match self {
            Self::Number(bytes) => put(bytes, 4),
            Self::Tiles(_, sizes) => put(&encode(&tiles(address, *sizes))?, 64),
            _ => put(&address.to_le_bytes(), 8),
        }
        Ok(())
    }
}

/// A launch of a kernel of this crate.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) ptx: &'static str,
    /// The only compute capability that it runs on; none for 8.0 and newer.
    pub(crate) capability: Option<i32>,
    pub(crate) shape: Launch,
    pub(crate) arguments: Vec<Argument>,
}

impl Case {
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &Output> {
        self.arguments.iter().filter_map(Argument::output)
    }
}

/// Results as numbers.
#[derive(Debug)]
pub(crate) struct Values(Vec<f64>);

impl Values {
    pub(crate) fn read(element: Element, bytes: &[u8]) -> Self {
        let word = |chunk: &[u8]| {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            u32::from_le_bytes(word)
        };
        Self(match element {
            Element::F32 => {
                bytes.chunks(4).map(|chunk| f64::from(f32::from_bits(word(chunk)))).collect()
            }
            Element::Bf16 => {
                bytes.chunks(2).map(|chunk| f64::from(f32::from_bits(word(chunk) << 16))).collect()
            }
            Element::I32 => bytes.chunks(4).map(|chunk| f64::from(word(chunk) as i32)).collect(),
        })
    }

    /// The root of the mean square difference over that of these values.
    pub(crate) fn error(&self, other: &Self) -> f64 {
        if self.0.len() != other.0.len() {
            return f64::INFINITY;
        }
        let difference: f64 = self.0.iter().zip(&other.0).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f64 = self.0.iter().map(|a| a * a).sum();
        if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
    }
}

fn number(value: i32) -> Argument {
    Argument::Number(value.to_le_bytes())
}

fn real(value: f32) -> Argument {
    Argument::Number(value.to_le_bytes())
}

/// Numbers from -1 to 1 in no order.
fn reals(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|index| {
            let mut bits = index.wrapping_add(seed << 24).wrapping_mul(0x9e37_79b9);
            bits = (bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b);
            (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn input<T: bytemuck::NoUninit>(values: &[T]) -> Argument {
    Argument::Input(bytemuck::cast_slice(values).to_vec())
}

/// bf16 by truncation.
fn halves(count: usize, seed: u32) -> Argument {
    let values: Vec<u16> =
        reals(count, seed).into_iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    input(&values)
}

fn output(count: usize, element: Element, tolerance: f64) -> Argument {
    let bytes = if element == Element::Bf16 { 2 } else { 4 };
    Argument::Output(count * bytes, Output { element, tolerance })
}

/// All kernels. Tolerances are a few roundings of the output's type: devices sum in other orders.
pub(crate) fn all() -> Vec<Case> {
    vec![decode(), prefill(), norm(), sample(), matvec(), matmul()]
}

/// Paged attention of one token a sequence.
fn decode() -> Case {
    let (batch, context, kv_heads, group, head, page) = (4, 512, 8, 4, 128, 16);
    let queries = batch * kv_heads * group * head;
    let cached = batch * context * kv_heads * head;
    let pages: Vec<i32> = (0..(batch * context / page) as i32).rev().collect();
    Case {
        name: "decode",
        ptx: include_str!("../../../../fixtures/decode.ptx"),
        capability: None,
        shape: Launch {
            grid: [kv_heads as u32, batch as u32, 1],
            block: [128, 1, 1],
            dynamic_shared: 0,
            cluster: None,
        },
        arguments: vec![
            output(queries, Element::Bf16, 4e-3),
            halves(queries, 1),
            halves(cached, 2),
            halves(cached, 3),
            input(&pages),
            input(&[512, 511, 17, 300]),
            number(kv_heads as i32),
            number(page as i32),
            number((context / page) as i32),
            real(0.088),
            real(0.0),
            number(0),
        ],
    }
}

/// Paged attention of many tokens, on tensor cores.
fn prefill() -> Case {
    let (tokens, heads, kv_heads, head, page) = (128, 16, 4, 64, 16);
    let queries = tokens * heads * head;
    let cached = tokens * kv_heads * head;
    let pages: Vec<i32> = (0..(tokens / page) as i32).collect();
    Case {
        name: "prefill",
        ptx: include_str!("../../../../fixtures/prefill.ptx"),
        capability: None,
        shape: Launch {
            grid: [(tokens / 64) as u32, heads as u32, 1],
            block: [128, 1, 1],
            dynamic_shared: 0,
            cluster: None,
        },
        arguments: vec![
            output(queries, Element::Bf16, 8e-3),
            halves(queries, 1),
            halves(cached, 2),
            halves(cached, 3),
            input(&pages),
            input(&[0, tokens as i32]),
            input(&[tokens as i32]),
            number(heads as i32),
            number(kv_heads as i32),
            number(page as i32),
            number((tokens / page) as i32),
            real(0.125),
            real(0.0),
            number(0),
        ],
    }
}

fn norm() -> Case {
    let (rows, width) = (256, 4096);
    let residual = bytemuck::cast_slice(&reals(rows * width, 1)).to_vec();
    Case {
        name: "rms_norm",
        ptx: include_str!("../../../../fixtures/norm.ptx"),
        capability: None,
        shape: Launch {
            grid: [rows as u32, 1, 1],
            block: [256, 1, 1],
            dynamic_shared: 0,
            cluster: None,
        },
        arguments: vec![
            output(rows * width, Element::Bf16, 4e-3),
            Argument::Changed(residual, Output { element: Element::F32, tolerance: 1e-6 }),
            halves(rows * width, 2),
            halves(width, 3),
            number(width as i32),
            real(1e-5),
        ],
    }
}

fn sample() -> Case {
    let (rows, vocabulary) = (16, 32_000);
    let logits: Vec<f32> = reals(rows * vocabulary, 1).into_iter().map(|x| 8.0 * x).collect();
    let noise: Vec<f32> = (0..rows).map(|row| (row as f32 + 0.5) / rows as f32).collect();
    Case {
        name: "sample",
        ptx: include_str!("../../../../fixtures/sample.ptx"),
        capability: None,
        shape: Launch {
            grid: [rows as u32, 1, 1],
            block: [256, 1, 1],
            dynamic_shared: 0,
            cluster: None,
        },
        arguments: vec![
            output(rows, Element::I32, 0.0),
            output(rows, Element::F32, 1e-4),
            input(&logits),
            input(&noise),
            number(vocabulary as i32),
            real(0.7),
        ],
    }
}

/// A product of an int8 matrix with scales and a vector.
fn matvec() -> Case {
    let (rows, columns) = (1024, 4096);
    let weights: Vec<i8> =
        reals(rows * columns, 1).into_iter().map(|x| (127.0 * x) as i8).collect();
    let scales: Vec<f32> =
        reals(rows * columns / 32, 2).into_iter().map(|x| x.abs() / 64.0).collect();
    Case {
        name: "matvec",
        ptx: include_str!("../../../../fixtures/matvec.ptx"),
        capability: None,
        shape: Launch {
            grid: [64, 1, 1],
            block: [128, 1, 1],
            dynamic_shared: (columns + columns / 32 * 4) as u32,
            cluster: None,
        },
        arguments: vec![
            output(rows, Element::F32, 1e-5),
            input(&weights),
            input(&scales),
            halves(columns, 3),
            number(rows as i32),
            number(columns as i32),
        ],
    }
}

/// A product of matrices by TMA and `wgmma`; sizes are no multiples of the tiles'.
fn matmul() -> Case {
    let (rows, columns, inner) = (500usize, 520usize, 264usize);
    let tiled = |argument, rows: usize, columns: usize| {
        Argument::Tiles(Box::new(argument), [rows as u64, columns as u64])
    };
    Case {
        name: "matmul",
        ptx: include_str!("../../../../fixtures/hopper.ptx"),
        capability: Some(90),
        shape: Launch {
            grid: [columns.div_ceil(64) as u32, rows.div_ceil(64) as u32, 1],
            block: [256, 1, 1],
            dynamic_shared: 0,
            cluster: None,
        },
        arguments: vec![
            tiled(halves(rows * inner, 1), rows, inner),
            tiled(halves(columns * inner, 2), columns, inner),
            tiled(output(rows * columns, Element::Bf16, 4e-3), rows, columns),
            number(inner.div_ceil(64) as i32),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_values() {
        let values = |numbers: &[f32]| Values::read(Element::F32, bytemuck::cast_slice(numbers));
        assert_eq!(values(&[3.0, 4.0]).error(&values(&[3.0, 4.0])), 0.0);
        assert!((values(&[3.0, 4.0]).error(&values(&[3.0, 4.5])) - 0.1).abs() < 1e-12);
        assert!(values(&[1.0]).error(&values(&[f32::NAN])).is_nan());
        assert!(values(&[1.0]).error(&values(&[])).is_infinite());
    }
}
