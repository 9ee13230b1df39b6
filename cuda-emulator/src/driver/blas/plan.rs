//! Descriptors to a product that can be run, or the reason why cuBLASLt would refuse it.

use super::attributes::{Attributes, number};
use super::element::Element;
use super::matmul::{Epilogue, Matmul, Scalars};
use super::matrix::Matrix;
use super::numbers::{Rounding, Sums};
use super::{BlasAnswer, BlasStatus, MatmulCall};

/// What the descriptors of a product say.
#[derive(Debug, Clone)]
pub(super) struct Layouts {
    sums: Sums,
    rounding: Rounding,
    scale: Element,
    mode: u32,
    /// Whether A and B are transposed.
    transposed: [bool; 2],
    matrices: [Matrix; 4],
    epilogue: u32,
    fill: u32,
    bias: u64,
    bias_stride: i64,
    bias_type: u32,
    alpha_stride: i64,
    /// Addresses of the scales of A, B, C and D, and of the largest value of D.
    scales: [u64; 4],
    largest: u64,
    scale_modes: bool,
}

const RELU: u32 = 2;
const BIAS: u32 = 4;
const GELU: u32 = 32;

/// Scalars of the host; on the device; alpha a vector of the device, and beta too, zero, or of the
/// host.
mod mode {
    pub(super) const HOST: u32 = 0;
    pub(super) const DEVICE: u32 = 1;
    pub(super) const VECTORS: u32 = 2;
    pub(super) const VECTOR_AND_ZERO: u32 = 3;
    pub(super) const VECTOR_AND_HOST: u32 = 4;
}

impl Layouts {
    /// Reads descriptors and checks that they fit each other.
    pub(super) fn read(description: &Attributes, layouts: &[Attributes]) -> BlasAnswer<Self> {
        let (sums, rounding) =
            compute(description.short(number::COMPUTE_TYPE)).ok_or(BlasStatus::INVALID_VALUE)?;
        let element = |code| Element::of(code).ok_or(BlasStatus::NOT_SUPPORTED);
        let operation = |attribute| match description.short(attribute) {
            0 => Ok(false),
            // The conjugate of a real matrix is itself.
            1 | 2 => Ok(true),
            _ => Err(BlasStatus::INVALID_VALUE),
        };
        let mut matrices = Vec::with_capacity(4);
        for layout in layouts {
            matrices.push(matrix(layout)?);
        }
        let Ok(matrices) = <[Matrix; 4]>::try_from(matrices) else {
            return Err(BlasStatus::INTERNAL_ERROR);
        };
        let found = Self {
            sums,
            rounding,
            scale: element(description.short(number::SCALE_TYPE))?,
            mode: description.short(number::POINTER_MODE),
            transposed: [operation(number::TRANSPOSE_A)?, operation(number::TRANSPOSE_B)?],
            matrices,
            epilogue: description.short(number::EPILOGUE),
            fill: description.short(number::FILL_MODE),
            bias: description.number(number::BIAS),
            bias_stride: description.number(number::BIAS_STRIDE) as i64,
            bias_type: description.short(number::BIAS_TYPE),
            alpha_stride: description.number(number::ALPHA_STRIDE) as i64,
            scales: [number::A_SCALE, number::B_SCALE, number::C_SCALE, number::D_SCALE]
                .map(|scale| description.number(scale)),
            largest: description.number(number::AMAX_D),
            scale_modes: number::SCALE_MODES.into_iter().any(|one| description.short(one) != 0),
        };
        if operation(number::TRANSPOSE_C)? {
            return Err(BlasStatus::NOT_SUPPORTED);
        }
        found.fits().then_some(found).ok_or(BlasStatus::INVALID_VALUE)
    }

    /// Rows of D, columns of D, and the length of the sums.
    fn sizes(&self) -> [u64; 3] {
        let [a, _, _, d] = &self.matrices;
        let depth = if self.transposed[0] { a.rows } else { a.columns };
        [d.rows, d.columns, depth]
    }

    fn fits(&self) -> bool {
        let [a, b, c, d] = &self.matrices;
        let turned = |matrix: &Matrix, transposed: bool| {
            if transposed { [matrix.columns, matrix.rows] } else { [matrix.rows, matrix.columns] }
        };
        let [m, n, k] = self.sizes();
        let same_batches = [a, b, c].iter().all(|one| one.batches == d.batches);
        turned(a, self.transposed[0]) == [m, k]
            && turned(b, self.transposed[1]) == [k, n]
            && [c.rows, c.columns] == [m, n]
            && same_batches
            && d.batches > 0
            && self.matrices.iter().all(Matrix::is_sound)
    }

    /// Whether cuBLASLt has such a product on a device of a compute capability; or why it hasn't.
    pub(super) fn supported(&self, capability: u32) -> Result<(), String> {
        let [a, b, c, d] = self.matrices.each_ref().map(|matrix| matrix.element);
        let no = |reason: &str| Err(reason.to_owned());
        if self.fill != 2 {
            return no("only whole matrices are filled");
        }
        if self.mode > mode::VECTOR_AND_HOST {
            return no("an unknown pointer mode");
        }
        if self.scale_modes {
            return no("scales of blocks and vectors are not here; one scale a matrix is");
        }
        if !matches!(self.epilogue & !(RELU | GELU | BIAS), 0 | 1) || self.gelu() && self.relu() {
            return no("epilogues that keep or take values for a backward pass are not here");
        }
        if !combination(self.sums, self.scale, [a, b, c, d]) {
            return Err(format!(
                "no product of {a:?} and {b:?} with {c:?} to {d:?}, computed as {:?} with scalars \
                 of {:?}",
                self.sums, self.scale
            ));
        }
        if self.has_bias() && self.bias_element().is_none() {
            return no("an unknown type of the bias");
        }
        let transposed_a_alone = self.transposed == [true, false];
        let columns = self.matrices.iter().all(|matrix| !matrix.row_major);
        let [m, _, k] = self.sizes();
        if a.is_eight() {
            if capability < 89 {
                return Err(format!(
                    "fp8 needs compute capability 8.9, the device has {capability}"
                ));
            }
            if capability < 100 && !(transposed_a_alone && columns) {
                return no("fp8 needs A transposed, B not, and columns, before capability 10.0");
            }
            let whole = |matrix: &Matrix| (matrix.rows * matrix.element.bytes()).is_multiple_of(16);
            let leading = |one: &Matrix| (one.leading * one.element.bytes()).is_multiple_of(16);
            if !self.matrices.iter().all(|one| whole(one) && leading(one)) {
                return no("the columns of fp8 products begin and end at multiples of 16 bytes");
            }
        }
        if self.sums == Sums::I32 {
            if !transposed_a_alone || !columns {
                return no("int8 needs A transposed, B not, and columns");
            }
            if !m.is_multiple_of(4) || !k.is_multiple_of(4) {
                return no("int8 needs m and k that are multiples of 4");
            }
            if !self.matrices.iter().all(|one| one.leading.is_multiple_of(4)) {
                return no("int8 needs leading dimensions that are multiples of 4");
            }
            if d == Element::I32 && self.epilogue != 1 {
                return no("int8 products to int32 have no epilogue");
            }
        }
        Ok(())
    }

    fn relu(&self) -> bool {
        self.epilogue & RELU != 0
    }

    fn gelu(&self) -> bool {
        self.epilogue & GELU != 0
    }

    fn has_bias(&self) -> bool {
        self.epilogue & BIAS != 0
    }

    /// The bias is of D's type, but for fp8: there of C's, or bf16.
    fn bias_element(&self) -> Option<Element> {
        if self.bias_type != u32::MAX {
            return Element::of(self.bias_type);
        }
        let [a, _, c, d] = self.matrices.each_ref().map(|matrix| matrix.element);
        Some(match (a.is_eight(), d) {
            (true, Element::F32) => Element::Bf16,
            (true, _) => c,
            (false, _) => d,
        })
    }
}

fn compute(code: u32) -> Option<(Sums, Rounding)> {
    Some(match code {
        64 | 65 => (Sums::F16, Rounding::None),
        68 | 69 => (Sums::F32, Rounding::None),
        74 => (Sums::F32, Rounding::F16),
        75 => (Sums::F32, Rounding::Bf16),
        77 => (Sums::F32, Rounding::Tf32),
        70 | 71 => (Sums::F64, Rounding::None),
        72 | 73 => (Sums::I32, Rounding::None),
        _ => return None,
    })
}

/// The table of types that the documentation of `cublasLtMatmul` has.
fn combination(sums: Sums, scale: Element, types: [Element; 4]) -> bool {
    use Element::{Bf16, F16, F32, F64, I8, I32};
    let [a, b, c, d] = types;
    if a.is_eight() || b.is_eight() {
        let both_e5m2 = a == Element::E5m2 && b == Element::E5m2;
        // E5M2 comes out of products with an E5M2 operand.
        let d_fits = match d {
            Element::E4m3 => c == Bf16 || c == F16,
            Element::E5m2 => (c == Bf16 || c == F16) && a != b,
            Bf16 | F16 | F32 => c == d,
            _ => false,
        };
        return a.is_eight()
            && b.is_eight()
            && !both_e5m2
            && sums == Sums::F32
            && scale == F32
            && d_fits;
    }
    if a != b || c != d {
        return false;
    }
    match (sums, scale) {
        (Sums::F16, F16) => (a, d) == (F16, F16),
        (Sums::I32, I32) => (a, d) == (I8, I32),
        (Sums::I32, F32) => (a, d) == (I8, I8),
        (Sums::F32, F32) => matches!(
            (a, d),
            (Bf16, Bf16) | (F16, F16) | (I8, F32) | (Bf16, F32) | (F16, F32) | (F32, F32)
        ),
        (Sums::F64, F64) => (a, d) == (F64, F64),
        _ => false,
    }
}

fn matrix(layout: &Attributes) -> BlasAnswer<Matrix> {
    let row_major = match layout.short(number::ORDER) {
        0 => false,
        1 => true,
        _ => return Err(BlasStatus::NOT_SUPPORTED),
    };
    if layout.number(number::PLANE_OFFSET) != 0 {
        return Err(BlasStatus::NOT_SUPPORTED);
    }
    Ok(Matrix {
        element: Element::of(layout.short(number::TYPE)).ok_or(BlasStatus::NOT_SUPPORTED)?,
        rows: layout.number(number::ROWS),
        columns: layout.number(number::COLUMNS),
        leading: layout.number(number::LEADING),
        row_major,
        batches: u64::from(layout.short(number::BATCHES)),
        stride: layout.number(number::BATCH_STRIDE) as i64,
    })
}

/// Puts a product together. Scalars of the host are read now.
///
/// # Safety
///
/// In the host pointer modes the addresses of the scalars must be readable for the scale type.
pub(super) unsafe fn plan(layouts: &Layouts, call: &MatmulCall) -> BlasAnswer<Matmul> {
    let bytes = layouts.scale.bytes();
    let host = |address: u64| {
        if address == 0 || !address.is_multiple_of(bytes) {
            return Err(BlasStatus::INVALID_VALUE);
        }
        // SAFETY: the caller vouches for the scalar.
        let value =
            unsafe { std::slice::from_raw_parts(address as usize as *const u8, bytes as usize) };
        Ok(layouts.scale.read(value))
    };
    let device = |address: u64| {
        let good = address != 0 && address.is_multiple_of(bytes);
        if good { Ok(address) } else { Err(BlasStatus::INVALID_VALUE) }
    };
    let scalars = match layouts.mode {
        mode::HOST => Scalars::Host { alpha: host(call.alpha)?, beta: host(call.beta)? },
        mode::DEVICE => Scalars::Device { alpha: device(call.alpha)?, beta: device(call.beta)? },
        mode::VECTORS => {
            let (alpha, beta) = (device(call.alpha)?, Some(device(call.beta)?));
            Scalars::Vectors { alpha, beta, stride: layouts.alpha_stride, host_beta: 0.0 }
        }
        vector => {
            let host_beta = if vector == mode::VECTOR_AND_ZERO { 0.0 } else { host(call.beta)? };
            let alpha = device(call.alpha)?;
            Scalars::Vectors { alpha, beta: None, stride: layouts.alpha_stride, host_beta }
        }
    };
    let [_, _, c, _] = call.operands;
    let unused_c = matches!(scalars, Scalars::Host { beta: 0.0, .. }) && c == 0;
    for (index, (address, matrix)) in call.operands.iter().zip(&layouts.matrices).enumerate() {
        let alignment = match matrix.element {
            _ if layouts.matrices[0].element.is_eight() => 16,
            Element::I8 => 4,
            element => element.bytes(),
        };
        let missing = *address == 0 && !(index == 2 && unused_c);
        if missing || !address.is_multiple_of(alignment) {
            return Err(BlasStatus::INVALID_VALUE);
        }
    }
    let bias_element = layouts.bias_element().unwrap_or(layouts.matrices[3].element);
    if layouts.has_bias()
        && (layouts.bias == 0 || !layouts.bias.is_multiple_of(bias_element.bytes()))
    {
        return Err(BlasStatus::INVALID_VALUE);
    }
    let far = |address: u64| address >= 1 << 60;
    let strides = [layouts.bias_stride, layouts.alpha_stride];
    if call.operands.iter().chain(&layouts.scales).copied().any(far)
        || [call.alpha, call.beta, layouts.bias, layouts.largest].into_iter().any(far)
        || strides.iter().any(|stride| !(0..1 << 40).contains(stride))
    {
        return Err(BlasStatus::INVALID_VALUE);
    }
    Ok(Matmul {
        sums: layouts.sums,
        rounding: layouts.rounding,
        scalars,
        scalar: layouts.scale,
        transposed: layouts.transposed,
        sizes: layouts.sizes(),
        matrices: layouts.matrices.clone(),
        operands: call.operands,
        epilogue: Epilogue {
            relu: layouts.relu(),
            gelu: layouts.gelu(),
            bias: layouts.has_bias().then_some((layouts.bias, bias_element, layouts.bias_stride)),
        },
        scales: layouts.scales,
        largest: layouts.largest,
        workspace: call.workspace,
    })
}
