//! Where the elements of matrices lie.

use super::element::Element;

/// A matrix, or several of the same shape `stride` elements apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub(crate) element: Element,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    /// Elements from one column to the next, or from one row to the next.
    pub(crate) leading: u64,
    pub(crate) row_major: bool,
    pub(crate) batches: u64,
    pub(crate) stride: i64,
}

impl Matrix {
    /// Number of lines (columns, or rows of a row-major matrix) and elements of each.
    pub(super) fn lines(&self) -> (u64, u64) {
        if self.row_major { (self.rows, self.columns) } else { (self.columns, self.rows) }
    }

    /// Whether it has elements, lines don't overlap, and its size can be counted.
    pub(crate) fn is_sound(&self) -> bool {
        let (lines, length) = self.lines();
        let span = (lines.max(1) - 1)
            .checked_mul(self.leading)
            .and_then(|start| start.checked_add(length))
            .and_then(|span| span.checked_mul(self.element.bytes()));
        lines > 0
            && length > 0
            && self.leading >= length
            && self.leading <= i64::MAX as u64
            && span.is_some_and(|span| span < 1 << 44)
            && self.stride >= 0
            && self.stride.unsigned_abs() < 1 << 40
            && self.batches < 1 << 20
    }

    /// Bytes from the first element of a batch to the end of its last.
    pub(super) fn span(&self) -> u64 {
        let (lines, length) = self.lines();
        ((lines - 1) * self.leading + length) * self.element.bytes()
    }

    pub(super) fn batch_offset(&self, batch: u64) -> u64 {
        batch * self.stride.unsigned_abs() * self.element.bytes()
    }

    /// Batches that lie at places of their own.
    pub(super) fn distinct_batches(&self) -> u64 {
        if self.stride == 0 { self.batches.min(1) } else { self.batches }
    }

    /// Whether elements of a matrix at `base` lie in the `length` bytes from `at`. All of the matrix is within an
    /// address space.
    pub(super) fn touches(&self, base: u64, at: u64, length: u64) -> bool {
        let (lines, elements) = self.lines();
        let bytes = self.element.bytes();
        // The first of pieces `step` bytes apart that ends behind `at`.
        let first_behind = |start: u64, piece: u64, step: u64| match at.checked_sub(start + piece) {
            Some(gap) => gap.checked_div(step).map_or(u64::MAX, |steps| steps + 1),
            None => 0,
        };
        let end = at + length;
        let first = first_behind(base, self.span(), self.batch_offset(1));
        (first..self.distinct_batches())
            .map(|batch| base + self.batch_offset(batch))
            .take_while(|start| *start < end)
            .any(|start| {
                let step = self.leading * bytes;
                let line = first_behind(start, elements * bytes, step);
                line < lines && start + line * step < end
            })
    }

    /// Whether two batches share an element. How one batch lies to another depends on their distance alone.
    pub(super) fn batches_overlap(&self) -> bool {
        let (lines, length) = self.lines();
        (1..self.batches).map(|batch| batch * self.stride.unsigned_abs()).any(|shift| {
            let (line, place) = (shift / self.leading, shift % self.leading);
            line < lines && place < length || line + 1 < lines && self.leading - place < length
        })
    }

    /// The bytes that elements take, as ranges in order of their lines.
    pub(super) fn ranges(&self, base: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (lines, length) = self.lines();
        let bytes = self.element.bytes();
        (0..self.distinct_batches()).flat_map(move |batch| {
            let first = base + self.batch_offset(batch);
            (0..lines).map(move |line| (first + line * self.leading * bytes, length * bytes))
        })
    }

    /// The place of an element in the bytes of a batch.
    pub(super) fn place(&self, row: u64, column: u64) -> usize {
        let (line, at) = if self.row_major { (row, column) } else { (column, row) };
        ((line * self.leading + at) * self.element.bytes()) as usize
    }
}

pub(super) fn read(element: Element, bytes: &[u8]) -> f64 {
    element.read(bytes.get(..element.bytes() as usize).unwrap_or_default())
}

/// The vectors of a matrix one after the other: its rows, or its columns.
pub(super) fn gather(
    matrix: &Matrix,
    bytes: &[u8],
    [count, length]: [u64; 2],
    by_rows: bool,
) -> Vec<f64> {
    let mut values = Vec::with_capacity((count * length) as usize);
    for vector in 0..count {
        for at in 0..length {
            let (row, column) = if by_rows { (vector, at) } else { (at, vector) };
            let place = matrix.place(row, column);
            values.push(bytes.get(place..).map_or(0.0, |bytes| read(matrix.element, bytes)));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix() -> impl Strategy<Value = Matrix> {
        let element = prop_oneof![Just(Element::F32), Just(Element::Bf16)];
        (element, 1..5u64, 1..5u64, 0..4u64, any::<bool>(), 1..5u64, 0..30i64).prop_map(
            |(element, rows, columns, gap, row_major, batches, stride)| {
                let leading = gap + if row_major { columns } else { rows };
                Matrix { element, rows, columns, leading, row_major, batches, stride }
            },
        )
    }

    /// The bytes of every batch, one by one.
    fn bytes(matrix: &Matrix, base: u64) -> Vec<Vec<u64>> {
        let of_batch = |batch| {
            let one = Matrix { batches: 1, ..matrix.clone() };
            let first = base + matrix.batch_offset(batch);
            one.ranges(first).flat_map(|(at, length)| at..at + length).collect()
        };
        (0..matrix.batches).map(of_batch).collect()
    }

    proptest! {
        #[test]
        fn overlaps_are_those_of_the_bytes(one in matrix(), base in 1000..1100u64, at in 900..1400u64, length in 1..40u64) {
            prop_assert!(one.is_sound());
            let bytes = bytes(&one, base);
            let touched = bytes.iter().flatten().any(|byte| (at..at + length).contains(byte));
            prop_assert_eq!(one.touches(base, at, length), touched);
            let mut all: Vec<u64> = bytes.concat();
            all.sort_unstable();
            let shared = all.windows(2).any(|pair| pair[0] == pair[1]);
            prop_assert_eq!(one.batches_overlap(), shared);
        }
    }

    #[test]
    fn a_matrix_whose_lines_overlap_is_not_sound() {
        let good = Matrix {
            element: Element::F32,
            rows: 4,
            columns: 3,
            leading: 4,
            row_major: false,
            batches: 1,
            stride: 0,
        };
        assert!(good.is_sound());
        assert!(!Matrix { leading: 3, ..good.clone() }.is_sound());
        assert!(Matrix { leading: 3, row_major: true, ..good.clone() }.is_sound());
        assert!(!Matrix { rows: 0, ..good.clone() }.is_sound());
        assert!(!Matrix { leading: u64::MAX, ..good }.is_sound());
    }
}
