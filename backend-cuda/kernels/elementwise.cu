// Operations on single numbers, and copies of rows.
//
// Layout      [rows][width] activations.
// Tile        a thread for each number.
// Intensity   about one operation for 4 bytes: bound by memory. Where it counts they are fused into their neighbours.
#include "common.cuh"

__device__ __forceinline__ size_t index() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }

extern "C" __global__ void __launch_bounds__(256)
add(u16* __restrict__ out, const u16* __restrict__ left, const u16* __restrict__ right, const int count) {
    const size_t i = index();
    if (i < count) out[i] = narrow(widen(left[i]) + widen(right[i]));
}

extern "C" __global__ void __launch_bounds__(256)
scale(u16* __restrict__ out, const u16* __restrict__ input, const float factor, const int count) {
    const size_t i = index();
    if (i < count) out[i] = narrow(widen(input[i]) * factor);
}

// In f32, as logits are.
extern "C" __global__ void __launch_bounds__(256)
scale_wide(float* __restrict__ out, const float* __restrict__ input, const float factor, const int count) {
    const size_t i = index();
    if (i < count) out[i] = input[i] * factor;
}

extern "C" __global__ void __launch_bounds__(256)
soft_cap(u16* __restrict__ out, const u16* __restrict__ input, const float cap, const int count) {
    const size_t i = index();
    if (i < count) out[i] = narrow(cap * tanhf(widen(input[i]) / cap));
}

extern "C" __global__ void __launch_bounds__(256)
soft_cap_wide(float* __restrict__ out, const float* __restrict__ input, const float cap, const int count) {
    const size_t i = index();
    if (i < count) out[i] = cap * tanhf(input[i] / cap);
}

// out[r] = input[rows[r]]. grid: covers count numbers.
extern "C" __global__ void __launch_bounds__(256)
select_rows(u16* __restrict__ out, const u16* __restrict__ input, const int* __restrict__ rows, const int width,
            const int count) {
    const size_t i = index();
    if (i < count) out[i] = input[size_t(rows[i / width]) * width + i % width];
}

// Rotary position embedding of each head (Su et al., 2021); see rope_and_store.cu. A thread for each pair, and for each
// dimension that passes: units = heads * (pairs + head - 2 * pairs). count: tokens * units.
extern "C" __global__ void __launch_bounds__(256)
rope(u16* __restrict__ out, const u16* __restrict__ input, const int* __restrict__ positions,
     const float* __restrict__ frequencies, const int pairs, const int head, const int heads, const float factor,
     const int adjacent, const int count) {
    const size_t i = index();
    if (i >= count) return;
    const int units = head - pairs, unit = i % units;
    const size_t row = i / units, first = row * head;
    if (unit >= pairs) {
        out[first + pairs + unit] = input[first + pairs + unit];
        return;
    }
    const int a = adjacent ? 2 * unit : unit, b = adjacent ? a + 1 : unit + pairs;
    float sine, cosine;
    sincosf(positions[row / heads] * frequencies[unit], &sine, &cosine);
    const float x = widen(input[first + a]), y = widen(input[first + b]);
    out[first + a] = narrow((x * cosine - y * sine) * factor);
    out[first + b] = narrow((y * cosine + x * sine) * factor);
}

// out = input * weight, where the weight is a row, or one number.
extern "C" __global__ void __launch_bounds__(256)
multiply(u16* __restrict__ out, const u16* __restrict__ input, const u16* __restrict__ weight, const int width,
         const int weight_width, const int count) {
    const size_t i = index();
    if (i < count) out[i] = narrow(widen(input[i]) * widen(weight[weight_width == 1 ? 0 : i % width]));
}

// out[r][c] = input[r][first + c].
extern "C" __global__ void __launch_bounds__(256)
select_columns(u16* __restrict__ out, const u16* __restrict__ input, const int width, const int first,
               const int columns, const int count) {
    const size_t i = index();
    if (i < count) out[i] = input[i / columns * width + first + i % columns];
}

// out = input * (1 + beta * ln(1 + floor(position / original))).
extern "C" __global__ void __launch_bounds__(256)
scale_by_position(u16* __restrict__ out, const u16* __restrict__ input, const int* __restrict__ positions,
                  const int width, const float beta, const int original, const int count) {
    const size_t i = index();
    if (i >= count) return;
    out[i] = narrow(widen(input[i]) * (1.f + beta * logf(1.f + positions[i / width] / original)));
}
