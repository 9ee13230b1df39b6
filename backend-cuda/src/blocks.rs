//! How weights in blocks of quants lie on the device, for the kernels that decode them as they multiply.
//!
//! A file's blocks have scales between their quants, and sizes such as 18 bytes: no load of a warp would read whole
//! sectors. So each matrix is packed anew when it is loaded, into as many bytes (and padding to 4 rows and to 256 bytes
//! a plane): chunks of 16 neighbours of a row for each of 4 rows, their quants and scales in planes of their own.
//! `kernels/blocks.cuh` reads what this file writes.

use std::thread;

use backend_api::weights::{BlockFields, Format, Tensor};
use half::f16;

use crate::load::narrow;

/// Neighbours of a row in a chunk.
const CHUNK: usize = 16;
/// Rows of a chunk.
const ROWS: usize = 4;
/// A plane begins at a multiple of this many bytes.
const ALIGNMENT: usize = 256;
/// Matrices of fewer chunks are packed by one thread.
const CHUNKS_OF_THREAD: usize = 1 << 12;

/// The layout of matrices of one shape, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    format: Format,
    count: usize,
    rows: usize,
    inner: usize,
}

/// An array with a record for each `span` chunks.
#[derive(Clone, Copy, Debug)]
struct Plane {
    bytes: usize,
    span: usize,
}

impl BlockLayout {
    /// The layout of a tensor's matrices. What isn't quantized is stored in 16 bits.
    pub fn of(tensor: &Tensor<'_>) -> Self {
        let dims = tensor.shape().dims();
        let count = if dims.len() == 3 { dims[0] } else { 1 };
        let rows = tensor.shape().rows() / count.max(1);
        Self { format: kernel_format(tensor.format()), count, rows, inner: tensor.shape().cols() }
    }

    /// What kernels are compiled for: a quantized format, or bfloat16 for numbers of 16 bits of either kind.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes from one matrix to the next.
    pub fn stride(&self) -> usize {
        planes(self.format).iter().map(|plane| self.plane_bytes(plane)).sum()
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> usize {
        self.stride() * self.count
    }

    /// The matrices as the kernels read them; `half` says what 16-bit numbers are.
    pub fn pack(&self, tensor: &Tensor<'_>, half: bool) -> Vec<u8> {
        let mut packed = vec![0; self.bytes()];
        let matrix_bytes = tensor.data().len() / self.count.max(1);
        if self.format == Format::BF16 {
            let numbers = tensor.to_f32();
            let matrices = numbers.chunks(self.rows * self.inner);
            for (numbers, out) in matrices.zip(packed.chunks_mut(self.stride())) {
                self.pack_matrix(out, &|out, group| self.pack_plain(out, numbers, group, half));
            }
        } else {
            let matrices = tensor.data().chunks(matrix_bytes);
            for (bytes, out) in matrices.zip(packed.chunks_mut(self.stride())) {
                self.pack_matrix(out, &|out, group| self.pack_blocks(out, bytes, group));
            }
        }
        packed
    }

    fn chunks_of_row(&self) -> usize {
        self.inner.div_ceil(CHUNK)
    }

    fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    fn plane_bytes(&self, plane: &Plane) -> usize {
        let records = self.groups() * self.chunks_of_row() / plane.span;
        (records * plane.bytes).next_multiple_of(ALIGNMENT)
    }

    /// Fills one matrix; `pack` fills the planes of a group of rows. Threads take runs of groups.
    fn pack_matrix(&self, out: &mut [u8], pack: &(dyn Fn(&mut [&mut [u8]], usize) + Sync)) {
        let (groups, chunks) = (self.groups(), self.chunks_of_row());
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min((groups * chunks).div_ceil(CHUNKS_OF_THREAD)).max(1);
        let run = groups.div_ceil(threads).max(1);
        let mut work: Vec<Vec<std::slice::ChunksMut<'_, u8>>> =
            (0..groups.div_ceil(run)).map(|_| Vec::new()).collect();
        let mut rest = out;
        for plane in planes(self.format) {
            let (own, after) = rest.split_at_mut(self.plane_bytes(&plane));
            rest = after;
            let of_group = (chunks / plane.span * plane.bytes).max(1);
            for (run, work) in own[..of_group * groups].chunks_mut(of_group * run).zip(&mut work) {
                work.push(run.chunks_mut(of_group));
            }
        }
        thread::scope(|scope| {
            for (index, mut planes) in work.into_iter().enumerate() {
                let mut fill = move || {
                    for group in index * run..groups.min((index + 1) * run) {
                        let mut own: Vec<&mut [u8]> =
                            planes.iter_mut().filter_map(Iterator::next).collect();
                        pack(&mut own, group);
                    }
                };
                if threads == 1 {
                    fill();
                } else {
                    scope.spawn(fill);
                }
            }
        });
    }

    fn pack_plain(&self, planes: &mut [&mut [u8]], numbers: &[f32], group: usize, half: bool) {
        let rows = numbers.chunks(self.inner).skip(group * ROWS).take(ROWS);
        for (row, numbers) in rows.enumerate() {
            for (octet, numbers) in numbers.chunks(8).enumerate() {
                let plane = &mut planes[row * 2 + octet % 2];
                for (at, &number) in numbers.iter().enumerate() {
                    let at = octet / 2 * 16 + at * 2;
                    plane[at..at + 2].copy_from_slice(&narrow(number, half).to_le_bytes());
                }
            }
        }
    }

    fn pack_blocks(&self, planes: &mut [&mut [u8]], bytes: &[u8], group: usize) {
        let (format, elements) = (self.format, self.format.block_elements());
        let blocks_of_row = self.inner / elements;
        let row_bytes = blocks_of_row * format.block_bytes();
        let list = self::planes(format);
        let bits = bits(format);
        for block in 0..blocks_of_row {
            let rows: [Option<(BlockFields, &[u8])>; ROWS] = std::array::from_fn(|row| {
                let start = (group * ROWS + row) * row_bytes + block * format.block_bytes();
                let raw = bytes.get(start..start + format.block_bytes())?;
                Some((format.fields(raw)?, raw))
            });
            for in_block in 0..elements / CHUNK {
                let chunk = block * elements / CHUNK + in_block;
                let quants: [[u8; CHUNK]; ROWS] = std::array::from_fn(|row| {
                    let quants = rows[row].as_ref().map(|(fields, _)| &fields.quants);
                    std::array::from_fn(|at| quants.map_or(0, |all| all[in_block * CHUNK + at]))
                });
                let quant_planes = pack_quants(planes, chunk, &quants, bits);
                let in_group = in_block * CHUNK / format.group_elements();
                for (index, plane) in list.iter().enumerate().skip(quant_planes) {
                    if chunk.is_multiple_of(plane.span) {
                        let record = scales(format, index - quant_planes, &rows, in_group);
                        let at = chunk / plane.span * plane.bytes;
                        planes[index][at..at + plane.bytes].copy_from_slice(&record[..plane.bytes]);
                    }
                }
            }
        }
    }
}

/// Writes a chunk's quants, and gives the number of planes that they take.
fn pack_quants(
    planes: &mut [&mut [u8]],
    chunk: usize,
    quants: &[[u8; CHUNK]; ROWS],
    (low, high): (usize, usize),
) -> usize {
    let low_planes = low / 2;
    let mut words = [0u32; 4 * 4];
    let mut high_words = [0u32; 4];
    for (row, quants) in quants.iter().enumerate() {
        for (at, &quant) in quants.iter().enumerate() {
            let (quad, byte) = (at / 4, at % 4);
            let (word, shift) = match low {
                8 => (quad, 0),
                4 => (quad / 2, quad % 2 * 4),
                _ => (0, quad * 2),
            };
            let mask = u8::MAX >> (8 - low);
            words[row * low_planes + word] |= u32::from(quant & mask) << (byte * 8 + shift);
            let upper = u32::from(quant.checked_shr(low as u32).unwrap_or(0));
            match high {
                1 => high_words[row / 2] |= upper << (byte * 8 + quad + row % 2 * 4),
                2 => high_words[row] |= upper << (byte * 8 + quad * 2),
                _ => {}
            }
        }
    }
    for (index, words) in words.chunks(4).take(low_planes).enumerate() {
        put_words(planes[index], chunk, words);
    }
    if high > 0 {
        put_words(planes[low_planes], chunk, &high_words[..2 * high]);
    }
    low_planes + usize::from(high > 0)
}

fn put_words(plane: &mut [u8], record: usize, words: &[u32]) {
    let bytes = words.len() * 4;
    for (word, out) in words.iter().zip(plane[record * bytes..].chunks_mut(4)) {
        out.copy_from_slice(&word.to_le_bytes());
    }
}

/// A record of the plane of scales with this number, for a group of the four rows' blocks.
fn scales(
    format: Format,
    plane: usize,
    rows: &[Option<(BlockFields, &[u8])>; ROWS],
    group: usize,
) -> [u8; 16] {
    let mut record = [0; 16];
    let fields = rows.iter().map(|row| row.as_ref().map(|(fields, _)| fields));
    let mut put = |row: usize, bytes: &[u8]| {
        record[row * bytes.len()..(row + 1) * bytes.len()].copy_from_slice(bytes);
    };
    let f16_bytes = |x: f32| f16::from_f32(x).to_le_bytes();
    // Six bits of each row, the minima above the scales.
    let mut packed = 0u64;
    for (row, fields) in fields.enumerate() {
        let Some(fields) = fields else { continue };
        let both = || {
            let ([a, b], [c, d]) = (f16_bytes(fields.scale), f16_bytes(fields.minimum));
            [a, b, c, d]
        };
        let (scale, minimum) = (fields.group_scales[group], fields.group_minima[group]);
        match (format, plane) {
            (Format::MXFP4, _) => {
                put(row, &rows[row].as_ref().map_or([0], |(_, raw)| [raw[0]]));
            }
            (Format::Q4_1 | Format::Q5_1, _) => put(row, &both()),
            (Format::U4, 1) => put(row, &[fields.zero]),
            (Format::NVFP4, 1) | (Format::Q6_K, 0) => put(row, &[scale]),
            (Format::F8_E4M3 | Format::U4 | Format::NF4 | Format::NVFP4, _) => {
                put(row, &fields.scale.to_le_bytes());
            }
            (Format::Q2_K, 0) => put(row, &[scale | minimum << 4]),
            (Format::Q4_K | Format::Q5_K, 2) | (Format::Q2_K, _) => put(row, &both()),
            (Format::Q4_K | Format::Q5_K | Format::Q3_K | Format::IQ4_XS, 0 | 1) => {
                packed |= u64::from(scale) << (6 * row) | u64::from(minimum) << (24 + 6 * row);
            }
            _ => put(row, &f16_bytes(fields.scale)),
        }
    }
    match (format, plane) {
        (Format::Q4_K | Format::Q5_K, 0) => record[..4].copy_from_slice(&packed.to_le_bytes()[..4]),
        (Format::Q4_K | Format::Q5_K, 1) => {
            record[..2].copy_from_slice(&packed.to_le_bytes()[4..6]);
        }
        (Format::Q3_K | Format::IQ4_XS, 0) => {
            record[..2].copy_from_slice(&packed.to_le_bytes()[..2]);
        }
        (Format::Q3_K | Format::IQ4_XS, 1) => record[0] = packed.to_le_bytes()[2],
        _ => {}
    }
    record
}

/// What the kernels call the format of a file's tensor.
fn kernel_format(format: Format) -> Format {
    if format.is_quantized() { format } else { Format::BF16 }
}

/// Bits of a quant in the low planes and in the high one.
fn bits(format: Format) -> (usize, usize) {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => (16, 0),
        Format::Q8_0 | Format::F8_E4M3 => (8, 0),
        Format::Q5_0 | Format::Q5_1 | Format::Q5_K => (4, 1),
        Format::Q6_K => (4, 2),
        Format::Q2_K => (2, 0),
        Format::Q3_K => (2, 1),
        Format::Q4_0
        | Format::Q4_1
        | Format::Q4_K
        | Format::IQ4_NL
        | Format::IQ4_XS
        | Format::MXFP4
        | Format::U4
        | Format::NF4
        | Format::NVFP4 => (4, 0),
    }
}

/// The planes of a format: quants, then scales.
fn planes(format: Format) -> Vec<Plane> {
    let (low, high) = bits(format);
    let mut planes = vec![Plane { bytes: 16, span: 1 }; low / 2];
    if high > 0 {
        planes.push(Plane { bytes: 8 * high, span: 1 });
    }
    let scales: &[(usize, usize)] = match format {
        Format::F32 | Format::F16 | Format::BF16 => &[],
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4_NL => &[(8, 2)],
        Format::Q4_1 | Format::Q5_1 | Format::F8_E4M3 => &[(16, 2)],
        Format::MXFP4 => &[(4, 2)],
        Format::U4 => &[(16, 2), (4, 2)],
        Format::NF4 => &[(16, 4)],
        Format::NVFP4 => &[(16, 4), (4, 1)],
        Format::Q4_K | Format::Q5_K => &[(4, 2), (2, 2), (16, 16)],
        Format::Q6_K => &[(4, 1), (8, 16)],
        Format::Q2_K => &[(4, 1), (16, 16)],
        Format::Q3_K => &[(2, 1), (1, 1), (8, 16)],
        Format::IQ4_XS => &[(2, 2), (1, 2), (8, 16)],
    };
    planes.extend(scales.iter().map(|&(bytes, span)| Plane { bytes, span }));
    planes
}

#[cfg(test)]
mod tests {
    use backend_api::weights::Shape;

    use super::*;

    #[test]
    fn planes_take_as_many_bytes_as_the_blocks() {
        for format in Format::ALL.into_iter().filter(|format| format.is_quantized()) {
            let bytes: usize =
                planes(format).iter().map(|plane| plane.bytes * 16 / plane.span).sum();
            // Four rows of 256 elements.
            let blocks = 4 * 256 / format.block_elements() * format.block_bytes();
            assert_eq!(bytes, blocks, "{format}");
        }
    }

    #[test]
    fn many_threads_pack_what_one_does() {
        let shape = Shape::matrix(258, 2048);
        let values: Vec<f32> =
            (0..258 * 2048u64).map(|i| (i * 7919 % 1000) as f32 - 500.0).collect();
        for format in [Format::Q5_K, Format::Q4_1, Format::F16] {
            let tensor = Tensor::from_f32(format, shape, &values).expect("consistent");
            let layout = BlockLayout::of(&tensor);
            let all = layout.pack(&tensor, true);
            let row = tensor.data().len() / 258;
            // The last two rows alone are the last group; its records end each plane.
            let last =
                Tensor::new(format, Shape::matrix(2, 2048), tensor.data()[256 * row..].to_vec());
            let last = last.expect("consistent");
            let own = BlockLayout::of(&last);
            let packed = own.pack(&last, true);
            let (mut at, mut own_at) = (0, 0);
            for plane in planes(layout.format) {
                let of_group = 2048 / CHUNK / plane.span * plane.bytes;
                let found = &all[at + of_group * 64..][..of_group];
                assert_eq!(found, &packed[own_at..][..of_group], "{format}");
                at += layout.plane_bytes(&plane);
                own_at += own.plane_bytes(&plane);
            }
        }
    }
}
