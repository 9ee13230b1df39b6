//! AVX2 with FMA and F16C: sixteen lanes are two registers.

use std::arch::x86_64::*;

use super::{Isa, LANES, Op};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The path, where the processor and the operating system support it.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// Evaluates an expression of intrinsics.
macro_rules! avx2 {
    ($expression:expr) => {{
        // SAFETY: an `Avx2` exists only where `detect` found the instructions, and every memory
        // operand comes from a reference to an array of the width that is read or written.
        unsafe { $expression }
    }};
}

/// Applies a two-operand intrinsic to both halves.
macro_rules! both {
    ($intrinsic:ident, $a:expr, $b:expr) => {
        avx2!(Lanes($intrinsic($a.0, $b.0), $intrinsic($a.1, $b.1)))
    };
}

/// Lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(pub(super) __m256, pub(super) __m256);

impl Isa for Avx2 {
    type F32 = Lanes;

    const TILE_ROWS: usize = 6;
    const TILE_PANELS: usize = 1;
    const SINGLE_ROW_PANELS: usize = 2;
    const TILE_QUERIES: usize = 3;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<O: Op>(isa: Avx2, op: O) -> O::Output {
            op.run(isa)
        }
        avx2!(inner(self, op))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        avx2!(Lanes(_mm256_set1_ps(value), _mm256_set1_ps(value)))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        let low = from.as_ptr();
        avx2!(Lanes(_mm256_loadu_ps(low), _mm256_loadu_ps(low.add(8))))
    }

    #[inline(always)]
    fn store(self, value: Lanes, to: &mut [f32; LANES]) {
        let low = to.as_mut_ptr();
        avx2!({
            _mm256_storeu_ps(low, value.0);
            _mm256_storeu_ps(low.add(8), value.1);
        })
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        avx2!(Lanes(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx2!(Lanes(_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)))
    }

    #[inline(always)]
    fn power_of_two(self, a: Lanes) -> Lanes {
        avx2!(Lanes(half_power_of_two(a.0), half_power_of_two(a.1)))
    }

    #[inline(always)]
    fn keep_first(self, a: Lanes, count: usize, fill: f32) -> Lanes {
        avx2!({
            let count = _mm256_set1_ps(count as f32);
            let fill = _mm256_set1_ps(fill);
            let low = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
            let high = _mm256_add_ps(low, _mm256_set1_ps(8.0));
            Lanes(
                _mm256_blendv_ps(fill, a.0, _mm256_cmp_ps::<_CMP_LT_OQ>(low, count)),
                _mm256_blendv_ps(fill, a.1, _mm256_cmp_ps::<_CMP_LT_OQ>(high, count)),
            )
        })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Lanes {
        let low = from.as_ptr().cast::<__m128i>();
        avx2!(Lanes(
            _mm256_cvtph_ps(_mm_loadu_si128(low)),
            _mm256_cvtph_ps(_mm_loadu_si128(low.add(1))),
        ))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes {
        let low = from.as_ptr().cast::<__m128i>();
        avx2!(Lanes(
            half_load_bf16(_mm_loadu_si128(low)),
            half_load_bf16(_mm_loadu_si128(low.add(1))),
        ))
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Lanes {
        avx2!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let high = _mm_unpackhi_epi64(bytes, bytes);
            Lanes(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            )
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, value: &T) {
        let mut line = 0;
        while line < size_of::<T>() {
            let address = std::ptr::from_ref(value).cast::<i8>().wrapping_add(line);
            avx2!(_mm_prefetch::<_MM_HINT_T0>(address));
            line += 64;
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; LANES], nibbles: &[u8; LANES]) -> [Lanes; 2] {
        avx2!({
            let entries = self.load(table);
            let bytes = _mm_loadu_si128(nibbles.as_ptr().cast());
            let first = _mm256_cvtepu8_epi32(bytes);
            let second = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
            let find = |index: __m256i| {
                // A permutation looks at three bits of each index; the fourth chooses the half.
                let low = _mm256_permutevar8x32_ps(entries.0, index);
                let high = _mm256_permutevar8x32_ps(entries.1, index);
                _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
            };
            [
                Lanes(find(first), find(second)),
                Lanes(find(_mm256_srli_epi32::<4>(first)), find(_mm256_srli_epi32::<4>(second))),
            ]
        })
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; LANES]) -> [Lanes; 2] {
        avx2!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let first = _mm256_cvtepu8_epi32(bytes);
            let second = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
            let low = _mm256_set1_epi32(15);
            [
                Lanes(
                    _mm256_cvtepi32_ps(_mm256_and_si256(first, low)),
                    _mm256_cvtepi32_ps(_mm256_and_si256(second, low)),
                ),
                Lanes(
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(first)),
                    _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(second)),
                ),
            ]
        })
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn half_power_of_two(a: __m256) -> __m256 {
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
}

#[inline]
#[target_feature(enable = "avx2")]
fn half_load_bf16(bits: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}
