//! The stand-in for cuBLASLt against plain products, over random layouts.

use std::sync::{Arc, Mutex};

use cuda_emulator::check::{Problem, Report};
use cuda_emulator::driver::blas::{Attributes, BlasAnswer, BlasStatus, MatmulCall};
use cuda_emulator::driver::{Config, Driver, HostAddress};
use proptest::prelude::*;

// Numbers of `cublasLt.h` and `library_types.h`.
const COMPUTE_32F: u32 = 68;
const F32: u32 = 0;
const BF16: u32 = 14;
const E4M3: u32 = 28;
const POINTER_MODE: u32 = 2;
const TRANSPOSE: [u32; 2] = [3, 4];
const EPILOGUE: u32 = 7;
const BIAS: u32 = 8;
const BIAS_STRIDE: u32 = 10;
const ALPHA_STRIDE: u32 = 14;
const D_SCALE: u32 = 20;
const AMAX_D: u32 = 21;
const ORDER: u32 = 1;
const BATCHES: u32 = 5;
const BATCH_STRIDE: u32 = 6;

/// A device with a library handle, and what is reported.
struct Bench {
    driver: Driver,
    blas: u64,
    reports: Arc<Mutex<Vec<Report>>>,
}

impl Bench {
    fn new(capability: u32) -> Self {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        let config = Config { capability, ..Config::default() };
        let keep = move |report: &Report| sink.lock().unwrap().push(report.clone());
        let mut driver = Driver::new(config, Box::new(keep));
        driver.initialize(0).unwrap();
        driver.retain_primary(0).unwrap();
        let blas = driver.create_blas(0);
        Self { driver, blas, reports }
    }

    fn upload<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.driver.allocate(0, bytes.len().max(1) as u64).unwrap();
        let from = HostAddress(bytes.as_ptr() as usize);
        // SAFETY: the bytes are there.
        unsafe { self.driver.upload(0, address, from, bytes.len() as u64) }.unwrap();
        address
    }

    fn download<T: bytemuck::Pod>(&mut self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        let to = HostAddress(bytes.as_mut_ptr() as usize);
        let size = bytes.len() as u64;
        // SAFETY: there is room.
        unsafe { self.driver.download(0, to, address, size) }.unwrap();
        values
    }

    /// Queues a product. The scalars are host addresses, or those of the device.
    fn matmul(
        &mut self,
        description: &Attributes,
        layouts: [&Attributes; 4],
        scalars: [u64; 2],
        operands: [u64; 4],
    ) -> BlasAnswer<()> {
        let description = self.driver.create_descriptor(description.clone());
        let layouts = layouts.map(|layout| self.driver.create_descriptor(layout.clone()));
        let [alpha, beta] = scalars;
        let call = MatmulCall {
            handle: self.blas,
            description,
            alpha,
            beta,
            operands,
            layouts,
            workspace: (0, 0),
            stream: 0,
        };
        // SAFETY: scalars of the host are alive.
        unsafe { self.driver.matmul(0, &call) }
    }
}

/// The host address of a scalar.
fn host<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn set<T: bytemuck::NoUninit>(attributes: &mut Attributes, number: u32, value: T) {
    attributes.set(number, bytemuck::bytes_of(&value)).unwrap();
}

/// A matrix in a buffer of its own, with gaps.
#[derive(Debug, Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    row_major: bool,
    gap: usize,
    batches: usize,
    /// Elements between batches that belong to none.
    apart: usize,
}

impl Matrix {
    fn leading(&self) -> usize {
        self.gap + if self.row_major { self.columns } else { self.rows }
    }

    fn stride(&self) -> usize {
        self.apart + self.leading() * if self.row_major { self.rows } else { self.columns }
    }

    fn at(&self, batch: usize, row: usize, column: usize) -> usize {
        let (line, place) = if self.row_major { (row, column) } else { (column, row) };
        batch * self.stride() + line * self.leading() + place
    }

    fn layout(&self, element: u32) -> Attributes {
        let (rows, columns) = (self.rows as u64, self.columns as u64);
        let mut layout = Attributes::layout(element, rows, columns, self.leading() as i64);
        set(&mut layout, ORDER, i32::from(self.row_major));
        set(&mut layout, BATCHES, self.batches as i32);
        set(&mut layout, BATCH_STRIDE, self.stride() as i64);
        layout
    }

    /// Whole numbers, so that sums are exact in any order. Gaps hold NaN.
    fn fill(&self, seed: usize) -> Vec<f32> {
        let mut values = vec![f32::NAN; self.stride() * self.batches];
        for batch in 0..self.batches {
            for row in 0..self.rows {
                for column in 0..self.columns {
                    let mixed = (batch * 31 + row * 7 + column * 13 + seed) * 2_654_435_761;
                    values[self.at(batch, row, column)] = (mixed >> 7 & 15) as f32 - 7.0;
                }
            }
        }
        values
    }
}

#[derive(Debug, Clone)]
struct Case {
    sizes: [usize; 3],
    transposed: [bool; 2],
    row_major: [bool; 3],
    gaps: [usize; 3],
    batches: usize,
    apart: usize,
    alpha: i8,
    beta: i8,
    bias: bool,
    relu: bool,
    /// Alpha is a vector of the device, one value for each row.
    vector: bool,
}

fn case() -> impl Strategy<Value = Case> {
    (
        (prop::array::uniform3(1..20usize), any::<[bool; 2]>(), any::<[bool; 3]>()),
        (prop::array::uniform3(0..3usize), 1..4usize, 0..5usize),
        (-3..4i8, -3..4i8, any::<bool>(), any::<bool>(), any::<bool>()),
    )
        .prop_map(|((sizes, transposed, row_major), (gaps, batches, apart), scalars)| {
            let (alpha, beta, bias, relu, vector) = scalars;
            Case {
                sizes,
                transposed,
                row_major,
                gaps,
                batches,
                apart,
                alpha,
                beta,
                bias,
                relu,
                vector,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn products_follow_their_layouts_and_leave_gaps_alone(case in case()) {
        let [m, n, k] = case.sizes;
        let matrix = |index: usize, rows, columns| Matrix {
            rows,
            columns,
            row_major: case.row_major[index],
            gap: case.gaps[index],
            batches: case.batches,
            apart: case.apart,
        };
        let turn = |transposed: bool, a, b| if transposed { (b, a) } else { (a, b) };
        let (rows, columns) = turn(case.transposed[0], m, k);
        let a = matrix(0, rows, columns);
        let (rows, columns) = turn(case.transposed[1], k, n);
        let b = matrix(1, rows, columns);
        let d = matrix(2, m, n);
        let mut bench = Bench::new(80);
        let (av, bv, cv) = (a.fill(1), b.fill(2), d.fill(3));
        let bias: Vec<f32> = (0..m * case.batches).map(|i| (i % 9) as f32 - 4.0).collect();
        let alphas: Vec<f32> =
            (0..m * case.batches).map(|i| f32::from(case.alpha) + (i % 3) as f32).collect();
        let (a_at, b_at, d_at) = (bench.upload(&av), bench.upload(&bv), bench.upload(&cv));

        let mut description = Attributes::matmul(COMPUTE_32F, F32);
        for (number, transposed) in TRANSPOSE.into_iter().zip(case.transposed) {
            set(&mut description, number, i32::from(transposed));
        }
        let bits = u32::from(case.relu) * 2 + u32::from(case.bias) * 4;
        set(&mut description, EPILOGUE, bits.max(1));
        if case.bias {
            let at = bench.upload(&bias);
            set(&mut description, BIAS, at);
            set(&mut description, BIAS_STRIDE, m as i64);
        }
        let (alpha, beta) = (f32::from(case.alpha), f32::from(case.beta));
        let mut scalars = [host(&alpha), host(&beta)];
        if case.vector {
            // CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST.
            set(&mut description, POINTER_MODE, 4i32);
            set(&mut description, ALPHA_STRIDE, m as i64);
            scalars[0] = bench.upload(&alphas);
        }
        let layout = d.layout(F32);
        bench
            .matmul(
                &description,
                [&a.layout(F32), &b.layout(F32), &layout, &layout],
                scalars,
                [a_at, b_at, d_at, d_at],
            )
            .unwrap();
        let found: Vec<f32> = bench.download(d_at, cv.len());

        let mut expected = cv.clone();
        for batch in 0..case.batches {
            for row in 0..m {
                for column in 0..n {
                    let sum: f32 = (0..k)
                        .map(|i| {
                            let (x, y) = turn(case.transposed[0], row, i);
                            let (z, w) = turn(case.transposed[1], i, column);
                            av[a.at(batch, x, y)] * bv[b.at(batch, z, w)]
                        })
                        .sum();
                    let place = d.at(batch, row, column);
                    let scale = if case.vector { alphas[batch * m + row] } else { alpha };
                    let added = if case.bias { bias[batch * m + row] } else { 0.0 };
                    let value = scale * sum + beta * cv[place] + added;
                    expected[place] = if case.relu { value.max(0.0) } else { value };
                }
            }
        }
        let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
        prop_assert!(found.iter().zip(&expected).all(same), "{found:?}\n{expected:?}");
        let reports = bench.reports.lock().unwrap();
        prop_assert!(reports.is_empty(), "{reports:?}");
    }
}

#[test]
fn a_result_between_the_columns_of_an_operand_overlaps_nothing() {
    let mut bench = Bench::new(80);
    // Columns of 4, 8 apart: A in the first halves, D in the second.
    let both = bench.upload(&[1.0f32; 32]);
    let b = bench.upload(&[1.0f32; 16]);
    let layout = Attributes::layout(F32, 4, 4, 8);
    let plain = Attributes::layout(F32, 4, 4, 4);
    let description = Attributes::matmul(COMPUTE_32F, F32);
    let (one, zero) = (1f32, 0f32);
    let run = |bench: &mut Bench, d: u64| {
        bench
            .matmul(
                &description,
                [&layout, &plain, &layout, &layout],
                [host(&one), host(&zero)],
                [both, b, d, d],
            )
            .unwrap();
        bench.driver.synchronize(0).unwrap();
    };
    run(&mut bench, both + 16);
    assert!(bench.reports.lock().unwrap().is_empty());
    run(&mut bench, both);
    let reports = bench.reports.lock().unwrap();
    let [Report { problem: Problem::Overlap { what }, .. }] = &reports[..] else {
        panic!("{reports:?}");
    };
    assert_eq!(what, "D and A");
}

#[test]
fn an_operand_that_reaches_out_of_its_memory_is_refused_before_it_is_compared() {
    let mut bench = Bench::new(80);
    let (a, d) = (bench.upload(&[1.0f32; 4]), bench.upload(&[0f32; 4]));
    // Lines of one element, more than memory could list.
    let long = {
        let mut long = Attributes::layout(F32, 1 << 20, 1, 1);
        set(&mut long, ORDER, 1i32);
        set(&mut long, BATCHES, (1i32 << 20) - 1);
        set(&mut long, BATCH_STRIDE, 1i64);
        long
    };
    let one_by_one = {
        let mut one = Attributes::layout(F32, 1, 1, 1);
        set(&mut one, BATCHES, (1i32 << 20) - 1);
        set(&mut one, BATCH_STRIDE, 1i64);
        one
    };
    let description = Attributes::matmul(COMPUTE_32F, F32);
    let (one, zero) = (1f32, 0f32);
    let scalars = [host(&one), host(&zero)];
    let queued =
        bench.matmul(&description, [&long, &one_by_one, &long, &long], scalars, [a, a, d, d]);
    queued.unwrap();
    assert!(bench.driver.synchronize(0).is_err());
    let reports = bench.reports.lock().unwrap();
    let [Report { problem: Problem::OutOfBounds { access, .. }, site, .. }] = &reports[..] else {
        panic!("{reports:?}");
    };
    assert_eq!((*access, site.instruction.as_str()), ("load", "A"));
}

#[test]
fn fp8_results_are_scaled_clamped_and_their_largest_is_told() {
    let mut bench = Bench::new(90);
    // 1.0 everywhere: sums of 16.
    let operand = bench.upload(&[0x38u8; 256]);
    let c = bench.upload(&[0u16; 256]);
    let d = bench.upload(&[0u8; 256]);
    let (scale, largest) = (bench.upload(&[100.0f32]), bench.upload(&[0f32]));
    let mut description = Attributes::matmul(COMPUTE_32F, F32);
    set(&mut description, TRANSPOSE[0], 1i32);
    set(&mut description, D_SCALE, scale);
    set(&mut description, AMAX_D, largest);
    let eight = Attributes::layout(E4M3, 16, 16, 16);
    let half = Attributes::layout(BF16, 16, 16, 16);
    let (one, zero) = (1f32, 0f32);
    let scalars = [host(&one), host(&zero)];
    bench
        .matmul(&description, [&eight, &eight, &half, &eight], scalars, [operand, operand, c, d])
        .unwrap();
    // 1600 is more than E4M3 has: 448.
    assert_eq!(bench.download::<u8>(d, 256), [0x7e; 256]);
    // The largest before scaling.
    assert_eq!(bench.download::<f32>(largest, 1), [16.0]);
}

#[test]
fn addresses_and_layouts_that_cannot_be_are_refused_before_anything_runs() {
    let mut bench = Bench::new(80);
    let good = bench.upload(&[1.0f32; 64]);
    let description = Attributes::matmul(COMPUTE_32F, F32);
    let layout = Attributes::layout(F32, 4, 4, 4);
    let (one, zero) = (1f32, 0f32);
    let scalars = [host(&one), host(&zero)];
    let invalid = Err(BlasStatus::INVALID_VALUE);
    for wrong in [0, good + 2, u64::MAX - 3, 1 << 60] {
        for index in [0, 1, 3] {
            let mut operands = [good; 4];
            operands[index] = wrong;
            let found = bench.matmul(&description, [&layout; 4], scalars, operands);
            assert_eq!(found, invalid, "{wrong:#x} as operand {index}");
        }
    }
    for (rows, columns, leading) in
        [(0, 4, 4), (4, 0, 4), (4, 4, 3), (4, 4, -1), (u64::MAX, 4, i64::MAX), (4, u64::MAX, 4)]
    {
        let bad = Attributes::layout(F32, rows, columns, leading);
        let found = bench.matmul(&description, [&bad; 4], scalars, [good; 4]);
        assert_eq!(found, invalid, "{rows} {columns} {leading}");
    }
    let mut bad = layout.clone();
    set(&mut bad, BATCHES, i32::MAX);
    set(&mut bad, BATCH_STRIDE, i64::MAX);
    assert_eq!(bench.matmul(&description, [&bad; 4], scalars, [good; 4]), invalid);
    let none = bench.matmul(&description, [&layout; 4], [0, host(&zero)], [good; 4]);
    assert_eq!(none, invalid);
    assert_eq!(bench.driver.synchronize(0), Ok(()));
}
