//! A matrix product: `D = epilogue(alpha * A * B + beta * C)`.

use super::element::Element;
use super::matrix::{Matrix, gather, read};
use super::numbers::{Rounding, Sums, Vectors, gelu};
use crate::check::Problem;
use crate::driver::library::{Fault, Operand};
use crate::driver::{Answer, Driver};
use crate::machine::float::{F16, Half};

/// Multiplications from which on a product is spread over threads.
const LARGE: u64 = 1 << 20;

const NAME: &str = "cublasLtMatmul";

/// Where alpha and beta come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalars {
    Host {
        alpha: f64,
        beta: f64,
    },
    Device {
        alpha: u64,
        beta: u64,
    },
    /// A value for each row of D.
    Vectors {
        alpha: u64,
        beta: Option<u64>,
        stride: i64,
        host_beta: f64,
    },
}

/// What is done to a sum before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epilogue {
    pub(crate) relu: bool,
    pub(crate) gelu: bool,
    /// Address, type and batch stride of a value for each row.
    pub(crate) bias: Option<(u64, Element, i64)>,
}

/// A product with everything that it needs.
#[derive(Debug, Clone)]
pub(crate) struct Matmul {
    pub(crate) sums: Sums,
    pub(crate) rounding: Rounding,
    pub(crate) scalars: Scalars,
    /// The type of scalars.
    pub(crate) scalar: Element,
    pub(crate) transposed: [bool; 2],
    /// Rows of D, columns of D, length of the sums.
    pub(crate) sizes: [u64; 3],
    /// A, B, C and D.
    pub(crate) matrices: [Matrix; 4],
    pub(crate) operands: [u64; 4],
    pub(crate) epilogue: Epilogue,
    /// Addresses of the scales of A, B, C and D; 0 for none.
    pub(crate) scales: [u64; 4],
    /// Where the largest magnitude of D goes; 0 for nowhere.
    pub(crate) largest: u64,
    pub(crate) workspace: (u64, u64),
}

impl Driver {
    /// Makes a product on a device.
    pub(crate) fn run_matmul(&mut self, device: usize, matmul: &Matmul) -> Answer<()> {
        let result = matmul.run(self, device);
        self.conclude(NAME, result)
    }
}

impl Matmul {
    fn run(&self, driver: &mut Driver, device: usize) -> Result<(), Fault> {
        let (workspace, bytes) = self.workspace;
        if bytes > 0 {
            driver.reach(
                device,
                &Operand { name: "workspace", access: "store" },
                workspace,
                bytes,
            )?;
        }
        for (index, name) in ["A", "B"].into_iter().enumerate() {
            self.check_bounds(driver, device, index, &Operand { name, access: "load" })?;
        }
        self.check_bounds(driver, device, 3, &Operand { name: "D", access: "store" })?;
        self.check_overlaps(driver, device);
        let [a, b, c, d] = &self.matrices;
        let scale = |driver: &mut Driver, index: usize| -> Result<f64, Fault> {
            match self.scales.get(index).copied().unwrap_or(0) {
                0 => Ok(1.0),
                address => self.scalar_at(driver, device, "scale", address, Element::F32),
            }
        };
        let factor = scale(driver, 0)? * scale(driver, 1)?;
        let c_scale = scale(driver, 2)?;
        let d_scale = if d.element.is_eight() { scale(driver, 3)? } else { 1.0 };
        let mut largest = 0f64;
        for batch in 0..d.batches {
            let (alphas, betas) = self.scalars(driver, device, batch)?;
            let bias = self.bias(driver, device, batch)?;
            let reads_c = betas.iter().any(|beta| *beta != 0.0);
            let left = self.load(driver, device, 0, "A", batch)?;
            let right = self.load(driver, device, 1, "B", batch)?;
            let added =
                if reads_c { self.load(driver, device, 2, "C", batch)? } else { Vec::new() };
            let operand = Operand { name: "D", access: "store" };
            let first = self.operands[3] + d.batch_offset(batch);
            // Gaps between lines keep what they hold.
            let mut bytes = driver.contents(device, &operand, first, d.span())?;
            let [m, n, k] = self.sizes;
            let rows = gather(a, &left, [m, k], !self.transposed[0]);
            let columns = gather(b, &right, [n, k], self.transposed[1]);
            let sums = self.products(&rows, &columns);
            for column in 0..n {
                for row in 0..m {
                    let at = (column * m + row) as usize;
                    let pick = |values: &[f64]| match values {
                        [one] => *one,
                        many => many.get(row as usize).copied().unwrap_or(0.0),
                    };
                    let mut value =
                        self.round(sums.get(at).copied().unwrap_or(0.0) * pick(&alphas) * factor);
                    let beta = pick(&betas);
                    if beta != 0.0 {
                        let place = c.place(row, column);
                        let old = added.get(place..).map_or(0.0, |bytes| read(c.element, bytes));
                        value = self.round(value + beta * c_scale * old);
                    }
                    if let Some(bias) = &bias {
                        value = self.round(value + bias.get(row as usize).copied().unwrap_or(0.0));
                    }
                    if self.epilogue.relu {
                        // NaN stays NaN.
                        value = if value < 0.0 { 0.0 } else { value };
                    } else if self.epilogue.gelu {
                        value = self.round(gelu(value));
                    }
                    largest = largest.max(value.abs());
                    let place = d.place(row, column);
                    let size = d.element.bytes() as usize;
                    if let Some(bytes) = bytes.get_mut(place..place + size) {
                        d.element.write(value * d_scale, bytes);
                    }
                }
            }
            for (at, length) in d.ranges(first).take(d.lines().0 as usize) {
                let from = (at - first) as usize;
                let line = bytes.get(from..from + length as usize).unwrap_or_default();
                driver.store(device, &operand, at, line)?;
            }
        }
        if self.largest != 0 {
            let operand = Operand { name: "amax of D", access: "store" };
            driver.store(device, &operand, self.largest, &(largest as f32).to_le_bytes())?;
        }
        Ok(())
    }

    /// Rounds to what sums are made in.
    fn round(&self, value: f64) -> f64 {
        match self.sums {
            Sums::F64 => value,
            Sums::F16 => f64::from(F16::widen(F16::narrow_double(value))),
            Sums::F32 => f64::from(value as f32),
            // Scaled in f32 when D is int8.
            Sums::I32 if self.scalar == Element::F32 => f64::from(value as f32),
            Sums::I32 => f64::from(value as i64 as i32),
        }
    }

    fn scalar_at(
        &self,
        driver: &mut Driver,
        device: usize,
        name: &'static str,
        address: u64,
        element: Element,
    ) -> Result<f64, Fault> {
        let operand = Operand { name, access: "load" };
        let bytes = driver.load(device, &operand, address, element.bytes())?;
        Ok(element.read(&bytes))
    }

    /// Alpha and beta of a batch: one value, or one for each row.
    fn scalars(
        &self,
        driver: &mut Driver,
        device: usize,
        batch: u64,
    ) -> Result<(Vec<f64>, Vec<f64>), Fault> {
        match self.scalars {
            Scalars::Host { alpha, beta } => Ok((vec![alpha], vec![beta])),
            Scalars::Device { alpha, beta } => Ok((
                vec![self.scalar_at(driver, device, "alpha", alpha, self.scalar)?],
                vec![self.scalar_at(driver, device, "beta", beta, self.scalar)?],
            )),
            Scalars::Vectors { alpha, beta, stride, host_beta } => {
                let offset = batch * stride.unsigned_abs() * self.scalar.bytes();
                let alphas = self.vector(driver, device, "alpha", alpha + offset, self.scalar)?;
                let betas = match beta {
                    Some(beta) => {
                        self.vector(driver, device, "beta", beta + offset, self.scalar)?
                    }
                    None => vec![host_beta],
                };
                Ok((alphas, betas))
            }
        }
    }

    fn bias(
        &self,
        driver: &mut Driver,
        device: usize,
        batch: u64,
    ) -> Result<Option<Vec<f64>>, Fault> {
        let Some((address, element, stride)) = self.epilogue.bias else { return Ok(None) };
        let at = address + batch * stride.unsigned_abs() * element.bytes();
        self.vector(driver, device, "bias", at, element).map(Some)
    }

    /// A value for each row of D.
    fn vector(
        &self,
        driver: &mut Driver,
        device: usize,
        name: &'static str,
        address: u64,
        element: Element,
    ) -> Result<Vec<f64>, Fault> {
        let size = element.bytes();
        let operand = Operand { name, access: "load" };
        let bytes = driver.load(device, &operand, address, self.sizes[0] * size)?;
        Ok(bytes.chunks(size as usize).map(|bytes| element.read(bytes)).collect())
    }

    /// The bytes of a batch of an operand, gaps between lines included; all elements must have been
    /// written.
    fn load(
        &self,
        driver: &mut Driver,
        device: usize,
        index: usize,
        name: &'static str,
        batch: u64,
    ) -> Result<Vec<u8>, Fault> {
        let operand = Operand { name, access: "load" };
        let matrix = &self.matrices[index];
        let first = self.operands[index] + matrix.batch_offset(batch);
        let bytes = driver.contents(device, &operand, first, matrix.span())?;
        for (at, length) in matrix.ranges(first).take(matrix.lines().0 as usize) {
            driver.expect_written(&operand, at, length);
        }
        Ok(bytes)
    }

    /// The dot products of rows and columns, column by column.
    fn products(&self, rows: &[f64], columns: &[f64]) -> Vec<f64> {
        let [m, n, k] = self.sizes.map(|size| size as usize);
        let mut out = vec![0.0; m * n];
        let rows = Vectors::new(self.sums, self.rounding, rows);
        let columns = Vectors::new(self.sums, self.rounding, columns);
        let fill = |first: usize, part: &mut [f64]| {
            for (index, value) in part.iter_mut().enumerate() {
                let at = first + index;
                *value = rows.dot(at % m, &columns, at / m, k);
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if self.sizes.iter().product::<u64>() < LARGE || cores == 1 {
            fill(0, &mut out);
            return out;
        }
        let share = (m * n).div_ceil(cores);
        std::thread::scope(|scope| {
            for (index, part) in out.chunks_mut(share).enumerate() {
                let fill = &fill;
                scope.spawn(move || fill(index * share, part));
            }
        });
        out
    }

    /// Checks that all batches of an operand lie in memory that the device may use.
    fn check_bounds(
        &self,
        driver: &Driver,
        device: usize,
        index: usize,
        operand: &Operand,
    ) -> Result<(), Fault> {
        let (matrix, base) = (&self.matrices[index], self.operands[index]);
        (0..matrix.distinct_batches()).try_for_each(|batch| {
            // A sum that can't be counted is no memory either.
            let first = base.saturating_add(matrix.batch_offset(batch));
            driver.reach(device, operand, first, matrix.span())
        })
    }

    /// D may be C, whole; it may share no byte with A or B. All but C are within bounds.
    fn check_overlaps(&self, driver: &mut Driver, device: usize) {
        let [_, _, c, d] = &self.matrices;
        let in_place = self.operands[2] == self.operands[3] && c == d;
        for (index, name) in ["A", "B", "C"].into_iter().enumerate() {
            let operand = Operand { name, access: "load" };
            // C may lie anywhere while every beta on the device is 0.
            let reads = index != 2
                || !in_place
                    && !matches!(self.scalars, Scalars::Host { beta: 0.0, .. })
                    && self.check_bounds(driver, device, index, &operand).is_ok();
            if reads && self.overlaps(index) {
                driver.complain(Problem::Overlap { what: format!("D and {name}") }, "D");
            }
        }
        if d.batches_overlap() {
            driver.complain(Problem::Overlap { what: "batches of D".to_owned() }, "D");
        }
    }

    /// Whether D shares a byte with another operand that is within bounds.
    fn overlaps(&self, index: usize) -> bool {
        let (other, d) = (&self.matrices[index], &self.matrices[3]);
        let (from, to) = (self.operands[3], self.operands[index]);
        let end = |matrix: &Matrix, base: u64| {
            base + matrix.batch_offset(matrix.distinct_batches() - 1) + matrix.span()
        };
        from < end(other, to)
            && to < end(d, from)
            && d.ranges(from).any(|(at, length)| other.touches(to, at, length))
    }
}
