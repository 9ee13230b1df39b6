// Weights in blocks of quants, as `layout.rs` packs them for the device, and the numbers that they stand for.
//
// A *chunk* is 16 neighbours of a row for each of 4 rows that follow each other: what a thread decodes. A matrix of
// [rows][inner] has its chunks in the order [rows / 4][inner / 16], and lies in *planes*: arrays with one record for each
// chunk, or for 2, 4 or 16 chunks of the same 4 rows. The lanes of a warp take chunks that follow each other, so each
// load of a warp reads whole 32-byte sectors, and no sector twice.
#pragma once
#include "common.cuh"

// LOW, HIGH: bits of a quant in the low planes and in the high one. GROUP: chunks that share a scale.
#if defined(FORMAT_Q4_0) || defined(FORMAT_Q4_1) || defined(FORMAT_IQ4_NL) || defined(FORMAT_MXFP4) || defined(FORMAT_U4)
constexpr int LOW = 4, HIGH = 0;
#elif defined(FORMAT_Q5_0) || defined(FORMAT_Q5_1)
constexpr int LOW = 4, HIGH = 1;
#elif defined(FORMAT_Q8_0) || defined(FORMAT_F8_E4M3)
constexpr int LOW = 8, HIGH = 0;
#elif defined(FORMAT_Q2_K)
constexpr int LOW = 2, HIGH = 0;
#elif defined(FORMAT_Q3_K)
constexpr int LOW = 2, HIGH = 1;
#elif defined(FORMAT_Q5_K)
constexpr int LOW = 4, HIGH = 1;
#elif defined(FORMAT_Q6_K)
constexpr int LOW = 4, HIGH = 2;
#elif defined(FORMAT_Q4_K) || defined(FORMAT_IQ4_XS) || defined(FORMAT_NF4) || defined(FORMAT_NVFP4)
constexpr int LOW = 4, HIGH = 0;
#else
// 16-bit numbers.
constexpr int LOW = 16, HIGH = 0;
#endif

constexpr int LOW_PLANES = LOW / 2;

// Where the planes of a matrix lie.
struct Planes {
    const u8* low;
    size_t low_stride;
    const u8* high;
    const u8* first;
    const u8* second;
    const u8* third;
};

// Bytes of a plane with a record of `bytes` for each `span` chunks; each plane begins at a multiple of 256 bytes.
__device__ __forceinline__ size_t plane_bytes(size_t chunks, int bytes, int span) {
    return (chunks / span * bytes + 255) / 256 * 256;
}

// chunks: of the whole matrix.
__device__ __forceinline__ Planes planes(const u8* base, size_t chunks) {
    Planes p;
    p.low = base;
    p.low_stride = plane_bytes(chunks, 16, 1);
    p.high = base + LOW_PLANES * p.low_stride;
    p.first = p.high + (HIGH > 0 ? plane_bytes(chunks, 8 * HIGH, 1) : 0);
#if defined(FORMAT_U4)
    p.second = p.first + plane_bytes(chunks, 16, 2);
#elif defined(FORMAT_NVFP4)
    p.second = p.first + plane_bytes(chunks, 16, 4);
#elif defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K)
    p.second = p.first + plane_bytes(chunks, 4, 2);
    p.third = p.second + plane_bytes(chunks, 2, 2);
#elif defined(FORMAT_Q6_K) || defined(FORMAT_Q2_K)
    p.second = p.first + plane_bytes(chunks, 4, 1);
#elif defined(FORMAT_Q3_K)
    p.second = p.first + plane_bytes(chunks, 2, 1);
    p.third = p.second + plane_bytes(chunks, 1, 1);
#elif defined(FORMAT_IQ4_XS)
    p.second = p.first + plane_bytes(chunks, 2, 2);
    p.third = p.second + plane_bytes(chunks, 1, 2);
#endif
    return p;
}

template <typename T> __device__ __forceinline__ T record(const u8* plane, size_t index) {
    return reinterpret_cast<const T*>(plane)[index];
}

__device__ __forceinline__ float half_number(u32 bits) {
    float x;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(x) : "r"(bits));
    return x;
}

// Words of four neighbours in memory by their index, which is known when the kernel is compiled.
__device__ __forceinline__ u32 word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }
__device__ __forceinline__ u32 word(const uint2& x, int i) { return i == 0 ? x.x : x.y; }

// A float of four bits (E2M1) or of eight (E4M3): its exponent and mantissa moved to those of an f32.
__device__ __forceinline__ float small_float(u32 magnitude, u32 is_negative, int shift, float factor) {
    return __uint_as_float(magnitude << shift | is_negative << 31) * factor;
}
__device__ __forceinline__ float e4m3_number(u32 bits) {
    const float x = small_float(bits & 0x7f, bits >> 7 & 1, 20, 0x1p120f);
    return (bits & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000u) : x;
}

#if defined(FORMAT_IQ4_NL) || defined(FORMAT_IQ4_XS)
#define HAS_TABLE
__constant__ float LEVELS[16] = {-127.f, -104.f, -83.f, -65.f, -49.f, -35.f, -22.f, -10.f,
                                 1.f,    13.f,   25.f,  38.f,  53.f,  69.f,  89.f,  113.f};
#elif defined(FORMAT_NF4)
#define HAS_TABLE
__constant__ float LEVELS[16] = {-1.f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                                 -0.09105004f, 0.f,          0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                                 0.44070983f,  0.562617f,    0.72295684f,  1.f};
#endif

// The table of levels, in shared memory: lanes look different entries up. A barrier must follow.
__device__ __forceinline__ void fill_table(float* table) {
#ifdef HAS_TABLE
    if (threadIdx.x < 16) table[threadIdx.x] = LEVELS[threadIdx.x];
#endif
}

// A chunk as it lies in memory, with the scales of its rows.
struct Chunk {
    uint4 low[LOW_PLANES];
    uint4 high;
    float scale[4], minimum[4], zero[4];
};

__device__ __forceinline__ void load_scales(Chunk& chunk, const Planes& p, size_t at) {
#pragma unroll
    for (int row = 0; row < 4; ++row) chunk.minimum[row] = chunk.zero[row] = 0.f;
#if defined(FORMAT_Q4_0) || defined(FORMAT_Q5_0) || defined(FORMAT_Q8_0) || defined(FORMAT_IQ4_NL)
    const uint2 scales = record<uint2>(p.first, at / 2);
#pragma unroll
    for (int row = 0; row < 4; ++row) chunk.scale[row] = half_number(word(scales, row / 2) >> row % 2 * 16);
#elif defined(FORMAT_Q4_1) || defined(FORMAT_Q5_1)
    const uint4 scales = record<uint4>(p.first, at / 2);
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        chunk.scale[row] = half_number(word(scales, row));
        chunk.minimum[row] = half_number(word(scales, row) >> 16);
    }
#elif defined(FORMAT_MXFP4)
    const u32 powers = record<u32>(p.first, at / 2);
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        // Half of 2 to the power, as levels are doubled; the smallest two are subnormal.
        const u32 power = powers >> row * 8 & 0xff;
        chunk.scale[row] = __uint_as_float(power < 2 ? 0x00200000u << power : (power - 1) << 23);
    }
#elif defined(FORMAT_F8_E4M3) || defined(FORMAT_NF4) || defined(FORMAT_U4) || defined(FORMAT_NVFP4)
#if defined(FORMAT_NF4) || defined(FORMAT_NVFP4)
    const uint4 scales = record<uint4>(p.first, at / 4);
#else
    const uint4 scales = record<uint4>(p.first, at / 2);
#endif
#pragma unroll
    for (int row = 0; row < 4; ++row) chunk.scale[row] = __uint_as_float(word(scales, row));
#ifdef FORMAT_U4
    const u32 zeros = record<u32>(p.second, at / 2);
#pragma unroll
    for (int row = 0; row < 4; ++row) chunk.zero[row] = float(zeros >> row * 8 & 0xff);
#endif
#ifdef FORMAT_NVFP4
    const u32 quotients = record<u32>(p.second, at);
#pragma unroll
    for (int row = 0; row < 4; ++row)
        chunk.scale[row] = __fdiv_rn(e4m3_number(quotients >> row * 8 & 0xff), chunk.scale[row]);
#endif
#elif defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K)
    const u64 both = record<u32>(p.first, at / 2) | u64(record<u16>(p.second, at / 2)) << 32;
    const uint4 units = record<uint4>(p.third, at / 16);
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        chunk.scale[row] = half_number(word(units, row)) * float(u32(both >> row * 6) & 63);
        chunk.minimum[row] = -(half_number(word(units, row) >> 16) * float(u32(both >> (24 + row * 6)) & 63));
    }
#elif defined(FORMAT_Q2_K)
    const u32 both = record<u32>(p.first, at);
    const uint4 units = record<uint4>(p.second, at / 16);
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        chunk.scale[row] = half_number(word(units, row)) * float(both >> row * 8 & 15);
        chunk.minimum[row] = -(half_number(word(units, row) >> 16) * float(both >> (row * 8 + 4) & 15));
    }
#elif defined(FORMAT_Q6_K)
    const u32 scales = record<u32>(p.first, at);
    const uint2 units = record<uint2>(p.second, at / 16);
#pragma unroll
    for (int row = 0; row < 4; ++row)
        chunk.scale[row] = half_number(word(units, row / 2) >> row % 2 * 16) * float(int(scales << (24 - row * 8)) >> 24);
#elif defined(FORMAT_Q3_K) || defined(FORMAT_IQ4_XS)
#ifdef FORMAT_Q3_K
    const u32 scales = record<u16>(p.first, at) | u32(record<u8>(p.second, at)) << 16;
#else
    const u32 scales = record<u16>(p.first, at / 2) | u32(record<u8>(p.second, at / 2)) << 16;
#endif
    const uint2 units = record<uint2>(p.third, at / 16);
#pragma unroll
    for (int row = 0; row < 4; ++row)
        chunk.scale[row] = half_number(word(units, row / 2) >> row % 2 * 16) * float(int(scales >> row * 6 & 63) - 32);
#endif
}

// at: the chunk's number in its matrix.
__device__ __forceinline__ Chunk load_chunk(const Planes& p, size_t at) {
    Chunk chunk;
#pragma unroll
    for (int plane = 0; plane < LOW_PLANES; ++plane)
        chunk.low[plane] = record<uint4>(p.low + plane * p.low_stride, at);
    if (HIGH == 1) {
        const uint2 high = record<uint2>(p.high, at);
        chunk.high = make_uint4(high.x, high.y, 0, 0);
    }
    if (HIGH == 2) chunk.high = record<uint4>(p.high, at);
    load_scales(chunk, p, at);
    return chunk;
}

// The quants of elements 4 * quad to 4 * quad + 3 of a row, a byte each.
__device__ __forceinline__ u32 quants(const Chunk& chunk, int row, int quad) {
    constexpr int WORDS = LOW / 2;
    auto low = [&](int i) { return word(chunk.low[(row * WORDS + i) / 4], (row * WORDS + i) % 4); };
    u32 bytes;
    if (LOW == 8) {
        bytes = low(quad);
    } else if (LOW == 4) {
        bytes = low(quad / 2) >> quad % 2 * 4 & 0x0f0f0f0fu;
    } else {
        bytes = low(0) >> quad * 2 & 0x03030303u;
    }
    if (HIGH == 1) bytes |= (word(chunk.high, row / 2) >> (quad + row % 2 * 4) & 0x01010101u) << LOW;
    if (HIGH == 2) bytes |= (word(chunk.high, row) >> quad * 2 & 0x03030303u) << LOW;
    return bytes;
}

// The number that a quant stands for before scaling. `byte` is known when the kernel is compiled.
__device__ __forceinline__ float level(u32 quants, int byte, float zero, const float* table) {
    // The integer in the mantissa of 2^23: exact, and no conversion.
    const float integer = __uint_as_float(__byte_perm(quants, 0x4b000000u, 0x7650 + byte));
#if defined(HAS_TABLE)
    return table[quants >> byte * 8 & 15];
#elif defined(FORMAT_MXFP4)
    return small_float(quants >> byte * 8 & 7, quants >> (byte * 8 + 3) & 1, 22, 0x1p127f);
#elif defined(FORMAT_NVFP4)
    return small_float(quants >> byte * 8 & 7, quants >> (byte * 8 + 3) & 1, 22, 0x1p126f);
#elif defined(FORMAT_F8_E4M3)
    return e4m3_number(quants >> byte * 8 & 0xff);
#elif defined(FORMAT_Q8_0)
    return __uint_as_float(__byte_perm(quants ^ 0x80808080u, 0x4b000000u, 0x7650 + byte)) - (8388608.f + 128.f);
#elif defined(FORMAT_Q4_0)
    return integer - (8388608.f + 8.f);
#elif defined(FORMAT_Q5_0)
    return integer - (8388608.f + 16.f);
#elif defined(FORMAT_Q3_K)
    return integer - (8388608.f + 4.f);
#elif defined(FORMAT_Q6_K)
    return integer - (8388608.f + 32.f);
#elif defined(FORMAT_U4)
    return integer - 8388608.f - zero;
#else
    return integer - 8388608.f;
#endif
}

// Elements 8 * octet to 8 * octet + 7 of a row: what the reference decoder gives, bit for bit.
__device__ __forceinline__ void decode8(float (&out)[8], const Chunk& chunk, int row, int octet, const float* table) {
    if (LOW == 16) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 both = word(chunk.low[row * 2 + octet], i);
            out[2 * i] = low_half(both);
            out[2 * i + 1] = high_half(both);
        }
        return;
    }
#pragma unroll
    for (int quad = 0; quad < 2; ++quad) {
        const u32 bytes = quants(chunk, row, octet * 2 + quad);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = level(bytes, i, chunk.zero[row], table) * chunk.scale[row];
#if defined(FORMAT_Q4_1) || defined(FORMAT_Q5_1) || defined(FORMAT_Q4_K) || defined(FORMAT_Q5_K) || defined(FORMAT_Q2_K)
            // Rounded twice, as the decoder does.
            x = __fadd_rn(__fmul_rn(level(bytes, i, 0.f, table), chunk.scale[row]), chunk.minimum[row]);
#endif
            out[quad * 4 + i] = x;
        }
    }
}

// Rows of the input that a block multiplies, and with which matrix: tiles[tile], or without a list the rows of a
// single matrix in order.
struct Span {
    int first, count, expert;
};
__device__ __forceinline__ Span span_of(const int4* tiles, int rows, int height) {
    const int tile = blockIdx.y;
    if (tiles == nullptr) return {tile * height, min(height, rows - tile * height), 0};
    const int4 found = tiles[tile];
    return {found.x, found.y, found.z};
}
