//! One named weight: format, shape, bytes.

use std::{borrow::Cow, fmt, ops::Range};

use super::{Format, TensorError, codec};

/// The shape of a weight.
///
/// A vector (a norm, a bias) counts as one row wherever rows and columns are spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// `[len]`
    Vector(usize),
    /// `[rows, cols]`, row-major: for a linear layer `[outputs, inputs]`.
    Matrix {
        /// Output features, or vocabulary entries.
        rows: usize,
        /// Input features; elements of a row are adjacent in memory.
        cols: usize,
    },
    /// `[count, rows, cols]`: matrices of one shape, one behind the other, as the experts of a
    /// mixture are. Counts as one matrix of `count * rows` rows wherever rows are spoken of.
    Stack {
        /// Matrices.
        count: usize,
        /// Rows of each.
        rows: usize,
        /// Columns of each.
        cols: usize,
    },
}

impl Shape {
    /// A matrix shape.
    pub const fn matrix(rows: usize, cols: usize) -> Self {
        Shape::Matrix { rows, cols }
    }

    /// The shape of `count` matrices.
    pub const fn stack(count: usize, rows: usize, cols: usize) -> Self {
        Shape::Stack { count, rows, cols }
    }

    /// The shape of these dimensions, slowest first; `None` for none of them, or more than three.
    pub const fn from_dims(dims: &[usize]) -> Option<Self> {
        match *dims {
            [len] => Some(Shape::Vector(len)),
            [rows, cols] => Some(Shape::matrix(rows, cols)),
            [count, rows, cols] => Some(Shape::stack(count, rows, cols)),
            _ => None,
        }
    }

    /// The dimensions, slowest first.
    pub fn dims(self) -> Vec<usize> {
        match self {
            Shape::Vector(len) => vec![len],
            Shape::Matrix { rows, cols } => vec![rows, cols],
            Shape::Stack { count, rows, cols } => vec![count, rows, cols],
        }
    }

    /// Number of rows: 1 for a vector, those of all matrices for a stack. More than a machine can
    /// address count as `usize::MAX`; no tensor has such a shape.
    pub const fn rows(self) -> usize {
        match self {
            Shape::Vector(_) => 1,
            Shape::Matrix { rows, .. } => rows,
            Shape::Stack { count, rows, .. } => count.saturating_mul(rows),
        }
    }

    /// Elements in a row: a vector's length.
    pub const fn cols(self) -> usize {
        match self {
            Shape::Vector(len) => len,
            Shape::Matrix { cols, .. } | Shape::Stack { cols, .. } => cols,
        }
    }

    /// Bytes of a tensor of this shape in `format`.
    ///
    /// # Errors
    ///
    /// [`TensorError::RaggedRow`] and [`TensorError::TooLarge`].
    pub fn byte_len(self, format: Format) -> Result<usize, TensorError> {
        let (rows, cols) = (self.rows(), self.cols());
        let row_bytes = format.row_bytes(cols)?;
        let is_countable = match self {
            Shape::Stack { count, rows, .. } => count.checked_mul(rows).is_some(),
            Shape::Vector(_) | Shape::Matrix { .. } => true,
        };
        row_bytes
            .checked_mul(rows)
            .filter(|_| rows.checked_mul(cols).is_some() && is_countable)
            .ok_or(TensorError::TooLarge { rows, cols })
    }

    fn with_rows(self, count: usize) -> Self {
        match self {
            Shape::Vector(len) => Shape::matrix(count, len),
            Shape::Matrix { cols, .. } | Shape::Stack { cols, .. } => Shape::matrix(count, cols),
        }
    }

    fn with_cols(self, count: usize) -> Self {
        match self {
            Shape::Vector(_) => Shape::Vector(count),
            Shape::Matrix { rows, .. } => Shape::matrix(rows, count),
            Shape::Stack { count: stack, rows, .. } => Shape::stack(stack, rows, count),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Vector(len) => write!(f, "[{len}]"),
            Shape::Matrix { rows, cols } => write!(f, "[{rows}, {cols}]"),
            Shape::Stack { count, rows, cols } => write!(f, "[{count}, {rows}, {cols}]"),
        }
    }
}

/// A weight: its format, its shape, and its bytes, borrowed from the file where possible.
///
/// Always consistent: the byte length is what format and shape say. The bytes carry no
/// alignment promise, as files don't.
#[derive(Clone, PartialEq)]
pub struct Tensor<'a> {
    format: Format,
    shape: Shape,
    data: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// Wraps `data`, little-endian rows in `format`.
    ///
    /// # Errors
    ///
    /// [`TensorError`] if a row is not whole blocks or `data` is not exactly as long as
    /// format and shape say.
    pub fn new(
        format: Format,
        shape: Shape,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self, TensorError> {
        let data = data.into();
        let expected = shape.byte_len(format)?;
        if data.len() != expected {
            let (what, actual) = ("bytes", data.len());
            return Err(TensorError::WrongSize { what, format, shape, expected, actual });
        }
        Ok(Self { format, shape, data })
    }

    /// Encodes `values` (row-major) in `format`, rounding to nearest.
    ///
    /// Quantization is the plain one, made for tests and tools: scales come from each block's
    /// extremes, with no search for better ones. Values that a format's range can't hold
    /// become infinite or saturate.
    ///
    /// # Errors
    ///
    /// [`TensorError`] if a row is not whole blocks or `values` is not one per element.
    pub fn from_f32(
        format: Format,
        shape: Shape,
        values: &[f32],
    ) -> Result<Tensor<'static>, TensorError> {
        let bytes = shape.byte_len(format)?;
        let (what, expected, actual) = ("elements", shape.rows() * shape.cols(), values.len());
        if actual != expected {
            return Err(TensorError::WrongSize { what, format, shape, expected, actual });
        }
        let mut data = Vec::with_capacity(bytes);
        codec::encode(format, values, &mut data);
        Tensor::new(format, shape, data)
    }

    /// How the elements are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The bytes, row after row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, still borrowed from the file if they were.
    pub fn into_data(self) -> Cow<'a, [u8]> {
        self.data
    }

    /// The same tensor with borrowed bytes.
    pub fn borrowed(&self) -> Tensor<'_> {
        Tensor { format: self.format, shape: self.shape, data: Cow::Borrowed(&self.data) }
    }

    /// The same tensor with bytes of its own.
    pub fn into_owned(self) -> Tensor<'static> {
        Tensor { format: self.format, shape: self.shape, data: Cow::Owned(self.data.into_owned()) }
    }

    /// The bytes of row `row`, or `None` past the last.
    pub fn row(&self, row: usize) -> Option<&[u8]> {
        let stride = self.row_bytes();
        if row >= self.shape.rows() {
            return None;
        }
        self.data.get(row * stride..(row + 1) * stride)
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.data.len().checked_div(self.shape.rows()).unwrap_or(0)
    }

    /// All elements as f32, row-major: the reference that kernels are tested against.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.rows() * self.shape.cols()];
        codec::decode(self.format, &self.data, &mut values);
        values
    }

    /// Rows `range`: one shard of a linear layer that splits its outputs. Copies nothing.
    ///
    /// # Errors
    ///
    /// [`TensorError::SliceOutOfRange`] past the last row or for a reversed range.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Tensor<'_>, TensorError> {
        check_range("rows", &range, self.shape.rows())?;
        let stride = self.row_bytes();
        Tensor::new(
            self.format,
            self.shape.with_rows(range.len()),
            &self.data[range.start * stride..range.end * stride],
        )
    }

    /// Matrix `index` of a stack; of a matrix, the matrix itself is number 0. Copies nothing.
    ///
    /// # Errors
    ///
    /// [`TensorError::SliceOutOfRange`] past the last matrix.
    pub fn matrix(&self, index: usize) -> Result<Tensor<'_>, TensorError> {
        let (count, rows) = match self.shape {
            Shape::Stack { count, rows, .. } => (count, rows),
            shape => (1, shape.rows()),
        };
        let end = index.saturating_add(1);
        check_range("matrices", &(index..end), count)?;
        self.slice_rows(index * rows..end * rows)
    }

    /// Columns `range` of every row: one shard of a linear layer that splits its inputs, or
    /// a part of a vector. Copies, unless the tensor has one row.
    ///
    /// # Errors
    ///
    /// [`TensorError::SliceOutOfRange`], and [`TensorError::SliceInsideBlock`] if the range
    /// does not start and end between blocks.
    pub fn slice_cols(&self, range: Range<usize>) -> Result<Tensor<'_>, TensorError> {
        check_range("columns", &range, self.shape.cols())?;
        let block = self.format.block_elements();
        if !range.start.is_multiple_of(block) || !range.end.is_multiple_of(block) {
            return Err(TensorError::SliceInsideBlock { format: self.format, range });
        }
        let shape = self.shape.with_cols(range.len());
        let start = self.format.row_bytes(range.start)?;
        let end = self.format.row_bytes(range.end)?;
        if self.shape.rows() == 1 {
            return Tensor::new(self.format, shape, &self.data[start..end]);
        }
        let mut data = Vec::with_capacity(shape.byte_len(self.format)?);
        for row in self.data.chunks_exact(self.row_bytes().max(1)) {
            data.extend_from_slice(&row[start..end]);
        }
        Tensor::new(self.format, shape, data)
    }
}

/// Shows what the tensor is, not its megabytes.
impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("format", &self.format)
            .field("shape", &self.shape)
            .field("borrowed", &matches!(self.data, Cow::Borrowed(_)))
            .finish_non_exhaustive()
    }
}

fn check_range(axis: &'static str, range: &Range<usize>, len: usize) -> Result<(), TensorError> {
    if range.start > range.end || range.end > len {
        return Err(TensorError::SliceOutOfRange { axis, range: range.clone(), len });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| i as f32 / 8.0 - 7.0).collect()
    }

    #[test]
    fn bytes_must_match_format_and_shape() {
        let error = Tensor::new(Format::F32, Shape::matrix(2, 3), vec![0; 23]).unwrap_err();
        assert!(matches!(error, TensorError::WrongSize { expected: 24, actual: 23, .. }));
        let error = Tensor::new(Format::Q8_0, Shape::matrix(2, 33), vec![0; 68]).unwrap_err();
        assert!(matches!(error, TensorError::RaggedRow { format: Format::Q8_0, cols: 33 }));
        let shape = Shape::matrix(usize::MAX / 2, 32);
        let error = Tensor::new(Format::Q4_0, shape, vec![0; 18]).unwrap_err();
        assert!(matches!(error, TensorError::TooLarge { .. }));
    }

    #[test]
    fn rows_of_every_format_slice_without_copying() {
        for format in Format::ALL {
            let tensor = Tensor::from_f32(format, Shape::matrix(6, 256), &ramp(6, 256))
                .expect("whole blocks");
            let all = tensor.to_f32();
            let part = tensor.slice_rows(2..5).expect("in range");
            assert_eq!(part.shape(), Shape::matrix(3, 256));
            assert_eq!(part.to_f32(), all[2 * 256..5 * 256]);
            assert!(matches!(part.into_data(), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn columns_of_every_format_slice_between_blocks() {
        for format in Format::ALL {
            let tensor = Tensor::from_f32(format, Shape::matrix(3, 768), &ramp(3, 768))
                .expect("whole blocks");
            let all = tensor.to_f32();
            let part = tensor.slice_cols(256..768).expect("between blocks");
            let expected: Vec<f32> =
                all.chunks(768).flat_map(|row| row[256..768].iter().copied()).collect();
            assert_eq!(part.to_f32(), expected);
        }
    }

    #[test]
    fn a_slice_inside_a_block_is_refused_only_where_there_are_blocks() {
        for format in Format::ALL {
            let tensor = Tensor::from_f32(format, Shape::matrix(2, 256), &ramp(2, 256))
                .expect("whole blocks");
            for range in [16..256, 0..33] {
                let sliced = tensor.slice_cols(range.clone());
                if format.is_quantized() {
                    let error = sliced.unwrap_err();
                    assert!(
                        matches!(error, TensorError::SliceInsideBlock { range: r, .. } if r == range)
                    );
                } else {
                    assert_eq!(sliced.expect("no blocks").shape().cols(), range.len());
                }
            }
        }
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn slices_out_of_range_are_refused() {
        let tensor =
            Tensor::from_f32(Format::F32, Shape::matrix(2, 4), &ramp(2, 4)).expect("valid");
        for range in [0..3, 2..1, 3..3] {
            assert!(matches!(
                tensor.slice_rows(range).unwrap_err(),
                TensorError::SliceOutOfRange { axis: "rows", len: 2, .. }
            ));
        }
        for range in [0..5, 4..3] {
            assert!(matches!(
                tensor.slice_cols(range).unwrap_err(),
                TensorError::SliceOutOfRange { axis: "columns", len: 4, .. }
            ));
        }
    }

    #[test]
    fn a_stack_is_its_matrices_one_behind_the_other() {
        let values = ramp(6, 512);
        for format in Format::ALL {
            let stack = Tensor::from_f32(format, Shape::stack(3, 2, 512), &values).expect("valid");
            assert_eq!(stack.shape().dims(), [3, 2, 512]);
            let all = stack.to_f32();
            for index in 0..3 {
                let matrix = stack.matrix(index).expect("one of three");
                assert_eq!(matrix.shape(), Shape::matrix(2, 512));
                assert_eq!(matrix.to_f32(), all[index * 1024..(index + 1) * 1024]);
                assert!(matches!(matrix.into_data(), Cow::Borrowed(_)));
            }
            assert!(matches!(
                stack.matrix(3),
                Err(TensorError::SliceOutOfRange { axis: "matrices", len: 3, .. })
            ));
            let part = stack.slice_cols(256..512).expect("between blocks");
            assert_eq!(part.shape(), Shape::stack(3, 2, 256));
        }
        let huge = Shape::stack(usize::MAX / 2, 3, 1);
        assert!(matches!(huge.byte_len(Format::F32), Err(TensorError::TooLarge { .. })));
        let huge = Shape::stack(usize::MAX / 2, 3, 0);
        assert!(Tensor::new(Format::F32, huge, vec![]).is_err());
    }

    #[test]
    fn a_vector_is_one_row() {
        let vector = Tensor::from_f32(Format::F32, Shape::Vector(4), &[1.0, 2.0, 3.0, 4.0])
            .expect("valid vector");
        assert_eq!(vector.row(0).map(<[u8]>::len), Some(16));
        assert_eq!(vector.row(1), None);
        let part = vector.slice_cols(1..3).expect("in range");
        assert_eq!(part.shape(), Shape::Vector(2));
        assert_eq!(part.to_f32(), [2.0, 3.0]);
    }

    #[test]
    fn empty_tensors_are_harmless() {
        for shape in [Shape::matrix(0, 4), Shape::matrix(4, 0), Shape::Vector(0)] {
            let tensor = Tensor::from_f32(Format::F16, shape, &[]).expect("empty is consistent");
            assert!(tensor.to_f32().is_empty());
            assert!(tensor.slice_rows(0..0).is_ok());
            assert!(tensor.slice_cols(0..0).is_ok());
        }
    }
}
