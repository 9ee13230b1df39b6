// Attention of many queries over paged KV on Hopper: what attention_append computes, with TMA and wgmma and warps that
// specialize (FlashAttention-3, Shah et al., 2024).
//
// Layout      KV and plan as for attention_append. `map` describes the layer's KV as a matrix: a row for each position of K
//             or V of a page, KV heads times HEAD columns. A box is 64 columns of `box` rows, which divides the page.
// Tile        Two consumer warpgroups take 64 rows each: two tiles of the plan that follow each other, over the same keys if
//             they have a page table in common. A producer warp brings KEYS keys and values at a time through STAGES
//             buffers. The consumers take turns on the tensor cores: one multiplies while the other computes weights.
// Intensity   As attention_append, with K and V read once for 128 rows: 128 operations a byte and more.
//
// Values behind the last position may be anything, and NaN times a weight of zero is NaN: the producer clears what the
// last tile holds of them.
#include "attention.cuh"
#include "hopper.cuh"

constexpr int ROWS = 64;
constexpr int KEYS = 64;
constexpr int STAGES = 2;
constexpr int THREADS = 384;
constexpr int PANELS = HEAD / 64;
static_assert(HEAD % 64 == 0 && HEAD <= 256, "HEAD: 64, 128, 192 or 256");
static_assert(GROUP <= ROWS, "a token's heads are rows of one tile");

struct Tile {
    int slot;
    // Tokens first, first + 1, .. of the batch, or entries of `token_list` where the tile writes parts.
    int first;
    int tokens;
    // Absolute position of the first token; each token sees positions up to its own. A tile that writes parts sees all.
    int position;
    // Positions of KV.
    int begin;
    int end;
    int part;
};

// Positions that are brought one tile of keys after the other, for the consumers of a mask.
struct Pass {
    int slot;
    int from;
    int end;
    int steps;
    int consumers;
};

__device__ __forceinline__ Pass pass_over(const Tile& tile, int begin, int end, int box, int consumers) {
    const int from = begin / box * box;
    return {tile.slot, from, end, (end - from + KEYS - 1) / KEYS, consumers};
}

// The tiles' passes: one if they have a page table in common.
__device__ __forceinline__ Pass pass_of(const Tile (&tiles)[2], bool together, int index, int box) {
    if (together)
        return pass_over(tiles[0], min(tiles[0].begin, tiles[1].begin), max(tiles[0].end, tiles[1].end), box, 3);
    const Tile& tile = index == 0 ? tiles[0] : tiles[1];
    return pass_over(tile, tile.begin, tile.end, box, 1 << index);
}

// A number that is the same for all lanes, so that the compiler knows: wgmma must not stand in divergent code.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(ALL_LANES, x, 0); }

__device__ __forceinline__ Tile load_tile(const Tile* from) {
    return {uniform(from->slot),  uniform(from->first), uniform(from->tokens), uniform(from->position),
            uniform(from->begin), uniform(from->end),   uniform(from->part)};
}

// out, queries: [token of the batch][KV head][GROUP][HEAD]. sinks: [head], or null. window: 0 is none.
// grid: (half the tiles, KV heads); dynamic shared memory: 6 * PANELS panels and 6 barriers.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
prefill_hopper(const __grid_constant__ TensorMap map, u16* __restrict__ out, const u16* __restrict__ queries,
               const Layer layer, const Tile* __restrict__ tile_list, const int* __restrict__ token_list,
               const u16* __restrict__ sinks, const int window, const Parts parts, const int tile_count, const int box) {
    extern __shared__ Panel panels[];
    Panel *query_panels = panels, *key_panels = panels + 2 * PANELS, *value_panels = key_panels + STAGES * PANELS;
    u64* full = reinterpret_cast<u64*>(value_panels + STAGES * PANELS);
    u64 *empty = full + STAGES, *cleared = empty + STAGES;

    const int group = uniform(threadIdx.x / 128), kv_head = blockIdx.y, lane = threadIdx.x % 32;
    const int first_tile = 2 * blockIdx.x, count = min(2, tile_count - first_tile);
    const Tile tiles[2] = {load_tile(tile_list + first_tile), load_tile(tile_list + first_tile + count - 1)};
    const bool together = count == 2 && tiles[0].slot == tiles[1].slot;
    const int passes = together ? 1 : count;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(full + stage, 1);
            init_barrier(empty + stage, 2);
            init_barrier(cleared + stage, 1);
        }
        fence_barriers();
    }
    __syncthreads();

    if (group == 2) {
        fewer_registers<24>();
        if (threadIdx.x >= 2 * 128 + 32) return;
        for (int index = 0, round = 0; index < passes; ++index) {
            const Pass pass = pass_of(tiles, together, index, box);
            for (int step = 0; step < pass.steps; ++step, ++round) {
                const int stage = round % STAGES, from = pass.from + step * KEYS;
                const int positions = min(KEYS, pass.end - from), boxes = (positions + box - 1) / box;
                Panel *keys = key_panels + stage * PANELS, *values = value_panels + stage * PANELS;
                wait(empty + stage, round / STAGES % 2 ^ 1);
                if (lane == 0) arrive_expecting(full + stage, boxes * box * 2 * PANELS * 128);
                __syncwarp();
                if (lane < boxes) {
                    const int position = from + lane * box;
                    const int page = page_of(layer, pass.slot, position / layer.page_size);
                    const int row = page * 2 * layer.page_size + position % layer.page_size;
#pragma unroll
                    for (int panel = 0; panel < PANELS; ++panel) {
                        const int column = kv_head * HEAD + panel * 64, to = lane * box * 64;
                        load_box(keys[panel].values + to, map, column, row, full + stage);
                        load_box(values[panel].values + to, map, column, row + layer.page_size, full + stage);
                    }
                }
                if (positions == KEYS) continue;
                // The tile's last rows: nobody multiplies them before they are cleared.
                wait(full + stage, round / STAGES % 2);
                for (int i = lane; i < (KEYS - positions) * 8; i += 32) {
                    const int at = positions * 64 + i * 8;
#pragma unroll
                    for (int panel = 0; panel < PANELS; ++panel) {
                        *reinterpret_cast<uint4*>(keys[panel].values + at) = make_uint4(0, 0, 0, 0);
                        *reinterpret_cast<uint4*>(values[panel].values + at) = make_uint4(0, 0, 0, 0);
                    }
                }
                fence_async();
                __syncwarp();
                if (lane == 0) arrive(cleared + stage);
            }
        }
        return;
    }

    more_registers<240>();
    const Tile tile = group == 0 ? tiles[0] : tiles[1];
    const int thread = threadIdx.x % 128, warp = thread / 32;
    const int rows = group < count ? tile.tokens * GROUP : 0;
    auto token_of = [&](int row) {
        const int token = tile.first + row / GROUP;
        return tile.part < 0 ? token : token_list[token];
    };
    auto head_of = [&](int row) { return size_t(kv_head) * GROUP + row % GROUP; };
    const size_t heads = size_t(layer.kv_heads) * GROUP;
    query_panels += group * PANELS;
    for (int i = thread; i < ROWS * HEAD / 8; i += 128) {
        const int row = i / (HEAD / 8), chunk = i % (HEAD / 8);
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (row < rows)
            bits = *reinterpret_cast<const uint4*>(queries + (token_of(row) * heads + head_of(row)) * HEAD + chunk * 8);
        u16* to = query_panels[chunk / 8].values + row * 64 + (chunk % 8 ^ row % 8) * 8;
        *reinterpret_cast<uint4*>(to) = bits;
    }
    fence_async();
    sync_threads(4 + group, 128);

    // The two rows of this lane, and the positions that they see.
    int newest[2], oldest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + lane / 4 + half * 8;
        newest[half] = tile.part < 0 ? tile.position + row / GROUP : tile.end - 1;
        oldest[half] = max(tile.begin, window > 0 ? newest[half] - window + 1 : 0);
    }
    float score[32], sum[PANELS][32], maximum[2] = {NEVER, NEVER}, total[2] = {0.f, 0.f};
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
#pragma unroll
        for (int i = 0; i < 32; ++i) sum[panel][i] = 0.f;
    }

    // By stage, whether it was cleared an odd number of times.
    u32 clearings = 0;
    for (int index = 0, round = 0; index < passes; ++index) {
        const Pass pass = pass_of(tiles, together, index, box);
        const bool takes_part = pass.consumers >> group & 1;
        // The first turn on the tensor cores is consumer 0's.
        if (together && group == 1) arrive_threads(2, 256);
        for (int step = 0; step < pass.steps; ++step, ++round) {
            const int stage = round % STAGES, from = pass.from + step * KEYS;
            Panel *keys = key_panels + stage * PANELS, *values = value_panels + stage * PANELS;
            wait(full + stage, round / STAGES % 2);
            if (from + KEYS > pass.end) {
                wait(cleared + stage, clearings >> stage & 1);
                clearings ^= 1u << stage;
            }
            const bool sees = takes_part && from < tile.end && from + KEYS > tile.begin;
            // The other one's turn follows, except after the last one.
            const bool hands_over = together && (group == 0 || step + 1 < pass.steps);
            if (together) sync_threads(2 + group, 256);
            if (!sees) {
                if (hands_over) arrive_threads(3 - group, 256);
            } else {
                wgmma_fence();
#pragma unroll
                for (int d = 0; d < HEAD; d += 16)
                    wgmma_rows(score, matrix(query_panels[d / 64].values + d % 64), matrix(keys[d / 64].values + d % 64),
                               d);
                wgmma_commit();
                if (hands_over) arrive_threads(3 - group, 256);
                wgmma_wait();
                float larger[2] = {maximum[0], maximum[1]};
#pragma unroll
                for (int i = 0; i < 32; ++i) {
                    const int position = from + i / 4 * 8 + lane % 4 * 2 + i % 2, half = i % 4 / 2;
                    const bool seen = position <= newest[half] && position >= oldest[half];
                    score[i] = seen ? logit(score[i] * layer.key_scale, layer.scale, layer.soft_cap) : NEVER;
                    larger[half] = fmaxf(larger[half], score[i]);
                }
                float shrink[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    larger[half] = fmaxf(larger[half], __shfl_xor_sync(ALL_LANES, larger[half], 1));
                    larger[half] = fmaxf(larger[half], __shfl_xor_sync(ALL_LANES, larger[half], 2));
                    shrink[half] = exp2_fast(maximum[half] - larger[half]);
                    maximum[half] = larger[half];
                    total[half] *= shrink[half];
                }
                u32 weight[KEYS / 16][4];
#pragma unroll
                for (int i = 0; i < 32; i += 2) {
                    const int half = i % 4 / 2;
                    // A row that has seen nothing yet has no largest logit to subtract.
                    const bool none = maximum[half] <= NEVER / 2;
                    const float low = none ? 0.f : exp2_fast(score[i] - maximum[half]);
                    const float high = none ? 0.f : exp2_fast(score[i + 1] - maximum[half]);
                    total[half] += low + high;
                    weight[i / 8][i / 2 % 4] = pack(low, high);
                }
#pragma unroll
                for (int panel = 0; panel < PANELS; ++panel) {
#pragma unroll
                    for (int i = 0; i < 32; ++i) sum[panel][i] *= shrink[i % 4 / 2];
                    pin(sum[panel]);
                }
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
                    for (int panel = 0; panel < PANELS; ++panel)
                        wgmma_columns(sum[panel], weight[k], matrix(values[panel].values + k * 16 * 64));
                }
                wgmma_commit();
                wgmma_wait();
            }
            // All warps of the group have read the stage.
            sync_threads(4 + group, 128);
            if (thread == 0) arrive(empty + stage);
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
        const int row = warp * 16 + lane / 4 + half * 8;
        if (row >= rows) continue;
        float shrink = layer.value_scale;
        if (tile.part < 0) {
            if (sinks != nullptr) {
                const float sink = widen(sinks[head_of(row)]) * LOG2_E;
                const float largest = fmaxf(maximum[half], sink), mine = exp2_fast(maximum[half] - largest);
                total[half] = total[half] * mine + exp2_fast(sink - largest);
                shrink *= mine;
            }
            shrink /= total[half];
            u16* to = out + (token_of(row) * heads + head_of(row)) * HEAD + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD / 8; ++n) {
                const float* pair = sum[n / 8] + n % 8 * 4 + half * 2;
                *reinterpret_cast<u32*>(to + n * 8) = pack(pair[0] * shrink, pair[1] * shrink);
            }
        } else {
            const size_t part = size_t(tile.part + row / GROUP) * heads + head_of(row);
            float* to = parts.sums + part * HEAD + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD / 8; ++n) {
                const float* pair = sum[n / 8] + n % 8 * 4 + half * 2;
                *reinterpret_cast<float2*>(to + n * 8) = make_float2(pair[0] * shrink, pair[1] * shrink);
            }
            if (lane % 4 == 0) {
                parts.marks[part * 2] = maximum[half];
                parts.marks[part * 2 + 1] = total[half];
            }
        }
    }
}
