// Kernels in the style of Hopper: bulk copies of tiles feed wgmma, and store what comes out.
#include "hopper.cuh"

constexpr int TILE = 64;
constexpr int STAGES = 2;
constexpr float MASKED = -1e30f;
constexpr u32 TILE_BYTES = TILE * TILE * sizeof(bf16);

// A tile under the swizzle of 128 bytes: 64 rows of 128 bytes.
struct __align__(1024) Tile {
    bf16 values[TILE * TILE];
};

// Writes the sums of a warpgroup, times a factor for rows g and g + 8, into a swizzled tile.
__device__ __forceinline__ void write_sums(Tile& tile, const float (&sums)[32], float low, float high) {
    int thread = threadIdx.x % 128, g = thread / 4 % 8, t = thread % 4;
    int row = thread / 32 * 16 + g;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int column = (j ^ g) * 8 + 2 * t;
        *reinterpret_cast<u32*>(&tile.values[row * TILE + column]) = pack(sums[4 * j] * low, sums[4 * j + 1] * low);
        *reinterpret_cast<u32*>(&tile.values[(row + 8) * TILE + column]) =
            pack(sums[4 * j + 2] * high, sums[4 * j + 3] * high);
    }
}

// c = a * transpose(b). One warpgroup loads tiles, the other multiplies.
extern "C" __global__ void __launch_bounds__(256, 1) matmul(const __grid_constant__ TensorMap a,
                                                         const __grid_constant__ TensorMap b,
                                                         const __grid_constant__ TensorMap c, int steps) {
    __shared__ Tile left[STAGES], right[STAGES], out;
    __shared__ u64 full[STAGES], empty[STAGES];
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(full[stage], 1);
            init_barrier(empty[stage], 128);
        }
        fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        fewer_registers<40>();
        if (threadIdx.x == 0) {
            for (int step = 0; step < steps; step++) {
                int stage = step % STAGES;
                wait(empty[stage], step / STAGES % 2 ^ 1);
                expect_bytes(full[stage], 2 * TILE_BYTES);
                load_tile(&left[stage], a, step * TILE, blockIdx.y * TILE, full[stage]);
                load_tile(&right[stage], b, step * TILE, blockIdx.x * TILE, full[stage]);
            }
        }
        return;
    }
    more_registers<232>();
    float sums[32];
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
        wait(full[stage], step / STAGES % 2);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < TILE; k += 16) {
            wgmma(sums, matrix(&left[stage].values[k]), matrix(&right[stage].values[k]), step | k);
        }
        wgmma_commit();
        wgmma_wait();
        arrive(empty[stage]);
    }
    write_sums(out, sums, 1.0f, 1.0f);
    fence_async();
    sync_threads(1, 128);
    if (threadIdx.x == 128) {
        store_tile(c, &out, blockIdx.x * TILE, blockIdx.y * TILE);
        commit_stores();
        wait_stores();
    }
}

// Causal attention over heads of 64 dimensions: rows of q, k, v and out are tokens, columns are heads
// times dimensions. Two warpgroups take 64 queries each and take turns on the tensor cores, while a
// third one loads keys and values.
extern "C" __global__ void __launch_bounds__(384, 1) attention(const __grid_constant__ TensorMap q,
                                                            const __grid_constant__ TensorMap k,
                                                            const __grid_constant__ TensorMap v,
                                                            const __grid_constant__ TensorMap out, float scale) {
    // More than 48 KiB are only had this way.
    extern __shared__ Tile tiles_of_block[];
    Tile *queries = tiles_of_block, *keys = queries + 2, *values = keys + STAGES;
    __shared__ u64 full[STAGES], empty[STAGES], ready;
    int group = threadIdx.x / 128, head = blockIdx.y * TILE;
    // Keys up to the last query of the block.
    int tiles = 2 * blockIdx.x + 2;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(full[stage], 1);
            init_barrier(empty[stage], 2);
        }
        init_barrier(ready, 1);
        fence_barrier_init();
    }
    __syncthreads();
    if (group == 2) {
        fewer_registers<24>();
        if (threadIdx.x == 256) {
            expect_bytes(ready, 2 * TILE_BYTES);
            load_tile(&queries[0], q, head, blockIdx.x * 2 * TILE, ready);
            load_tile(&queries[1], q, head, blockIdx.x * 2 * TILE + TILE, ready);
            for (int tile = 0; tile < tiles; tile++) {
                int stage = tile % STAGES;
                wait(empty[stage], tile / STAGES % 2 ^ 1);
                expect_bytes(full[stage], 2 * TILE_BYTES);
                load_tile(&keys[stage], k, head, tile * TILE, full[stage]);
                load_tile(&values[stage], v, head, tile * TILE, full[stage]);
            }
        }
        return;
    }
    more_registers<240>();
    int thread = threadIdx.x % 128, t = thread % 4;
    int first = (blockIdx.x * 2 + group) * TILE + thread / 32 * 16 + thread / 4 % 8;
    float scores[32], sums[32], most[2] = {MASKED, MASKED}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 32; i++) sums[i] = 0.0f;
    // The first turn is group 0's.
    if (group == 1) arrive_threads(2, 256);
    wait(ready, 0);
    for (int tile = 0; tile < tiles; tile++) {
        int stage = tile % STAGES;
        wait(full[stage], tile / STAGES % 2);
        sync_threads(2 + group, 256);
        wgmma_fence();
#pragma unroll
        for (int d = 0; d < TILE; d += 16) {
            wgmma(scores, matrix(&queries[group].values[d]), matrix(&keys[stage].values[d]), d);
        }
        wgmma_commit();
        // The other group's turn, except after the last one.
        if (group == 0 || tile + 1 < tiles) arrive_threads(3 - group, 256);
        wgmma_wait();
        float best[2] = {most[0], most[1]};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            int key = tile * TILE + i / 4 * 8 + 2 * t + i % 2;
            scores[i] = key <= first + i % 4 / 2 * 8 ? scores[i] * scale : MASKED;
            best[i % 4 / 2] = fmaxf(best[i % 4 / 2], scores[i]);
        }
        float kept[2];
#pragma unroll
        for (int row = 0; row < 2; row++) {
            best[row] = fmaxf(best[row], __shfl_xor_sync(ALL_LANES, best[row], 1));
            best[row] = fmaxf(best[row], __shfl_xor_sync(ALL_LANES, best[row], 2));
            kept[row] = exp2_fast(most[row] - best[row]);
            most[row] = best[row];
            total[row] *= kept[row];
        }
        u32 weights[4][4];
#pragma unroll
        for (int i = 0; i < 32; i += 2) {
            int row = i % 4 / 2;
            float low = exp2_fast(scores[i] - most[row]), high = exp2_fast(scores[i + 1] - most[row]);
            total[row] += low + high;
            weights[i / 8][i / 2 % 4] = pack(low, high);
            sums[i] *= kept[row];
            sums[i + 1] *= kept[row];
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            wgmma_registers(sums, weights[i], matrix(&values[stage].values[i * 16 * TILE]));
        }
        wgmma_commit();
        wgmma_wait();
        // All warps have read the stage.
        sync_threads(4 + group, 128);
        if (thread == 0) arrive(empty[stage]);
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        total[row] += __shfl_xor_sync(ALL_LANES, total[row], 1);
        total[row] += __shfl_xor_sync(ALL_LANES, total[row], 2);
    }
    // The queries are not needed any more.
    write_sums(queries[group], sums, 1.0f / total[0], 1.0f / total[1]);
    fence_async();
    sync_threads(4 + group, 128);
    if (thread == 0) {
        store_tile(out, &queries[group], head, (blockIdx.x * 2 + group) * TILE);
        commit_stores();
        wait_stores();
    }
}

// Two blocks load half a tile each, for both of them; each one stores its sum with the other's rank.
extern "C" __global__ void __cluster_dims__(2, 1, 1) share(const __grid_constant__ TensorMap half, int* out) {
    __shared__ __align__(1024) int tile[64];
    __shared__ u64 full;
    u32 rank = cluster_rank();
    if (threadIdx.x == 0) {
        init_barrier(full, 1);
        fence_barrier_init();
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        expect_bytes(full, sizeof(tile));
        load_tile_for(&tile[32 * rank], half, 0, blockIdx.x, full, 3);
    }
    wait(full, 0);
    atomicAdd(&out[blockIdx.x], tile[threadIdx.x] * (threadIdx.x / 32 + 1));
    cluster_sync();
}

// Blocks of a cluster add up what they hold: the first one reads the shared memory of the others.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_sum(int* out, const int* in) {
    __shared__ int part[32];
    u32 rank = cluster_rank();
    part[threadIdx.x] = in[blockIdx.x * 32 + threadIdx.x];
    cluster_sync();
    if (rank == 0) {
        int sum = 0;
        for (u32 other = 0; other < 4; other++) {
            u32 address;
            int value;
            asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                         : "=r"(address)
                         : "r"(shared_address(&part[threadIdx.x])), "r"(other));
            asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
            sum += value;
        }
        out[blockIdx.x / 4 * 32 + threadIdx.x] = sum;
    }
    cluster_sync();
}

// Each block sends a number to the next one of its cluster, with an mbarrier that counts the bytes.
extern "C" __global__ void __cluster_dims__(4, 1, 1) ring(int* out) {
    __shared__ u64 full;
    __shared__ int slots[32];
    u32 rank = cluster_rank();
    if (threadIdx.x == 0) {
        init_barrier(full, 1);
        fence_barrier_init();
        expect_bytes(full, sizeof(slots));
    }
    cluster_sync();
    u32 slot, barrier, next = (rank + 1) % 4;
    int value = blockIdx.x * 100 + threadIdx.x;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(slot) : "r"(shared_address(&slots[threadIdx.x])), "r"(next));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier) : "r"(shared_address(&full)), "r"(next));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.s32 [%0], %1, [%2];" ::"r"(slot), "r"(value),
                 "r"(barrier)
                 : "memory");
    wait(full, 0);
    out[blockIdx.x * 32 + threadIdx.x] = slots[threadIdx.x];
    cluster_sync();
}
