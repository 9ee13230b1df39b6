// What becomes of a gate and of the value that it gates (Shazeer, 2020), element by element.
//
// Layout      gate: [rows][gate_width], where gate_width is width, or 1 for one gate a row. up, out: [rows][width].
// Tile        a thread for each element.
// Intensity   a few operations for 6 bytes: bound by memory.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + exp2_fast(-x * LOG2_E)); }

// kind: 0 gate * up, 1 sigmoid, 2 SiLU, 3 GELU by its tanh form, 4 clamped SwiGLU (gpt-oss). count: rows * width.
extern "C" __global__ void __launch_bounds__(256)
gated_activation(u16* __restrict__ out, const u16* __restrict__ gate, const u16* __restrict__ up, const int width,
                 const int gate_width, const int kind, const float slope, const float limit, const int count) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float g = widen(gate[gate_width == width ? i : i / width]), u = widen(up[i]);
    float x = g * u;
    if (kind == 1) x = sigmoid(g) * u;
    if (kind == 2) x = g * sigmoid(g) * u;
    if (kind == 3) x = 0.5f * g * (1.f + tanh_fast(0.7978845608028654f * (g + 0.044715f * g * g * g))) * u;
    if (kind == 4) {
        const float bounded = fminf(g, limit);
        x = bounded * sigmoid(slope * bounded) * (fminf(fmaxf(u, -limit), limit) + 1.f);
    }
    out[i] = narrow(x);
}
