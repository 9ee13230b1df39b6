//! Weights, from files to devices: converted, divided, with heads where the placement wants them.

use std::borrow::Cow;

use backend_api::{
    BackendError,
    kit::check_weight_shape,
    program::Weight,
    weights::{Format, Tensor, Weights},
};

use crate::{
    error::device,
    lower::{
        Placed,
        placement::{PlacedWeight, Source},
    },
    pjrt::{Buffer, Client, ElementType},
    stablehlo::{Element, Sharding, Type},
};

/// An array on all devices: for each its shard, or a copy.
pub(crate) type Sharded = Vec<Buffer>;

/// Reads all weights of a program and puts them on the devices, in the order of a step's arguments.
pub(crate) fn load_weights(
    client: &Client,
    Placed { program, placement, .. }: &Placed,
    weights: &dyn Weights,
) -> Result<Vec<Sharded>, BackendError> {
    let put = |weight: &Weight, placed: &PlacedWeight, bytes: &[u8]| {
        let element = pjrt_element(placed.kind.element);
        let in_file = placed.as_in_file();
        let mut shards = Sharded::new();
        for index in 0..placement.devices {
            let (dims, shard) = shard(bytes, &in_file, element.size(), placement.devices, index);
            let buffer = match dims[..] {
                [rows, columns] if placed.transposed => {
                    client.to_device_transposed(index, element, [rows, columns], &shard)
                }
                _ => client.to_device(index, element, &dims, &shard),
            };
            shards
                .push(buffer.map_err(|error| device(error, format!("placing `{}`", weight.name)))?);
        }
        Ok::<_, BackendError>(shards)
    };
    let mut all = Vec::new();
    for (weight, placed) in program.weights().iter().zip(&placement.weights) {
        let tensor = weights.tensor(&weight.name)?;
        check_weight_shape(weight, tensor.shape())?;
        if placed.packed.is_none() {
            all.push(put(weight, placed, &convert(&tensor, placed.kind.element))?);
            continue;
        }
        for (array, bytes) in placed.arrays().iter().zip(placed.pack(&tensor)) {
            all.push(put(weight, array, &bytes)?);
        }
    }
    Ok(all)
}

/// The element type of a buffer. Masks are words on the host, so booleans never cross.
pub(crate) fn pjrt_element(element: Element) -> ElementType {
    match element {
        Element::F32 => ElementType::F32,
        Element::BF16 => ElementType::BF16,
        Element::F16 => ElementType::F16,
        Element::I8 => ElementType::I8,
        Element::I32 | Element::Bool => ElementType::I32,
        Element::U32 | Element::U64 => ElementType::U32,
    }
}

/// The tensor's elements, row-major, in the device's type.
fn convert<'a>(tensor: &'a Tensor<'_>, element: Element) -> Cow<'a, [u8]> {
    let format = match element {
        Element::BF16 => Format::BF16,
        Element::F16 => Format::F16,
        _ => Format::F32,
    };
    if tensor.format() == format {
        return Cow::Borrowed(tensor.data());
    }
    let values = tensor.to_f32();
    let bytes = match element {
        Element::BF16 => {
            values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
        }
        Element::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Cow::Owned(bytes)
}

/// The part of a weight that device `index` of `devices` holds: dimensions and bytes, both in the
/// file's order. `bytes` are the file's elements of `size` bytes each.
fn shard<'a>(
    bytes: &'a [u8],
    placed: &PlacedWeight,
    size: usize,
    devices: usize,
    index: usize,
) -> (Vec<i64>, Cow<'a, [u8]>) {
    if let [stack, rows, columns] = placed.sources.as_slice() {
        // Of each matrix its part, one behind the other.
        let matrix = PlacedWeight {
            kind: Type::new(placed.kind.element, &placed.kind.dims[1..]),
            sharding: placed.sharding.dim().map_or(placed.sharding, |dim| Sharding::along(dim - 1)),
            sources: vec![rows.clone(), columns.clone()],
            transposed: false,
            packed: None,
        };
        let count = file_len(stack);
        let each = bytes.len() / count.max(1);
        let parts = bytes.chunks_exact(each.max(1));
        let parts = parts.map(|bytes| shard(bytes, &matrix, size, devices, index));
        let (mut dims, mut all) = (Vec::new(), Vec::new());
        for (matrix_dims, part) in parts {
            dims = matrix_dims;
            all.extend_from_slice(&part);
        }
        dims.insert(0, count as i64);
        return (dims, Cow::Owned(all));
    }
    let mut ranges: Vec<std::ops::Range<usize>> =
        placed.kind.dims.iter().map(|&len| 0..len).collect();
    if let Some(dim) = placed.sharding.dim() {
        let share = placed.kind.dims[dim] / devices;
        ranges[dim] = index * share..(index + 1) * share;
    }
    let dims = ranges.iter().map(|range| range.len() as i64).collect();
    // A vector is a matrix of one row.
    let whole = Source { run: 1, from: vec![Some(0)] };
    let (rows, columns) = match placed.sources.as_slice() {
        [columns] => (&whole, columns),
        [rows, columns] => (rows, columns),
        _ => return (dims, Cow::Borrowed(bytes)),
    };
    let column_range = ranges.last().cloned().unwrap_or(0..1);
    let row_range = if ranges.len() == 2 { ranges[0].clone() } else { 0..1 };
    let stride = file_len(columns) * size;
    let as_in_file =
        |source: &Source| source.from.iter().enumerate().all(|(i, from)| *from == Some(i));
    if as_in_file(rows) && as_in_file(columns) && column_range.len() * size == stride {
        return (dims, Cow::Borrowed(&bytes[row_range.start * stride..row_range.end * stride]));
    }
    let mut out = vec![0u8; row_range.len() * column_range.len() * size];
    let out_stride = column_range.len() * size;
    for (row, out) in row_range.zip(out.chunks_exact_mut(out_stride.max(1))) {
        let Some(row) = file_index(rows, row) else { continue };
        let line = &bytes[row * stride..(row + 1) * stride];
        copy_runs(line, out, columns, column_range.clone(), size);
    }
    (dims, Cow::Owned(out))
}

/// Copies the elements `range` of a line, run by run; runs of zeros are left alone.
fn copy_runs(
    line: &[u8],
    out: &mut [u8],
    source: &Source,
    range: std::ops::Range<usize>,
    size: usize,
) {
    let mut at = range.start;
    while at < range.end {
        let (run, offset) = (at / source.run, at % source.run);
        let len = (source.run - offset).min(range.end - at);
        if let Some(from) = source.from[run] {
            let start = (from * source.run + offset) * size;
            let to = (at - range.start) * size;
            out[to..to + len * size].copy_from_slice(&line[start..start + len * size]);
        }
        at += len;
    }
}

/// Elements along a dimension in the file.
fn file_len(source: &Source) -> usize {
    source.run * source.from.iter().flatten().max().map_or(0, |last| last + 1)
}

/// Where element `index` is in the file.
fn file_index(source: &Source, index: usize) -> Option<usize> {
    source.from[index / source.run].map(|from| from * source.run + index % source.run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(dims: &[usize], sharding: Sharding, sources: Vec<Source>) -> PlacedWeight {
        let kind = Type::new(Element::F32, dims);
        PlacedWeight { kind, sharding, sources, transposed: false, packed: None }
    }

    fn identity(len: usize) -> Source {
        Source { run: len, from: vec![Some(0)] }
    }

    #[test]
    fn rows_and_columns_are_divided() {
        // One byte an element: [4, 4] holding 0..16.
        let bytes: Vec<u8> = (0..16).collect();
        let sources = || vec![identity(4), identity(4)];
        let rows = placed(&[4, 4], Sharding::along(0), sources());
        assert_eq!(shard(&bytes, &rows, 1, 2, 1).1, &bytes[8..]);
        let columns = placed(&[4, 4], Sharding::along(1), sources());
        assert_eq!(*shard(&bytes, &columns, 1, 2, 1).1, [2, 3, 6, 7, 10, 11, 14, 15]);
    }

    #[test]
    fn heads_that_fill_up_are_zeros() {
        // Three heads of two rows, spread over two devices with two heads each.
        let bytes: Vec<u8> = (1..=6).collect();
        let heads = Source { run: 2, from: vec![Some(0), Some(1), Some(2), None] };
        let rows = placed(&[8, 1], Sharding::along(0), vec![heads.clone(), identity(1)]);
        assert_eq!(*shard(&bytes, &rows, 1, 2, 0).1, [1, 2, 3, 4]);
        assert_eq!(*shard(&bytes, &rows, 1, 2, 1).1, [5, 6, 0, 0]);
        let columns = placed(&[1, 8], Sharding::along(1), vec![identity(1), heads]);
        assert_eq!(*shard(&bytes, &columns, 1, 2, 1).1, [5, 6, 0, 0]);
    }

    #[test]
    fn each_matrix_of_a_stack_is_divided_alike() {
        // Two matrices of [2, 4].
        let bytes: Vec<u8> = (0..16).collect();
        let sources = || vec![identity(2), identity(2), identity(4)];
        let rows = placed(&[2, 2, 4], Sharding::along(1), sources());
        assert_eq!(shard(&bytes, &rows, 1, 2, 1).0, [2, 1, 4]);
        assert_eq!(*shard(&bytes, &rows, 1, 2, 1).1, [4, 5, 6, 7, 12, 13, 14, 15]);
        let columns = placed(&[2, 2, 4], Sharding::along(2), sources());
        assert_eq!(shard(&bytes, &columns, 1, 2, 0).0, [2, 2, 2]);
        assert_eq!(*shard(&bytes, &columns, 1, 2, 0).1, [0, 1, 4, 5, 8, 9, 12, 13]);
        let whole = placed(&[2, 2, 4], Sharding::REPLICATED, sources());
        assert_eq!(*shard(&bytes, &whole, 1, 2, 1).1, bytes);
    }

    #[test]
    fn repeated_heads_are_copied() {
        let bytes = [1, 2];
        let heads = Source { run: 1, from: vec![Some(0), Some(0), Some(1), Some(1)] };
        let vector = placed(&[4], Sharding::along(0), vec![heads]);
        assert_eq!(*shard(&bytes, &vector, 1, 4, 1).1, [1]);
        assert_eq!(*shard(&bytes, &vector, 1, 4, 2).1, [2]);
    }
}
