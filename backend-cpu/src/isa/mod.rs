//! Sixteen lanes of f32, whatever the processor calls them.
//!
//! Kernels are written once, against [`Isa`]; an instruction-set path is a small type that
//! says how sixteen f32 are loaded, multiplied and stored. A value of such a type is a proof
//! that the processor has the instructions: only its `detect` makes one. That keeps
//! kernels free of `unsafe`, which is confined to the paths.
//!
//! All paths do the same operations in the same order. The paths that fuse multiply and add
//! (`avx2`, `avx512`) therefore agree bit for bit; `portable` rounds twice where the target
//! has no fused instruction, and differs in the last bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod delegate;
pub(crate) mod dot;
#[cfg(target_arch = "x86_64")]
mod dot_avx2;
#[cfg(target_arch = "x86_64")]
mod dot_avx512;
mod portable;
pub(crate) mod tiles;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use dot_avx2::AvxVnni;
#[cfg(target_arch = "x86_64")]
pub(crate) use dot_avx512::Avx512Dot;
pub(crate) use portable::Portable;

/// Lanes of a vector, and columns of a weight panel.
pub(crate) const LANES: usize = 16;

/// One instruction-set path. Methods are lane by lane unless they say otherwise.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F32: Copy;

    /// Rows of the register tile of a batched product.
    const TILE_ROWS: usize;
    /// Panels of that tile: `TILE_ROWS * TILE_PANELS` accumulators must fit in registers.
    const TILE_PANELS: usize;
    /// Panels taken together when the batch is one row, to hide the latency of its chain.
    const SINGLE_ROW_PANELS: usize;
    /// Query heads that share one pass over the keys.
    const TILE_QUERIES: usize;

    /// Runs `op` in a function that is compiled with this path's instructions.
    fn vectorize<O: Op>(self, op: O) -> O::Output;

    fn splat(self, value: f32) -> Self::F32;
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    fn store(self, value: Self::F32, to: &mut [f32; LANES]);

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: a NaN in `b` stays.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: a NaN in `b` stays.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even, for magnitudes below 2^22.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `2^a` for an integral `a` between -126 and 127.
    fn power_of_two(self, a: Self::F32) -> Self::F32;
    /// The first `count` lanes of `a`, and `fill` in the others.
    fn keep_first(self, a: Self::F32, count: usize, fill: f32) -> Self::F32;

    /// IEEE half precision.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F32;
    /// The upper half of an f32.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F32;
    /// Signed bytes.
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32;
    /// The low nibbles, 0 to 15, and the high ones.
    fn load_nibbles(self, from: &[u8; LANES]) -> [Self::F32; 2];
    /// The entries of `table` that the low nibbles name, and those that the high ones name.
    fn look_up(self, table: &[f32; LANES], nibbles: &[u8; LANES]) -> [Self::F32; 2];

    /// Asks for a value's memory, which will be read soon. Computes nothing.
    #[inline(always)]
    fn prefetch<T>(self, _: &T) {}

    /// The sum of all lanes, as a tree: lanes 8 apart, then 4, 2, 1.
    #[inline(always)]
    fn sum(self, a: Self::F32) -> f32 {
        self.fold(a, |x, y| x + y)
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self, a: Self::F32) -> f32 {
        self.fold(a, |x, y| if x > y { x } else { y })
    }

    /// All lanes combined as a tree: lanes 8 apart, then 4, 2, 1.
    #[inline(always)]
    fn fold(self, a: Self::F32, combine: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = combine(lanes[lane], lanes[lane + width]);
            }
            width /= 2;
        }
        lanes[0]
    }

    /// Loads up to sixteen values; missing lanes are `fill`.
    #[inline(always)]
    fn load_partial(self, from: &[f32], fill: f32) -> Self::F32 {
        match from.first_chunk() {
            Some(full) => self.load(full),
            None => {
                let mut lanes = [fill; LANES];
                lanes[..from.len()].copy_from_slice(from);
                self.load(&lanes)
            }
        }
    }

    /// Stores the first lanes, as many as `to` has (up to sixteen).
    #[inline(always)]
    fn store_partial(self, value: Self::F32, to: &mut [f32]) {
        match to.first_chunk_mut() {
            Some(full) => self.store(value, full),
            None => {
                let mut lanes = [0.0; LANES];
                self.store(value, &mut lanes);
                let count = to.len();
                to.copy_from_slice(&lanes[..count]);
            }
        }
    }
}

/// A piece of work that is generic over the path. What it calls must be `#[inline(always)]`, so
/// that all of it is compiled inside [`Isa::vectorize`].
pub(crate) trait Op {
    /// What it computes.
    type Output;
    /// Does the work.
    fn run<S: Isa>(self, isa: S) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Simd;

    /// Runs `op` on every path that this processor has.
    fn on_every_path<O: Op + Clone>(op: &O) -> Vec<(Simd, O::Output)> {
        Simd::available().map(|simd| (simd, simd.run(op.clone()))).collect()
    }

    #[derive(Clone)]
    struct EveryOperation;

    impl Op for EveryOperation {
        type Output = Vec<[f32; LANES]>;

        fn run<S: Isa>(self, isa: S) -> Self::Output {
            let a: [f32; LANES] = std::array::from_fn(|i| i as f32 * 1.5 - 7.0);
            let b: [f32; LANES] = std::array::from_fn(|i| 4.0 - i as f32 * 0.75);
            let (x, y) = (isa.load(&a), isa.load(&b));
            let half: [u16; LANES] =
                std::array::from_fn(|i| half::f16::from_f32(i as f32 * -0.37).to_bits());
            let brain: [u16; LANES] =
                std::array::from_fn(|i| half::bf16::from_f32(i as f32 * 3.7).to_bits());
            let bytes: [u8; LANES] = std::array::from_fn(|i| (i * 17 + 3) as u8);
            let signed: [i8; LANES] = std::array::from_fn(|i| (i as i8 - 8).wrapping_mul(16));
            let integral: [f32; LANES] = std::array::from_fn(|i| i as f32 * 16.0 - 126.0);
            let [low, high] = isa.load_nibbles(&bytes);
            let mut out: Vec<[f32; LANES]> = Vec::new();
            let mut push = |v: S::F32| {
                let mut lanes = [0.0; LANES];
                isa.store(v, &mut lanes);
                out.push(lanes);
            };
            push(isa.add(x, y));
            push(isa.sub(x, y));
            push(isa.mul(x, y));
            push(isa.div(x, isa.splat(3.0)));
            push(isa.mul_add(x, y, isa.splat(2.0)));
            push(isa.max(x, y));
            push(isa.min(x, y));
            push(isa.round(x));
            push(isa.power_of_two(isa.load(&integral)));
            push(isa.keep_first(x, 5, -1.0));
            push(isa.keep_first(x, 16, -1.0));
            push(isa.keep_first(x, 0, -1.0));
            push(isa.load_f16(&half));
            push(isa.load_bf16(&brain));
            push(isa.load_i8(&signed));
            push(low);
            push(high);
            let [low, high] = isa.look_up(&a, &bytes);
            push(low);
            push(high);
            push(isa.splat(isa.sum(x)));
            push(isa.splat(isa.greatest(isa.mul(x, y))));
            push(isa.load_partial(&a[..3], 9.0));
            let mut some = [1.0; 5];
            isa.store_partial(x, &mut some);
            push(isa.load_partial(&some, 0.0));
            out
        }
    }

    #[test]
    fn every_path_computes_the_same_lanes() {
        let results = on_every_path(&EveryOperation);
        let reference = &results[0].1;
        // Spot checks against values worked out by hand.
        assert_eq!(reference[7][1], -6.0); // round(-5.5), ties to even
        assert_eq!(reference[8][0], 2f32.powi(-126));
        assert_eq!(reference[9][5], -1.0);
        assert_eq!(reference[15][1], 4.0); // 20 = 0x14
        assert_eq!(reference[16][1], 1.0);
        assert_eq!(reference[17][0], -2.5); // the table's entry 3 of 3 = 0x03
        assert_eq!(reference[18][15], -7.0); // lane 15 is 0x02: entry 0
        for (simd, lanes) in &results {
            assert_eq!(lanes, reference, "{simd:?}");
        }
    }

    #[test]
    fn not_a_number_survives_max_and_min_in_the_second_operand() {
        #[derive(Clone)]
        struct Clamp;
        impl Op for Clamp {
            type Output = f32;
            fn run<S: Isa>(self, isa: S) -> f32 {
                let nan = isa.splat(f32::NAN);
                isa.sum(isa.min(isa.splat(1.0), isa.max(isa.splat(0.0), nan)))
            }
        }
        for (simd, value) in on_every_path(&Clamp) {
            assert!(value.is_nan(), "{simd:?}");
        }
    }
}
