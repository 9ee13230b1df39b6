// What C++ compiles to beyond arithmetic: calls, tables, constants, variables, local arrays and
// pointers whose space is known at run time only.
#include "device.cuh"

__constant__ int factors[8] = {1, 2, 3, 5, 7, 11, 13, 17};
__device__ int counter = 100;
__device__ const char letters[] = "emulator";
__device__ const char* const text = letters + 2;

struct Pair {
    int first;
    long long second;
};

__device__ __noinline__ int gcd(int a, int b) {
    while (b != 0) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

__device__ __noinline__ Pair both(Pair in, int by) {
    Pair out;
    out.first = gcd(in.first, by);
    out.second = in.second * by;
    return out;
}

extern "C" __global__ void calls(int* out, long long* wide) {
    const int i = threadIdx.x;
    Pair in = {i * 6, (long long)i << 33};
    // Some lanes call, and meet the others afterwards.
    if (i % 3 != 0) in = both(in, 4 + i);
    out[i] = in.first;
    wide[i] = in.second;
}

extern "C" __global__ void constants(int* out) {
    const int i = threadIdx.x;
    out[i] = factors[i % 8] + text[i % 6];
    if (i == 0) atomicAdd(&counter, 1);
}

extern "C" __global__ void table(int* out, int n) {
    const int i = threadIdx.x;
    int value = 0;
    switch (i % 9) {
        case 0: value = n; break;
        case 1: value = n * n; break;
        case 2: value = n - 7; break;
        case 3: value = n << 3; break;
        case 4: value = n ^ 99; break;
        case 5: value = n / 3; break;
        case 6: value = -n; break;
        case 7: value = n % 5; break;
    }
    out[i] = value;
}

extern "C" __global__ void local_array(int* out, int shift) {
    int values[16];
    for (int k = 0; k < 16; ++k) values[k] = threadIdx.x * k;
    int sum = 0;
    for (int k = 0; k < 16; ++k) sum += values[(k * 5 + shift + threadIdx.x) % 16] * (k + 1);
    out[threadIdx.x] = sum;
}

__device__ __noinline__ void bump(int* any) { *any += 5; }

extern "C" __global__ void any_space(int* out, int choice) {
    __shared__ int shared[64];
    int local = threadIdx.x * 3;
    shared[threadIdx.x] = threadIdx.x * 2;
    out[threadIdx.x] = threadIdx.x;
    int* where = choice == 0 ? out + threadIdx.x : choice == 1 ? shared + threadIdx.x : &local;
    bump(where);
    if (choice != 0) out[threadIdx.x] = *where;
}

// Loops of different lengths, with a way out of the middle.
extern "C" __global__ void loops(int* out, const int* limits) {
    int sum = 0;
    for (int i = 0; i < limits[threadIdx.x]; ++i) {
        for (int k = 0; k <= i; ++k) {
            if ((i * k) % 7 == 6) break;
            if (k % 2 == 1) continue;
            sum += i + k;
        }
        if (sum > 500) {
            sum = -sum;
            break;
        }
    }
    out[threadIdx.x] = sum;
}

// Blocks wait for the one before them, in the order of the grid.
extern "C" __global__ void chain(int* out, volatile int* turn) {
    if (threadIdx.x == 0) {
        while (*turn != blockIdx.x) {
        }
        out[blockIdx.x] = blockIdx.x == 0 ? 1 : 2 * *(volatile int*)(out + blockIdx.x - 1);
        __threadfence();
        *turn = blockIdx.x + 1;
    }
}
