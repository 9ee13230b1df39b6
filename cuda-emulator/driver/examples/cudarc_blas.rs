//! Matrix products as they would be written for a GPU, with cudarc's layers over cuBLASLt.
//!
//!     cudarc_blas CASE
//!
//! Each case panics if something is not as the CUDA documentation says.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cublasStatus_t as Status,
    cudaDataType_t as Type,
};
use cudarc::cublaslt::{Activation, CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL as GLOBAL;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr};
use half::{bf16, f16};

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    match case.as_str() {
        "single" => single(),
        "half" => half(),
        "epilogues" => epilogues(),
        "batches" => batches(),
        "rounding" => rounding(),
        "integers" => integers(),
        "eight-bits" => eight_bits(),
        "device-scalars" => device_scalars(),
        "graph" => graph(),
        "unsupported" => unsupported(),
        "too-small" => too_small(),
        "aliased" => aliased(),
        "unwritten" => unwritten(),
        other => panic!("no case {other:?}"),
    }
    println!("{case} is as it should be");
}

/// Numbers that look random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The product of matrices stored by columns: A is `m` by `k`, or transposed; B is `k` by `n`.
fn product(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], transposed: [bool; 2]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for column in 0..n {
        for row in 0..m {
            c[column * m + row] = (0..k)
                .map(|i| {
                    let left = if transposed[0] { a[row * k + i] } else { a[i * m + row] };
                    let right = if transposed[1] { b[i * n + column] } else { b[column * k + i] };
                    f64::from(left) * f64::from(right)
                })
                .sum();
        }
    }
    c
}

fn near(found: &[f32], expected: &[f64], most: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= most * (1.0 + expected.abs()), "{found} instead of {expected}");
    }
}

fn configuration([m, n, k]: [usize; 3], transposed: [bool; 2]) -> MatmulConfig {
    MatmulConfig {
        transa: transposed[0],
        transb: transposed[1],
        transc: false,
        m: m as u64,
        n: n as u64,
        k: k as u64,
        alpha: 1.0,
        lda: if transposed[0] { k } else { m } as i64,
        ldb: if transposed[1] { n } else { k } as i64,
        beta: 0.0,
        ldc: m as i64,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    }
}

fn begin() -> (Arc<CudaStream>, CudaBlasLT) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let blas = CudaBlasLT::new(stream.clone()).unwrap();
    (stream, blas)
}

/// All transposes; alpha and beta.
fn single() {
    let (stream, blas) = begin();
    let shape = [7, 5, 33];
    let [m, n, k] = shape;
    let (a, b, c) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
    let (left, right) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    for transposed in [[false, false], [true, false], [false, true], [true, true]] {
        let mut result = stream.clone_htod(&c).unwrap();
        let config = MatmulConfig { alpha: 0.5, beta: -2.0, ..configuration(shape, transposed) };
        // SAFETY: the layouts are those of the buffers.
        unsafe { blas.matmul(config, &left, &right, &mut result, None, None) }.unwrap();
        let expected: Vec<f64> = product(&a, &b, shape, transposed)
            .iter()
            .zip(&c)
            .map(|(ab, c)| 0.5 * ab - 2.0 * f64::from(*c))
            .collect();
        // cudarc asks for TF32: 10 bits of fraction.
        near(&stream.clone_dtoh(&result).unwrap(), &expected, 3e-3);
    }
}

fn half() {
    let (stream, blas) = begin();
    let shape = [6, 4, 40];
    let [m, n, k] = shape;
    let a: Vec<bf16> = numbers(m * k, 1).into_iter().map(bf16::from_f32).collect();
    let b: Vec<bf16> = numbers(k * n, 2).into_iter().map(bf16::from_f32).collect();
    let wide = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    let expected = product(&wide(&a), &wide(&b), shape, [true, false]);
    let (left, right) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    let mut result = stream.alloc_zeros::<bf16>(m * n).unwrap();
    let config = configuration(shape, [true, false]);
    // SAFETY: the layouts are those of the buffers.
    unsafe { blas.matmul(config, &left, &right, &mut result, None, None) }.unwrap();
    near(&wide(&stream.clone_dtoh(&result).unwrap()), &expected, 4e-3);

    let narrow =
        |values: &[bf16]| values.iter().map(|v| f16::from_f32(v.to_f32())).collect::<Vec<_>>();
    let (left, right) =
        (stream.clone_htod(&narrow(&a)).unwrap(), stream.clone_htod(&narrow(&b)).unwrap());
    let mut result = stream.alloc_zeros::<f16>(m * n).unwrap();
    // SAFETY: the layouts are those of the buffers.
    unsafe { blas.matmul(config, &left, &right, &mut result, None, None) }.unwrap();
    let found: Vec<f32> = stream.clone_dtoh(&result).unwrap().iter().map(|v| v.to_f32()).collect();
    near(&found, &expected, 5e-4);
}

fn epilogues() {
    let (stream, blas) = begin();
    let shape = [5, 3, 8];
    let (a, b, bias) = (numbers(40, 1), numbers(24, 2), numbers(5, 3));
    let (left, right) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    let added = stream.clone_htod(&bias).unwrap();
    let plain = product(&a, &b, shape, [false, false]);
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x.powi(3))).tanh());
    for (with_bias, activation) in [
        (true, None),
        (true, Some(Activation::Relu)),
        (true, Some(Activation::Gelu)),
        (false, Some(Activation::Relu)),
        (false, Some(Activation::Gelu)),
    ] {
        let mut result = stream.alloc_zeros::<f32>(15).unwrap();
        let config = configuration(shape, [false, false]);
        let bias_at = with_bias.then_some(&added);
        // SAFETY: the layouts are those of the buffers.
        unsafe { blas.matmul(config, &left, &right, &mut result, bias_at, activation.as_ref()) }
            .unwrap();
        let expected: Vec<f64> = plain
            .iter()
            .enumerate()
            .map(|(at, sum)| {
                // One value of the bias for each row.
                let x = sum + if with_bias { f64::from(bias[at % 5]) } else { 0.0 };
                match activation {
                    None => x,
                    Some(Activation::Relu) => x.max(0.0),
                    Some(Activation::Gelu) => gelu(x),
                }
            })
            .collect();
        near(&stream.clone_dtoh(&result).unwrap(), &expected, 2e-3);
    }
}

/// Strides between batches; a stride of 0 uses one matrix for all.
fn batches() {
    let (stream, blas) = begin();
    let shape = [4, 3, 6];
    let (a, b) = (numbers(24, 1), numbers(18 * 5, 2));
    let (left, right) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    let mut result = stream.alloc_zeros::<f32>(12 * 5).unwrap();
    let config = MatmulConfig {
        batch_size: Some(5),
        stride_a: Some(0),
        stride_b: Some(18),
        stride_c: Some(12),
        ..configuration(shape, [false, false])
    };
    // SAFETY: the layouts are those of the buffers.
    unsafe { blas.matmul(config, &left, &right, &mut result, None, None) }.unwrap();
    let expected: Vec<f64> =
        b.chunks(18).flat_map(|b| product(&a, b, shape, [false, false])).collect();
    near(&stream.clone_dtoh(&result).unwrap(), &expected, 2e-3);
}

/// A product through the lower layer.
struct Product {
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 4],
}

impl Product {
    /// A transposed (`k` by `m`), B not, all by columns without gaps.
    fn new(compute: Compute, scale: Type, types: [Type; 4], [m, n, k]: [usize; 3]) -> Self {
        let [m, n, k] = [m, n, k].map(|size| size as u64);
        let sizes = [(k, m), (k, n), (m, n), (m, n)];
        let layout = |index: usize| {
            let (rows, columns) = sizes[index];
            result::create_matrix_layout(types[index], rows, columns, rows as i64).unwrap()
        };
        let description = result::create_matmul_desc(compute, scale).unwrap();
        let handle = result::create_handle().unwrap();
        let product = Self { handle, description, layouts: std::array::from_fn(layout) };
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1i32).unwrap();
        product
    }

    fn set<T>(&self, attribute: Attribute, value: T) -> Result<(), CublasError> {
        let from = (&raw const value).cast::<c_void>();
        // SAFETY: the value is there until the call is over.
        unsafe {
            result::set_matmul_desc_attribute(self.description, attribute, from, size_of::<T>())
        }
    }

    fn run<S>(
        &self,
        stream: &CudaStream,
        alpha: &S,
        beta: &S,
        [a, b, c, d]: [u64; 4],
    ) -> Result<(), CublasError> {
        let preference = result::create_matmul_pref().unwrap();
        let [la, lb, lc, ld] = self.layouts;
        // SAFETY: all descriptors are alive.
        let heuristic = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                self.description,
                la,
                lb,
                lc,
                ld,
                preference,
            )?
        };
        // SAFETY: the scalars are alive; addresses are checked by the library.
        unsafe {
            result::matmul(
                self.handle,
                self.description,
                (&raw const *alpha).cast(),
                (&raw const *beta).cast(),
                a as *const c_void,
                la,
                b as *const c_void,
                lb,
                c as *const c_void,
                lc,
                d as *mut c_void,
                ld,
                &raw const heuristic.algo,
                std::ptr::null_mut(),
                0,
                stream.cu_stream().cast(),
            )
        }
    }
}

const F32: Type = Type::CUDA_R_32F;

/// TF32 rounds operands, plain f32 doesn't.
fn rounding() {
    let (stream, _blas) = begin();
    let x = 1.0f32 + 2f32.powi(-13);
    let one = stream.clone_htod(&[x]).unwrap();
    let result = stream.alloc_zeros::<f32>(1).unwrap();
    let (at, to) = (one.device_ptr(&stream).0, result.device_ptr(&stream).0);
    for (compute, expected) in [
        (Compute::CUBLAS_COMPUTE_32F, x * x),
        (Compute::CUBLAS_COMPUTE_32F_FAST_TF32, 1.0),
        (Compute::CUBLAS_COMPUTE_32F_FAST_16BF, 1.0),
    ] {
        let product = Product::new(compute, F32, [F32; 4], [1, 1, 1]);
        product.run(&stream, &1.0f32, &0.0f32, [at, at, to, to]).unwrap();
        assert_eq!(stream.clone_dtoh(&result).unwrap(), [expected]);
    }
}

fn integers() {
    let (stream, _blas) = begin();
    let shape = [8, 3, 16];
    let [m, n, k] = shape;
    let whole = |count, seed| -> Vec<i8> {
        numbers(count, seed).into_iter().map(|x| (x * 127.0) as i8).collect()
    };
    let (a, b) = (whole(m * k, 1), whole(k * n, 2));
    let (left, right) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    let result = stream.alloc_zeros::<i32>(m * n).unwrap();
    let at = [&left, &right].map(|buffer| buffer.device_ptr(&stream).0);
    let to = result.device_ptr(&stream).0;
    let (i8s, i32s) = (Type::CUDA_R_8I, Type::CUDA_R_32I);
    let product = Product::new(Compute::CUBLAS_COMPUTE_32I, i32s, [i8s, i8s, i32s, i32s], shape);
    product.run(&stream, &1i32, &0i32, [at[0], at[1], to, to]).unwrap();
    let expected: Vec<i32> = (0..m * n)
        .map(|place| {
            let (row, column) = (place % m, place / m);
            (0..k).map(|i| i32::from(a[row * k + i]) * i32::from(b[column * k + i])).sum()
        })
        .collect();
    assert_eq!(stream.clone_dtoh(&result).unwrap(), expected);
    // Scaled by f32 to int8, which is clamped.
    let small = stream.alloc_zeros::<i8>(m * n).unwrap();
    let to = small.device_ptr(&stream).0;
    let product = Product::new(Compute::CUBLAS_COMPUTE_32I, F32, [i8s; 4], shape);
    product.run(&stream, &0.01f32, &0.0f32, [at[0], at[1], to, to]).unwrap();
    let expected: Vec<i8> = expected
        .iter()
        .map(|sum| (*sum as f32 * 0.01).round_ties_even().clamp(-128.0, 127.0) as i8)
        .collect();
    assert_eq!(stream.clone_dtoh(&small).unwrap(), expected);
}

/// fp8 with scales, on a device that has it (`CUDA_EMULATOR_ARCH=sm_90`).
fn eight_bits() {
    let (stream, _blas) = begin();
    let shape = [16, 16, 32];
    // E4M3: 1.0 is 0x38, 1.5 is 0x3c, -2.0 is 0xc0.
    let a: Vec<u8> = (0..16 * 32).map(|i| [0x38u8, 0x3c, 0xc0][i % 3]).collect();
    let b: Vec<u8> = (0..16 * 32).map(|i| [0xc0u8, 0x38][i % 2]).collect();
    let wide = |codes: &[u8]| -> Vec<f32> {
        codes
            .iter()
            .map(|code| {
                if *code == 0x38 {
                    1.0
                } else if *code == 0x3c {
                    1.5
                } else {
                    -2.0
                }
            })
            .collect()
    };
    let (left, right) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    let scales = stream.clone_htod(&[0.5f32, 4.0]).unwrap();
    let result = stream.alloc_zeros::<bf16>(256).unwrap();
    let at = [&left, &right].map(|buffer| buffer.device_ptr(&stream).0);
    let (scale_at, to) = (scales.device_ptr(&stream).0, result.device_ptr(&stream).0);
    let (e4m3, half) = (Type::CUDA_R_8F_E4M3, Type::CUDA_R_16BF);
    let product = Product::new(Compute::CUBLAS_COMPUTE_32F, F32, [e4m3, e4m3, half, half], shape);
    product.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale_at).unwrap();
    product.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale_at + 4).unwrap();
    product.set(Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8).unwrap();
    product.run(&stream, &1.0f32, &0.0f32, [at[0], at[1], to, to]).unwrap();
    let sums = crate::product(&wide(&a), &wide(&b), shape, [true, false]);
    let expected: Vec<f64> = sums.iter().map(|x| 2.0 * x).collect();
    let found: Vec<f32> = stream.clone_dtoh(&result).unwrap().iter().map(|v| v.to_f32()).collect();
    near(&found, &expected, 4e-3);
    // A must be transposed on this device.
    product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 0i32).unwrap();
    let wrong = product.run(&stream, &1.0f32, &0.0f32, [at[0], at[1], to, to]);
    assert_eq!(wrong, Err(CublasError(Status::CUBLAS_STATUS_INVALID_VALUE)));
}

fn device_scalars() {
    let (stream, _blas) = begin();
    let values = stream.clone_htod(&[2.0f32, 3.0, 10.0, 0.5]).unwrap();
    let at = values.device_ptr(&stream).0;
    let result = stream.clone_htod(&[100.0f32]).unwrap();
    let to = result.device_ptr(&stream).0;
    let product = Product::new(Compute::CUBLAS_COMPUTE_32F, F32, [F32; 4], [1, 1, 1]);
    // CUBLASLT_POINTER_MODE_DEVICE.
    product.set(Attribute::CUBLASLT_MATMUL_DESC_POINTER_MODE, 1i32).unwrap();
    let preference = result::create_matmul_pref().unwrap();
    let [la, lb, lc, ld] = product.layouts;
    // SAFETY: all descriptors are alive, and addresses are those of buffers.
    unsafe {
        let chosen = result::get_matmul_algo_heuristic(
            product.handle,
            product.description,
            la,
            lb,
            lc,
            ld,
            preference,
        )
        .unwrap();
        result::matmul(
            product.handle,
            product.description,
            (at + 8) as *const c_void,
            (at + 12) as *const c_void,
            at as *const c_void,
            la,
            (at + 4) as *const c_void,
            lb,
            to as *const c_void,
            lc,
            to as *mut c_void,
            ld,
            &raw const chosen.algo,
            std::ptr::null_mut(),
            0,
            stream.cu_stream().cast(),
        )
        .unwrap();
    }
    assert_eq!(stream.clone_dtoh(&result).unwrap(), [2.0 * 3.0 * 10.0 + 0.5 * 100.0]);
}

/// A product is captured as a node and sees new data when the graph runs again.
fn graph() {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: everything below runs on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let blas = CudaBlasLT::new(stream.clone()).unwrap();
    let mut a = stream.clone_htod(&[1.0f32, 2.0, 3.0, 4.0]).unwrap();
    let b = stream.clone_htod(&[1.0f32, 0.0, 0.0, 1.0]).unwrap();
    let mut c = stream.alloc_zeros::<f32>(4).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(GLOBAL).unwrap();
    let config = configuration([2, 2, 2], [false, false]);
    // SAFETY: the layouts are those of the buffers.
    unsafe { blas.matmul(config, &a, &b, &mut c, None, None) }.unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("a graph");
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [0.0; 4]);
    for values in [[1.0f32, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]] {
        stream.memcpy_htod(&values, &mut a).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), values);
    }
}

/// What cuBLASLt doesn't have, and descriptors that don't fit each other.
fn unsupported() {
    let (stream, _blas) = begin();
    let buffer = stream.alloc_zeros::<f32>(1024).unwrap();
    let at = buffer.device_ptr(&stream).0;
    let refused =
        |product: &Product| product.run(&stream, &1.0f32, &0.0f32, [at, at, at, at]).unwrap_err().0;
    let half = Type::CUDA_R_16F;
    let mixed = Product::new(
        Compute::CUBLAS_COMPUTE_32F,
        F32,
        [half, Type::CUDA_R_16BF, half, half],
        [16, 16, 16],
    );
    assert_eq!(refused(&mixed), Status::CUBLAS_STATUS_NOT_SUPPORTED);
    // fp8 on a device of compute capability 8.0.
    let e4m3 = Type::CUDA_R_8F_E4M3;
    let eight = Product::new(
        Compute::CUBLAS_COMPUTE_32F,
        F32,
        [e4m3, e4m3, Type::CUDA_R_16BF, Type::CUDA_R_16BF],
        [16, 16, 16],
    );
    assert_eq!(refused(&eight), Status::CUBLAS_STATUS_NOT_SUPPORTED);
    // Other sizes of C than the product's.
    let mut wrong = Product::new(Compute::CUBLAS_COMPUTE_32F, F32, [F32; 4], [4, 4, 4]);
    wrong.layouts[2] = result::create_matrix_layout(F32, 4, 5, 4).unwrap();
    assert_eq!(refused(&wrong), Status::CUBLAS_STATUS_INVALID_VALUE);
    // A leading dimension shorter than the columns.
    wrong.layouts[2] = result::create_matrix_layout(F32, 4, 4, 3).unwrap();
    assert_eq!(refused(&wrong), Status::CUBLAS_STATUS_INVALID_VALUE);
    // Batches of one operand alone, and an epilogue for a backward pass.
    let good = Product::new(Compute::CUBLAS_COMPUTE_32F, F32, [F32; 4], [4, 4, 4]);
    good.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, Epilogue::CUBLASLT_EPILOGUE_DGELU).unwrap();
    assert_eq!(refused(&good), Status::CUBLAS_STATUS_NOT_SUPPORTED);
    let count = 3i32;
    // SAFETY: the value is alive.
    unsafe {
        result::set_matrix_layout_attribute(
            good.layouts[0],
            LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
            (&raw const count).cast(),
            4,
        )
    }
    .unwrap();
    assert_eq!(refused(&good), Status::CUBLAS_STATUS_INVALID_VALUE);
    // Attributes have their sizes.
    assert_eq!(
        good.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1i64),
        Err(CublasError(Status::CUBLAS_STATUS_INVALID_VALUE))
    );
    // SAFETY: once is right, twice is the case.
    unsafe {
        result::destroy_handle(good.handle).unwrap();
        assert!(result::destroy_handle(good.handle).is_err());
    }
}

/// The layout says more than the buffer has.
fn too_small() {
    let (stream, blas) = begin();
    let a = stream.clone_htod(&[1.0f32; 15]).unwrap();
    let b = stream.clone_htod(&[1.0f32; 16]).unwrap();
    let mut c = stream.alloc_zeros::<f32>(16).unwrap();
    let config = configuration([4, 4, 4], [false, false]);
    // SAFETY: none: that is the case.
    unsafe { blas.matmul(config, &a, &b, &mut c, None, None) }.unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    std::mem::forget((a, b, c, blas, stream));
}

/// The result lies on an operand.
fn aliased() {
    let (stream, _blas) = begin();
    let buffer = stream.clone_htod(&[1.0f32; 64]).unwrap();
    let at = buffer.device_ptr(&stream).0;
    let product = Product::new(Compute::CUBLAS_COMPUTE_32F, F32, [F32; 4], [4, 4, 4]);
    // In place of C is allowed.
    product.run(&stream, &1.0f32, &1.0f32, [at, at + 64, at + 128, at + 128]).unwrap();
    product.run(&stream, &1.0f32, &0.0f32, [at, at + 64, at + 32, at + 32]).unwrap();
    stream.synchronize().unwrap();
}

fn unwritten() {
    let (stream, blas) = begin();
    // SAFETY: it is not written: that is the case.
    let a = unsafe { stream.alloc::<f32>(16) }.unwrap();
    let b = stream.clone_htod(&[1.0f32; 16]).unwrap();
    let mut c = stream.alloc_zeros::<f32>(16).unwrap();
    let config = configuration([4, 4, 4], [false, false]);
    // SAFETY: the layouts are those of the buffers.
    unsafe { blas.matmul(config, &a, &b, &mut c, None, None) }.unwrap();
    stream.synchronize().unwrap();
}
