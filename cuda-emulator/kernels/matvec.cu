// A quantized matrix times a vector: y = W x.
//
// W has blocks of 32 signed bytes along a row with a scale each; x is bf16 and is quantized to
// bytes in shared memory, 32 at a time, by each block of threads for itself. A warp computes a row,
// with dp4a on 4 bytes a lane. Dynamic shared memory: columns bytes and columns / 32 floats.
#include "device.cuh"

extern "C" __global__ void matvec(float* __restrict__ y, const int* __restrict__ weights,
                                  const float* __restrict__ scales, const bf16* __restrict__ x, int rows,
                                  int columns) {
    extern __shared__ __align__(16) int quantized[];
    float* x_scales = reinterpret_cast<float*>(quantized + columns / 4);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const int blocks = columns / 32;

    for (int block = warp; block < blocks; block += warps) {
        const float value = widen(x[block * 32 + lane]);
        const float scale = warp_max(fabsf(value)) / 127.f;
        const int rounded = scale > 0.f ? __float2int_rn(value / scale) : 0;
        // Four neighbours make a word.
        int word = (rounded & 0xff) << (lane % 4 * 8);
        word |= __shfl_xor_sync(ALL_LANES, word, 1);
        word |= __shfl_xor_sync(ALL_LANES, word, 2);
        if (lane % 4 == 0) quantized[block * 8 + lane / 4] = word;
        if (lane == 0) x_scales[block] = scale;
    }
    __syncthreads();

    for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
        float sum = 0.f;
        for (int word = lane; word < columns / 4; word += 32) {
            const int block = word / 8;
            const int product = __dp4a(weights[size_t(row) * (columns / 4) + word], quantized[word], 0);
            sum += product * scales[size_t(row) * blocks + block] * x_scales[block];
        }
        sum = warp_sum(sum);
        if (lane == 0) y[row] = sum;
    }
}
