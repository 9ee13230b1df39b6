// RMS norm with a weight, after an addition to the residual stream.
//
// One block for each row. residual += input; out = residual / rms(residual) * weight.
#include "device.cuh"

extern "C" __global__ void rms_norm(bf16* __restrict__ out, float* __restrict__ residual,
                                const bf16* __restrict__ input, const bf16* __restrict__ weight, int width,
                                float epsilon) {
    __shared__ float partial[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    const size_t row = size_t(blockIdx.x) * width;

    float squares = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = residual[row + i] + widen(input[row + i]);
        residual[row + i] = x;
        squares += x * x;
    }
    squares = warp_sum(squares);
    if (lane == 0) partial[warp] = squares;
    __syncthreads();
    if (warp == 0) {
        const float all = warp_sum(lane < warps ? partial[lane] : 0.f);
        if (lane == 0) partial[0] = all;
    }
    __syncthreads();
    const float norm = rsqrtf(partial[0] / width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = residual[row + i] * norm * widen(weight[i]);
        out[row + i] = bf16(pack(x, 0.f) & 0xffff);
    }
}
