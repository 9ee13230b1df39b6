//! Slices, rows by index, and writing rows in place.

use super::{Element, Function, Value, list, names, types};

impl Function {
    /// Elements `start..start + size` of dimension `dim`.
    pub(crate) fn slice(&mut self, value: &Value, dim: usize, start: usize, size: usize) -> Value {
        if start == 0 && size == value.dim(dim) {
            return value.clone();
        }
        let ranges = value.dims().iter().enumerate().map(|(index, &length)| {
            let (start, end) = if index == dim { (start, start + size) } else { (0, length) };
            format!("{start}:{end}")
        });
        let ranges = list(ranges);
        let mut kind = value.kind.clone();
        kind.dims[dim] = size;
        let text =
            format!("stablehlo.slice {} [{ranges}] : ({}) -> {kind}", value.name, value.kind);
        self.define(kind, &text)
    }

    /// Elements `start..start + size` of dimension `dim`, where `start` is a scalar `i32`.
    pub(crate) fn dynamic_slice(
        &mut self,
        value: &Value,
        dim: usize,
        start: &Value,
        size: usize,
    ) -> Value {
        let zero = self.int(0);
        let starts: Vec<&Value> =
            (0..value.dims().len()).map(|index| if index == dim { start } else { &zero }).collect();
        let mut kind = value.kind.clone();
        kind.dims[dim] = size;
        let text = format!(
            "stablehlo.dynamic_slice {}, {}, sizes = [{}] : ({}, {}) -> {kind}",
            value.name,
            names(&starts),
            list(&kind.dims),
            value.kind,
            types(&starts),
        );
        self.define(kind, &text)
    }

    /// Writes `update` into `value` at index `start` of dimension `dim`, a scalar `i32`.
    pub(crate) fn dynamic_update(
        &mut self,
        value: &Value,
        update: &Value,
        dim: usize,
        start: &Value,
    ) -> Value {
        let zero = self.int(0);
        let starts: Vec<&Value> =
            (0..value.dims().len()).map(|index| if index == dim { start } else { &zero }).collect();
        let kind = value.kind.clone();
        let text = format!(
            "stablehlo.dynamic_update_slice {}, {} : ({}, {}) -> {kind}",
            names(&[value, update]),
            names(&starts),
            types(&[value, update]),
            types(&starts),
        );
        self.define(kind, &text)
    }

    /// Joins values along dimension `dim`.
    pub(crate) fn concatenate(&mut self, values: &[&Value], dim: usize) -> Value {
        if let [value] = values {
            return (*value).clone();
        }
        let mut kind = values[0].kind.clone();
        kind.dims[dim] = values.iter().map(|value| value.dim(dim)).sum();
        let text = format!(
            "stablehlo.concatenate {}, dim = {dim} : ({}) -> {kind}",
            names(values),
            types(values)
        );
        self.define(kind, &text)
    }

    /// Rows of `table` by index: `out[i.., r..] = table[indices[i..], r..]`.
    pub(crate) fn take(&mut self, table: &Value, indices: &Value) -> Value {
        let leading = indices.dims().len();
        let row = &table.dims()[1..];
        let dims: Vec<usize> = indices.dims().iter().chain(row).copied().collect();
        let kind = table.kind.with_dims(&dims);
        let offsets = list(leading..dims.len());
        let sizes = list(std::iter::once(1).chain(row.iter().copied()));
        let text = format!(
            "\"stablehlo.gather\"({}) <{{dimension_numbers = #stablehlo.gather<offset_dims = \
             [{offsets}], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = \
             {leading}>, slice_sizes = array<i64: {sizes}>, indices_are_sorted = false}}> : ({}) \
             -> {kind}",
            names(&[table, indices]),
            types(&[table, indices]),
        );
        self.define(kind, &text)
    }

    /// Writes rows into `table` by index: `table[indices[i], r..] = rows[i, r..]`. Rows whose
    /// index is out of range are dropped; of several with one index, any may win.
    pub(crate) fn put(&mut self, table: &Value, indices: &Value, rows: &Value) -> Value {
        self.scatter(table, indices, rows, "stablehlo.return %new : SCALAR")
    }

    /// Adds rows to those of `table` by index.
    pub(crate) fn put_add(&mut self, table: &Value, indices: &Value, rows: &Value) -> Value {
        let body = "%sum = stablehlo.add %old, %new : SCALAR stablehlo.return %sum : SCALAR";
        self.scatter(table, indices, rows, body)
    }

    fn scatter(&mut self, table: &Value, indices: &Value, rows: &Value, body: &str) -> Value {
        let kind = table.kind.clone();
        let scalar = kind.with_dims(&[]).to_string();
        let body = body.replace("SCALAR", &scalar);
        let window = list(1..rows.dims().len());
        let text = format!(
            "\"stablehlo.scatter\"({}) <{{scatter_dimension_numbers = \
             #stablehlo.scatter<update_window_dims = [{window}], inserted_window_dims = [0], \
             scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, indices_are_sorted = false, \
             unique_indices = false}}> ({{ ^bb0(%old: {scalar}, %new: {scalar}): {body} }}) : ({}) \
             -> {kind}",
            names(&[table, indices, rows]),
            types(&[table, indices, rows]),
        );
        self.define(kind, &text)
    }

    /// The element of a one-element value, as a scalar.
    pub(crate) fn scalar(&mut self, value: &Value) -> Value {
        self.reshape(value, &[])
    }

    /// Index of the first largest element of each row: `[rows, n]` to `[rows]`, as `i32`.
    pub(crate) fn argmax(&mut self, value: &Value) -> Value {
        use super::arithmetic::{Order, Reduction};
        let largest = self.reduce(value, Reduction::Max, &[1]);
        let largest = self.broadcast_to(&largest, value, &[0]);
        let is_largest = self.compare(value, Order::Equal, &largest);
        let dims = value.dims().to_vec();
        let index = self.iota(Element::I32, &dims, 1);
        // Nothing compares equal to a NaN: such a row yields the last index.
        let beyond = self.splat(Element::I32, &dims, (dims[1] - 1) as f64);
        let index = self.select(&is_largest, &index, &beyond);
        self.reduce(&index, Reduction::Min, &[1])
    }
}
