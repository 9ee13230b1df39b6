// Sampling of a token from each row of logits.
//
// One block for each row: the maximum, the sum of weights of each thread's slice, a scan over the
// threads, and the thread whose slice holds the noise finds the token. noise is in [0, 1).
// A temperature of 0 takes the first of the largest logits.
#include "device.cuh"

constexpr int THREADS = 256;
constexpr float LOG2_E = 1.4426950408889634f;

extern "C" __global__ void __launch_bounds__(THREADS)
sample(int* __restrict__ tokens, float* __restrict__ probabilities, const float* __restrict__ logits,
       const float* __restrict__ noise, int vocabulary, float temperature) {
    __shared__ float largest[THREADS / 32];
    __shared__ int where[THREADS / 32];
    __shared__ float scan[THREADS];

    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const float* row = logits + size_t(blockIdx.x) * vocabulary;
    const int slice = (vocabulary + THREADS - 1) / THREADS;
    const int begin = min(thread * slice, vocabulary), end = min(begin + slice, vocabulary);

    float best = __int_as_float(0xff800000);
    int at = vocabulary;
    for (int i = begin; i < end; ++i) {
        if (row[i] > best) {
            best = row[i];
            at = i;
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, best, step);
        const int other_at = __shfl_xor_sync(ALL_LANES, at, step);
        if (other > best || (other == best && other_at < at)) {
            best = other;
            at = other_at;
        }
    }
    if (lane == 0) {
        largest[warp] = best;
        where[warp] = at;
    }
    __syncthreads();
    best = largest[0];
    at = where[0];
    for (int w = 1; w < THREADS / 32; ++w) {
        if (largest[w] > best) {
            best = largest[w];
            at = where[w];
        }
    }

    const float sharpness = temperature > 0.f ? LOG2_E / temperature : LOG2_E;
    float weight = 0.f;
    for (int i = begin; i < end; ++i) weight += exp2_fast((row[i] - best) * sharpness);
    scan[thread] = weight;
    __syncthreads();
    for (int step = 1; step < THREADS; step *= 2) {
        const float before = thread >= step ? scan[thread - step] : 0.f;
        __syncthreads();
        scan[thread] += before;
        __syncthreads();
    }
    const float total = scan[THREADS - 1];
    if (temperature <= 0.f) {
        if (thread == 0) {
            tokens[blockIdx.x] = at;
            probabilities[blockIdx.x] = 1.f / total;
        }
        return;
    }
    const float target = noise[blockIdx.x] * total;
    float below = thread > 0 ? scan[thread - 1] : 0.f;
    if (target >= below && (target < scan[thread] || thread == THREADS - 1)) {
        int chosen = end - 1;
        for (int i = begin; i < end; ++i) {
            below += exp2_fast((row[i] - best) * sharpness);
            if (target < below) {
                chosen = i;
                break;
            }
        }
        tokens[blockIdx.x] = chosen;
        probabilities[blockIdx.x] = exp2_fast((row[chosen] - best) * sharpness) / total;
    }
}
