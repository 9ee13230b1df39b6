//! Dot products with AVX2, and with AVX-VNNI: sixteen columns are two registers.

use std::arch::x86_64::*;

use super::{
    Avx2, LANES,
    avx2::Lanes,
    delegate::delegate_isa,
    dot::{DotIsa, DotOp, PAIRS, QUADS},
};

/// Proof that the processor has AVX-VNNI beside what [`Avx2`] needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni(pub(crate) Avx2);

impl AvxVnni {
    /// The path, where the processor and the operating system support it.
    pub(crate) fn detect() -> Option<Self> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(Self)
    }
}

delegate_isa!(AvxVnni => Avx2, "avxvnni,avx2,fma,f16c");

/// Evaluates an expression of intrinsics.
macro_rules! intrinsics {
    ($expression:expr) => {{
        // SAFETY: values of the paths exist only where `detect` found the instructions, and every
        // memory operand comes from a reference to an array of the width that is read or written.
        unsafe { $expression }
    }};
}

/// Columns 0 to 7 and 8 to 15.
type Halves = [__m256i; 2];

#[inline]
#[target_feature(enable = "avx2")]
fn load(from: *const u8) -> Halves {
    // SAFETY: the callers pass arrays of 64 bytes.
    unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
}

/// Eight columns of `dot_pairs`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dot_half(sum: __m256, weights: __m256i, inputs: u32) -> __m256 {
    let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    let first = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(weights));
    let second = _mm256_castsi256_ps(_mm256_and_si256(weights, upper));
    let sum = _mm256_fmadd_ps(first, _mm256_set1_ps(f32::from_bits(inputs << 16)), sum);
    _mm256_fmadd_ps(second, _mm256_set1_ps(f32::from_bits(inputs & 0xffff_0000)), sum)
}

/// Eight columns of `dot_nibbles`: each product of a pair is below 2^12, so that four of them fit in
/// sixteen bits.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles_half(sum: __m256i, weights: [__m256i; 2], inputs: [i32; 2]) -> __m256i {
    let first = _mm256_maddubs_epi16(weights[0], _mm256_set1_epi32(inputs[0]));
    let second = _mm256_maddubs_epi16(weights[1], _mm256_set1_epi32(inputs[1]));
    let both = _mm256_add_epi16(first, second);
    _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)))
}

/// Eight values rounded to bf16, in the lower halves.
#[inline]
#[target_feature(enable = "avx2")]
fn round_half(value: __m256) -> __m256i {
    let bits = _mm256_castps_si256(value);
    let upper = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
    let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
    _mm256_blendv_epi8(rounded, quiet, is_nan)
}

/// What both paths have in common.
macro_rules! common {
    ($features:literal) => {
        type Bytes = Halves;
        type I32 = Halves;
        type Pairs = Halves;

        const BYTE_ROWS: usize = 2;
        const PAIR_ROWS: usize = 4;

        #[inline(always)]
        fn vectorize_dot<O: DotOp>(self, op: O) -> O::Output {
            #[target_feature(enable = $features)]
            fn inner<S: DotIsa, O: DotOp>(isa: S, op: O) -> O::Output {
                op.run(isa)
            }
            intrinsics!(inner(self, op))
        }

        #[inline(always)]
        fn splat_i32(self, value: i32) -> Halves {
            intrinsics!([_mm256_set1_epi32(value); 2])
        }

        #[inline(always)]
        fn load_i32(self, from: &[i32; LANES]) -> Halves {
            intrinsics!(load(from.as_ptr().cast()))
        }

        #[inline(always)]
        fn add_i32(self, a: Halves, b: Halves) -> Halves {
            intrinsics!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
        }

        #[inline(always)]
        fn to_f32(self, value: Halves) -> Lanes {
            intrinsics!(Lanes(_mm256_cvtepi32_ps(value[0]), _mm256_cvtepi32_ps(value[1])))
        }

        #[inline(always)]
        fn load_bytes(self, from: &[u8; QUADS]) -> Halves {
            intrinsics!(load(from.as_ptr()))
        }

        #[inline(always)]
        fn load_nibble_bytes(self, from: &[u8; QUADS]) -> [Halves; 2] {
            intrinsics!({
                let [first, second] = load(from.as_ptr());
                let mask = _mm256_set1_epi8(15);
                [
                    [_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)],
                    [
                        _mm256_and_si256(_mm256_srli_epi16::<4>(first), mask),
                        _mm256_and_si256(_mm256_srli_epi16::<4>(second), mask),
                    ],
                ]
            })
        }

        #[inline(always)]
        fn load_pairs(self, from: &[u16; PAIRS]) -> Halves {
            intrinsics!(load(from.as_ptr().cast()))
        }

        #[inline(always)]
        fn dot_pairs(self, sum: Lanes, weights: Halves, inputs: u32) -> Lanes {
            intrinsics!(Lanes(
                dot_half(sum.0, weights[0], inputs),
                dot_half(sum.1, weights[1], inputs),
            ))
        }

        #[inline(always)]
        fn store_i8(self, value: Lanes, to: &mut [i8; LANES]) {
            intrinsics!({
                let low = _mm256_cvtps_epi32(value.0);
                let high = _mm256_cvtps_epi32(value.1);
                // Packing works in halves of registers: put the quarters in order.
                let words = _mm256_packs_epi32(low, high);
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                let bytes = _mm_packs_epi16(
                    _mm256_castsi256_si128(words),
                    _mm256_extracti128_si256::<1>(words),
                );
                _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
            })
        }

        #[inline(always)]
        fn store_bf16(self, value: Lanes, to: &mut [u16; LANES]) {
            intrinsics!({
                let words = _mm256_packus_epi32(round_half(value.0), round_half(value.1));
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), words);
            })
        }
    };
}

impl DotIsa for Avx2 {
    common!("avx2,fma,f16c");

    #[inline(always)]
    fn dot_nibbles(self, sum: Halves, weights: [Halves; 2], inputs: [i32; 2]) -> Halves {
        // Each product of a pair is below 2^12: four of them fit in sixteen bits.
        intrinsics!([
            nibbles_half(sum[0], [weights[0][0], weights[1][0]], inputs),
            nibbles_half(sum[1], [weights[0][1], weights[1][1]], inputs),
        ])
    }

    #[inline(always)]
    fn dot_bytes(self, sum: Halves, weights: [Halves; 2], inputs: [i32; 2]) -> Halves {
        // Pairs of products of whole bytes would saturate: twice the half, and the lowest bit.
        intrinsics!({
            let mut sum = sum;
            for (weights, inputs) in weights.into_iter().zip(inputs) {
                let inputs = _mm256_set1_epi32(inputs);
                for (sum, weights) in sum.iter_mut().zip(weights) {
                    let upper = _mm256_srli_epi16::<1>(weights);
                    let half = _mm256_and_si256(upper, _mm256_set1_epi8(0x7f));
                    let bit = _mm256_and_si256(weights, _mm256_set1_epi8(1));
                    let half = _mm256_maddubs_epi16(half, inputs);
                    let bit = _mm256_maddubs_epi16(bit, inputs);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(half, _mm256_set1_epi16(2)));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(bit, _mm256_set1_epi16(1)));
                }
            }
            sum
        })
    }
}

impl DotIsa for AvxVnni {
    common!("avxvnni,avx2,fma,f16c");

    #[inline(always)]
    fn dot_nibbles(self, sum: Halves, weights: [Halves; 2], inputs: [i32; 2]) -> Halves {
        self.dot_bytes(sum, weights, inputs)
    }

    #[inline(always)]
    fn dot_bytes(self, sum: Halves, weights: [Halves; 2], inputs: [i32; 2]) -> Halves {
        intrinsics!({
            let mut sum = sum;
            for (weights, inputs) in weights.into_iter().zip(inputs) {
                let inputs = _mm256_set1_epi32(inputs);
                for (sum, weights) in sum.iter_mut().zip(weights) {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, weights, inputs);
                }
            }
            sum
        })
    }
}
