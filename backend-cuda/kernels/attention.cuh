// What decode and append attention share: how KV lies in pages, and the plan that a launch follows.
#pragma once
#include "common.cuh"

#ifndef HEAD
#error "HEAD: the width of a head, a multiple of 8"
#endif
#ifndef GROUP
#error "GROUP: query heads that share a KV head"
#endif

// KV of a layer: [page][K, V][position in page][KV head][HEAD], in bf16 or f16; with FP8 in e4m3,
// whose scales are in `Layer`.
#ifdef FP8
using kv_t = u8;
#else
using kv_t = u16;
#endif

struct Layer {
    const kv_t* kv;
    // [slot][table_width]
    const int* tables;
    int table_width;
    int page_size;
    int kv_heads;
    float scale;
    // 0: none.
    float soft_cap;
    // What e4m3 numbers of K and V are multiplied with.
    float key_scale;
    float value_scale;
};

__device__ __forceinline__ int page_of(const Layer& layer, int slot, int index) {
    return layer.tables[size_t(slot) * layer.table_width + index];
}

// Where K of a position of a page begins; V lies `value_distance` elements behind.
__device__ __forceinline__ size_t place_in_page(const Layer& layer, int page, int position, int kv_head) {
    return ((size_t(page) * 2 * layer.page_size + position % layer.page_size) * layer.kv_heads + kv_head) * HEAD;
}

__device__ __forceinline__ size_t key_place(const Layer& layer, int slot, int position, int kv_head) {
    return place_in_page(layer, page_of(layer, slot, position / layer.page_size), position, kv_head);
}

__device__ __forceinline__ size_t value_distance(const Layer& layer) {
    return size_t(layer.page_size) * layer.kv_heads * HEAD;
}

#ifdef FP8
// e4m3 has f16's layout but for three bits of exponent: as f16 a number is 256 times too small.
__device__ __forceinline__ void load8(float (&out)[8], const u8* from) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    const u32 words[2] = {bits.x, bits.y};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const u32 byte = words[i / 4] >> (i % 4 * 8) & 0xff;
        const u32 half = (byte & 0x80) << 8 | (byte & 0x7f) << 7;
        float x;
        asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(x) : "r"(half));
        out[i] = x * 256.f;
    }
}
#endif

// A part of a row's attention that another part completes: the sum of weighted values, not divided, the
// largest logit and the sum of weights.
// sums: [part][head][HEAD] f32. marks: [part][head][2] f32.
struct Parts {
    float* sums;
    float* marks;
};
