//! Dot products with AVX-512: with BW alone, and with VNNI and BF16.

use std::arch::x86_64::*;

use super::{
    Avx512, LANES,
    delegate::delegate_isa,
    dot::{DotIsa, DotOp, PAIRS, QUADS},
};

/// Proof that the processor has AVX-512 VNNI and BF16 beside what [`Avx512`] needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Dot(pub(crate) Avx512);

impl Avx512Dot {
    /// The path, where the processor and the operating system support it.
    pub(crate) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16");
        Avx512::detect().filter(|_| found).map(Self)
    }
}

delegate_isa!(Avx512Dot => Avx512, "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c");

/// Evaluates an expression of intrinsics.
macro_rules! intrinsics {
    ($expression:expr) => {{
        // SAFETY: values of the paths exist only where `detect` found the instructions, and every
        // memory operand comes from a reference to an array of the width that is read or written.
        unsafe { $expression }
    }};
}

/// What both paths have in common.
macro_rules! common {
    ($features:literal) => {
        type Bytes = __m512i;
        type I32 = __m512i;
        type Pairs = __m512i;

        const BYTE_ROWS: usize = 12;
        const PAIR_ROWS: usize = 12;

        #[inline(always)]
        fn vectorize_dot<O: DotOp>(self, op: O) -> O::Output {
            #[target_feature(enable = $features)]
            fn inner<S: DotIsa, O: DotOp>(isa: S, op: O) -> O::Output {
                op.run(isa)
            }
            intrinsics!(inner(self, op))
        }

        #[inline(always)]
        fn splat_i32(self, value: i32) -> __m512i {
            intrinsics!(_mm512_set1_epi32(value))
        }

        #[inline(always)]
        fn load_i32(self, from: &[i32; LANES]) -> __m512i {
            intrinsics!(_mm512_loadu_si512(from.as_ptr().cast()))
        }

        #[inline(always)]
        fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
            intrinsics!(_mm512_add_epi32(a, b))
        }

        #[inline(always)]
        fn to_f32(self, value: __m512i) -> __m512 {
            intrinsics!(_mm512_cvtepi32_ps(value))
        }

        #[inline(always)]
        fn load_bytes(self, from: &[u8; QUADS]) -> __m512i {
            intrinsics!(_mm512_loadu_si512(from.as_ptr().cast()))
        }

        #[inline(always)]
        fn load_nibble_bytes(self, from: &[u8; QUADS]) -> [__m512i; 2] {
            intrinsics!({
                let bytes = _mm512_loadu_si512(from.as_ptr().cast());
                let mask = _mm512_set1_epi8(15);
                [
                    _mm512_and_si512(bytes, mask),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask),
                ]
            })
        }

        #[inline(always)]
        fn load_pairs(self, from: &[u16; PAIRS]) -> __m512i {
            intrinsics!(_mm512_loadu_si512(from.as_ptr().cast()))
        }

        #[inline(always)]
        fn greatest_of_all(self, a: __m512) -> f32 {
            intrinsics!(_mm512_reduce_max_ps(a))
        }

        #[inline(always)]
        fn sum_of_all(self, a: __m512) -> f32 {
            intrinsics!(_mm512_reduce_add_ps(a))
        }

        #[inline(always)]
        fn store_i8(self, value: __m512, to: &mut [i8; LANES]) {
            intrinsics!({
                let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value));
                _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
            })
        }

        #[inline(always)]
        fn store_bf16(self, value: __m512, to: &mut [u16; LANES]) {
            intrinsics!({
                let bits = _mm512_castps_si512(value);
                let upper = _mm512_srli_epi32::<16>(bits);
                let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
                let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
                let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
                let quiet = _mm512_set1_epi32(0x40);
                let bits = _mm512_mask_or_epi32(rounded, is_nan, upper, quiet);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(bits));
            })
        }
    };
}

impl DotIsa for Avx512 {
    common!("avx512f,avx512bw,avx512vl,avx2,fma,f16c");

    #[inline(always)]
    fn dot_nibbles(self, sum: __m512i, weights: [__m512i; 2], inputs: [i32; 2]) -> __m512i {
        // Each product of a pair is below 2^12: four of them fit in sixteen bits.
        intrinsics!({
            let first = _mm512_maddubs_epi16(weights[0], _mm512_set1_epi32(inputs[0]));
            let second = _mm512_maddubs_epi16(weights[1], _mm512_set1_epi32(inputs[1]));
            let both = _mm512_add_epi16(first, second);
            _mm512_add_epi32(sum, _mm512_madd_epi16(both, _mm512_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: [__m512i; 2], inputs: [i32; 2]) -> __m512i {
        // Pairs of products of whole bytes would saturate: twice the half, and the lowest bit.
        intrinsics!({
            let mut sum = sum;
            for index in 0..2 {
                let inputs = _mm512_set1_epi32(inputs[index]);
                let upper = _mm512_srli_epi16::<1>(weights[index]);
                let half = _mm512_and_si512(upper, _mm512_set1_epi8(0x7f));
                let bit = _mm512_and_si512(weights[index], _mm512_set1_epi8(1));
                let half = _mm512_maddubs_epi16(half, inputs);
                let bit = _mm512_maddubs_epi16(bit, inputs);
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(half, _mm512_set1_epi16(2)));
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(bit, _mm512_set1_epi16(1)));
            }
            sum
        })
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, weights: __m512i, inputs: u32) -> __m512 {
        intrinsics!({
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights));
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let second = _mm512_castsi512_ps(_mm512_and_si512(weights, upper));
            let sum = _mm512_fmadd_ps(first, _mm512_set1_ps(f32::from_bits(inputs << 16)), sum);
            let input = f32::from_bits(inputs & 0xffff_0000);
            _mm512_fmadd_ps(second, _mm512_set1_ps(input), sum)
        })
    }
}

impl DotIsa for Avx512Dot {
    common!("avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c");

    #[inline(always)]
    fn dot_nibbles(self, sum: __m512i, weights: [__m512i; 2], inputs: [i32; 2]) -> __m512i {
        self.dot_bytes(sum, weights, inputs)
    }

    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: [__m512i; 2], inputs: [i32; 2]) -> __m512i {
        intrinsics!({
            let sum = _mm512_dpbusd_epi32(sum, weights[0], _mm512_set1_epi32(inputs[0]));
            _mm512_dpbusd_epi32(sum, weights[1], _mm512_set1_epi32(inputs[1]))
        })
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, weights: __m512i, inputs: u32) -> __m512 {
        intrinsics!({
            let inputs = _mm512_set1_epi32(inputs.cast_signed());
            // Only the type changes: 32 bf16 are 512 bits.
            let weights = std::mem::transmute::<__m512i, __m512bh>(weights);
            let inputs = std::mem::transmute::<__m512i, __m512bh>(inputs);
            _mm512_dpbf16_ps(sum, weights, inputs)
        })
    }
}
