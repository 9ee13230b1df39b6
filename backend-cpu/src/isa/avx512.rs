//! AVX-512 (F, BW, VL): sixteen lanes are one register.

use std::arch::x86_64::*;

use super::{Isa, LANES, Op};

/// Proof that the processor has AVX-512 F, BW and VL, and what `avx2` needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The path, where the processor and the operating system support it.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && super::Avx2::detect().is_some();
        found.then_some(Self(()))
    }
}

/// Evaluates an expression of intrinsics.
macro_rules! avx512 {
    ($expression:expr) => {{
        // SAFETY: an `Avx512` exists only where `detect` found the instructions, and every memory
        // operand comes from a reference to an array of the width that is read or written.
        unsafe { $expression }
    }};
}

impl Isa for Avx512 {
    type F32 = __m512;

    const TILE_ROWS: usize = 8;
    const TILE_PANELS: usize = 2;
    const SINGLE_ROW_PANELS: usize = 4;
    const TILE_QUERIES: usize = 4;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
        fn inner<O: Op>(isa: Avx512, op: O) -> O::Output {
            op.run(isa)
        }
        avx512!(inner(self, op))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        avx512!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        avx512!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        avx512!(_mm512_storeu_ps(to.as_mut_ptr(), value))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx512!(_mm512_roundscale_ps::<NEAREST>(a))
    }

    #[inline(always)]
    fn power_of_two(self, a: __m512) -> __m512 {
        avx512!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }

    #[inline(always)]
    fn keep_first(self, a: __m512, count: usize, fill: f32) -> __m512 {
        let mask = if count >= LANES { u16::MAX } else { (1 << count) - 1 };
        avx512!(_mm512_mask_mov_ps(_mm512_set1_ps(fill), mask, a))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        avx512!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        avx512!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }

    #[inline(always)]
    fn prefetch<T>(self, value: &T) {
        let mut line = 0;
        while line < size_of::<T>() {
            let address = std::ptr::from_ref(value).cast::<i8>().wrapping_add(line);
            avx512!(_mm_prefetch::<_MM_HINT_T0>(address));
            line += 64;
        }
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; LANES]) -> [__m512; 2] {
        const DIGITS: [f32; LANES] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        self.look_up(&DIGITS, from)
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; LANES], nibbles: &[u8; LANES]) -> [__m512; 2] {
        avx512!({
            // A permutation of sixteen floats looks at four bits of each index: it is the
            // conversion, and the mask as well.
            let table = _mm512_loadu_ps(table.as_ptr());
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(nibbles.as_ptr().cast()));
            let high = _mm512_srli_epi32::<4>(bytes);
            [_mm512_permutexvar_ps(bytes, table), _mm512_permutexvar_ps(high, table)]
        })
    }
}
