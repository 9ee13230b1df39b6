// RMS norm with a weight (Zhang, Sennrich, 2019), after an addition to the residual stream.
//
// Layout      rows of `width` activations, the residual stream among them.
// Tile        a block for each run of `run` columns: the whole row, or one head of it. The numbers stay in registers
//             between the two passes where a thread has at most KEPT of them; the residual is read and written once.
// Intensity   about one operation for 4 bytes: bound by memory.
#include "common.cuh"

constexpr int KEPT = 16;

// sum = input (+ residual); out = sum / rms(sum) * (weight + offset). All but weight: [rows][width]. residual and sum, or
// null. weight: [run], or null for none. grid: rows * width / run.
extern "C" __global__ void __launch_bounds__(1024)
rms_norm(u16* __restrict__ out, u16* __restrict__ sum, const u16* __restrict__ input,
         const u16* __restrict__ residual, const u16* __restrict__ weight, const int run, const float epsilon, const float offset) {
    __shared__ float scratch[33];
    const size_t first = size_t(blockIdx.x) * run;
    float kept[KEPT], squares = 0.f;
    int count = 0;
    for (int i = threadIdx.x; i < run; i += blockDim.x, ++count) {
        float x = widen(input[first + i]);
        if (residual != nullptr) {
            x += widen(residual[first + i]);
            sum[first + i] = narrow(x);
        }
        if (count < KEPT) kept[count] = x;
        squares += x * x;
    }
    const float norm = rsqrtf(block_sum(squares, scratch) / run + epsilon);
    count = 0;
    for (int i = threadIdx.x; i < run; i += blockDim.x, ++count) {
        float x = kept[0];
        if (count < KEPT) {
            x = kept[count];
        } else {
            x = widen(input[first + i]) + (residual != nullptr ? widen(residual[first + i]) : 0.f);
        }
        const float factor = weight != nullptr ? widen(weight[i]) + offset : 1.f;
        out[first + i] = narrow(x * norm * factor);
    }
}
