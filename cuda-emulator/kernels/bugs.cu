// One bug in each kernel, for the tests of the checks. A comment marks the line that is at fault.
#include "device.cuh"

extern "C" __global__ void touch(int* data) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    data[i] += 1;  // touch: no bounds test
}

extern "C" __global__ void misaligned(int* out, const int* data) {
    const int4 four = *reinterpret_cast<const int4*>(data + 1);  // misaligned: 16 bytes at offset 4
    *out = four.x + four.y + four.z + four.w;
}

extern "C" __global__ void uninitialized_shared(int* out) {
    __shared__ int values[64];
    if (threadIdx.x < 32) values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];  // uninitialized_shared: only half of it was written
}

extern "C" __global__ void uninitialized_global(int* out, const int* data) {
    out[threadIdx.x] = data[threadIdx.x];  // uninitialized_global
}

extern "C" __global__ void shared_race(int* out) {
    __shared__ int values[64];
    values[threadIdx.x] = threadIdx.x;  // shared_race: written here
    out[threadIdx.x] = values[63 - threadIdx.x];  // shared_race: read with no barrier between
}

extern "C" __global__ void global_race(int* out) {
    out[threadIdx.x] = blockIdx.x;  // global_race: every block writes the same elements
}

// The last block sums what the others left. A fence and a counter order the accesses.
extern "C" __global__ void last_block(int* out, int* partial, unsigned* counter) {
    __shared__ bool last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == gridDim.x - 1;
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < gridDim.x * blockDim.x; ++i) sum += partial[i];
        *out = sum;
    }
}

extern "C" __global__ void copy_not_waited_for(int* out, const int* data) {
    __shared__ __align__(16) int values[128];
    copy_async(shared_address(values + threadIdx.x * 4), data + threadIdx.x * 4, true);
    commit_copies();
    out[threadIdx.x] = values[threadIdx.x * 4];  // copy_not_waited_for
    wait_copies<0>();
}

extern "C" __global__ void copy_left(int* out, const int* data) {
    __shared__ __align__(16) int values[128];
    copy_async(shared_address(values + threadIdx.x * 4), data + threadIdx.x * 4, true);
    commit_copies();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void divergent_shuffle(int* out) {
    int value = threadIdx.x;
    if (threadIdx.x < 20) value += __shfl_xor_sync(ALL_LANES, value, 1);  // divergent_shuffle
    out[threadIdx.x] = value;
}

extern "C" __global__ void divergent_barrier(int* out) {
    if (threadIdx.x % 32 < 16) {
        out[threadIdx.x] = 1;
        __syncthreads();  // divergent_barrier
    }
    out[threadIdx.x] = 2;
}

extern "C" __global__ void mismatched_barrier(int* out) {
    if (threadIdx.x < 32) {
        out[threadIdx.x] = 1;
        asm volatile("bar.sync 0;" ::: "memory");
    } else {
        out[threadIdx.x] = 2;
        asm volatile("bar.sync 0;" ::: "memory");
    }
}

extern "C" __global__ void deadlock(int* out) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");  // deadlock: half of them come
    out[threadIdx.x] = 1;
}

extern "C" __global__ void division(int* out, int divisor) { out[threadIdx.x] = threadIdx.x / divisor; }

extern "C" __global__ void bank_conflicts(float* out) {
    __shared__ float values[32 * 32];
    values[threadIdx.x * 32] = threadIdx.x;  // bank_conflicts: all lanes use one bank
    __syncwarp();
    out[threadIdx.x] = values[threadIdx.x * 32];
}

extern "C" __global__ void uncoalesced(float* out) {
    out[threadIdx.x * 32] = threadIdx.x;  // uncoalesced: each lane has a sector of its own
}

extern "C" __global__ void redundant_store(int* out) {
    const int all = __reduce_add_sync(ALL_LANES, threadIdx.x);
    out[threadIdx.x / 32] = all;  // redundant_store: every lane stores the sum
}

extern "C" __global__ void conflicting_store(int* out) {
    __shared__ int values[16];
    values[threadIdx.x / 2] = threadIdx.x;  // conflicting_store: two lanes have the same index
    __syncwarp();
    out[threadIdx.x] = values[threadIdx.x / 2];
}

extern "C" __global__ void endless(volatile int* flag) {
    while (*flag == 0) {
    }
}

extern "C" __global__ void stops() {
    if (threadIdx.x == 5) __trap();
}
