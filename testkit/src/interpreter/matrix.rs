//! Activations and weights: row-major f32.

/// A matrix in which rows are what a model calls vectors.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    columns: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// All zeros, `[rows, columns]`.
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self { columns, data: vec![0.0; rows * columns] }
    }

    /// Of the elements `data`, row after row.
    pub(super) fn new(columns: usize, data: Vec<f32>) -> Self {
        Self { columns, data }
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn rows(&self) -> usize {
        self.data.len().checked_div(self.columns).unwrap_or(0)
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.columns..(row + 1) * self.columns]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.columns..(row + 1) * self.columns]
    }

    /// Several rows, one after another.
    pub(super) fn rows_of(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.data[rows.start * self.columns..rows.end * self.columns]
    }

    pub(super) fn rows_mut(&mut self, rows: std::ops::Range<usize>) -> &mut [f32] {
        &mut self.data[rows.start * self.columns..rows.end * self.columns]
    }

    /// All elements: what a vector is asked for.
    pub(super) fn elements(&self) -> &[f32] {
        &self.data
    }

    /// A matrix of the same shape, of each element by itself.
    pub(super) fn map(&self, function: impl Fn(f32) -> f32) -> Self {
        let data = self.data.iter().map(|&x| function(x)).collect();
        Self { columns: self.columns, data }
    }

    /// A matrix of the same shape, of each two elements in the same place.
    pub(super) fn zip(&self, other: &Self, function: impl Fn(f32, f32) -> f32) -> Self {
        let data = self.data.iter().zip(&other.data).map(|(&x, &y)| function(x, y)).collect();
        Self { columns: self.columns, data }
    }
}
