// Attention of one new token of each row over paged KV (grouped queries, Ainslie et al., 2023), with the KV of a long
// row divided between blocks (Flash-Decoding, Dao et al., 2023).
//
// Layout      KV as in attention.cuh. A block takes pieces of rows' KV for one KV head, one after another, and computes the
//             GROUP query heads that share it together: K and V are read once.
// Tile        4 warps; LANES lanes read a position, 16 bytes each at a time, so a warp reads 32 / LANES positions at once.
//             Each group of lanes keeps a running softmax (Milakov, Gimelshein, 2018); shared memory merges them.
// Intensity   4 * GROUP * HEAD operations for 2 * HEAD KV elements: GROUP operations a byte in bf16. So device memory
//             bounds it on every GPU, and the aim is its bandwidth.
//
// One piece a row writes the row's output itself; of several, each writes a part, and `attention_merge` adds them up.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
// Lanes that read one position together, and how many runs of eight elements each reads.
constexpr int lanes_for(int chunks) {
    int lanes = 1;
    while (lanes < chunks && lanes < 32) lanes *= 2;
    return lanes;
}
constexpr int CHUNKS = HEAD / 8;
constexpr int LANES = lanes_for(CHUNKS);
constexpr int RUNS = (CHUNKS + LANES - 1) / LANES;
constexpr int AT_ONCE = 32 / LANES;
// Entries of the page table that a block keeps at a time, so that each is read once.
constexpr int PAGES = 256;

struct Piece {
    int row;
    int slot;
    int begin;
    int end;
    // The part to write, or -1: the piece is the whole row.
    int part;
};

struct Share {
    int first;
    int count;
};

__device__ __forceinline__ void attend(u16* out, const u16* queries, const Layer& layer, const Piece piece,
                                       const u16* sinks, const Parts& parts) {
    __shared__ float marks[WARPS][GROUP][2];
    __shared__ float partial[WARPS][GROUP][HEAD];
    __shared__ int pages[PAGES];
    __shared__ __align__(16) u16 staged[GROUP * HEAD];

    const int kv_head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = lane / LANES, within = lane % LANES;
    const size_t first_head = (size_t(piece.row) * layer.kv_heads + kv_head) * GROUP;

    for (int i = threadIdx.x; i < GROUP * CHUNKS; i += THREADS)
        *reinterpret_cast<uint4*>(staged + i * 8) = *reinterpret_cast<const uint4*>(queries + first_head * HEAD + i * 8);
    __syncthreads();
    float query[GROUP][RUNS][8], sum[GROUP][RUNS][8], maximum[GROUP], total[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
        maximum[g] = NEVER;
        total[g] = 0.f;
#pragma unroll
        for (int r = 0; r < RUNS; ++r) {
            const int chunk = r * LANES + within;
#pragma unroll
            for (int i = 0; i < 8; ++i) query[g][r][i] = sum[g][r][i] = 0.f;
            if (chunk < CHUNKS) load8(query[g][r], staged + g * HEAD + chunk * 8);
        }
    }

    // All lanes go round equally often: the shuffles need them.
    const int step = WARPS * AT_ONCE;
    // Positions before this one have their pages in shared memory.
    int loaded = piece.begin, first_page = 0;
    for (int first = piece.begin; first < piece.end; first += step) {
        if (first + step > loaded) {
            // The pages of the next positions, from the first that is still needed.
            const int from = first / layer.page_size;
            const int count = min((piece.end - 1) / layer.page_size - from + 1, PAGES);
            if (first > piece.begin) __syncthreads();
            for (int i = threadIdx.x; i < count; i += THREADS) pages[i] = page_of(layer, piece.slot, from + i);
            __syncthreads();
            first_page = from;
            loaded = from + count > (piece.end - 1) / layer.page_size ? 0x7fffffff : (from + count) * layer.page_size;
        }
        const int position = first + warp * AT_ONCE + group;
        const bool exists = position < piece.end;
        const int shown = exists ? position : first;
        const size_t at = place_in_page(layer, pages[shown / layer.page_size - first_page], shown, kv_head);
        float key[RUNS][8], value[RUNS][8];
#pragma unroll
        for (int r = 0; r < RUNS; ++r) {
            const int chunk = r * LANES + within;
            if (exists && chunk < CHUNKS) {
                load8(key[r], layer.kv + at + chunk * 8);
                load8(value[r], layer.kv + at + value_distance(layer) + chunk * 8);
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i) key[r][i] = value[r][i] = 0.f;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float score = 0.f;
#pragma unroll
            for (int r = 0; r < RUNS; ++r) {
#pragma unroll
                for (int i = 0; i < 8; ++i) score += query[g][r][i] * key[r][i];
            }
            score = lanes_sum<LANES>(score) * layer.key_scale;
            const float x = exists ? logit(score, layer.scale, layer.soft_cap) : NEVER;
            const float larger = fmaxf(maximum[g], x);
            const float shrink = exp2_fast(maximum[g] - larger);
            const float weight = exists ? exp2_fast(x - larger) : 0.f;
            maximum[g] = larger;
            total[g] = total[g] * shrink + weight;
#pragma unroll
            for (int r = 0; r < RUNS; ++r) {
#pragma unroll
                for (int i = 0; i < 8; ++i) sum[g][r][i] = sum[g][r][i] * shrink + weight * value[r][i];
            }
        }
    }

    // Groups of lanes within the warp, then the warps.
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
#pragma unroll
        for (int other = LANES; other < 32; other *= 2) {
            const float theirs = __shfl_xor_sync(ALL_LANES, maximum[g], other);
            const float larger = fmaxf(maximum[g], theirs);
            const float mine = exp2_fast(maximum[g] - larger);
            maximum[g] = larger;
            total[g] *= mine;
            total[g] += __shfl_xor_sync(ALL_LANES, total[g], other);
#pragma unroll
            for (int r = 0; r < RUNS; ++r) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    sum[g][r][i] *= mine;
                    sum[g][r][i] += __shfl_xor_sync(ALL_LANES, sum[g][r][i], other);
                }
            }
        }
        if (lane == 0) {
            marks[warp][g][0] = maximum[g];
            marks[warp][g][1] = total[g];
        }
        if (group == 0) {
#pragma unroll
            for (int r = 0; r < RUNS; ++r) {
                const int chunk = r * LANES + within;
                if (chunk < CHUNKS) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) partial[warp][g][i * CHUNKS + chunk] = sum[g][r][i];
                }
            }
        }
    }
    __syncthreads();

    for (int g = warp; g < GROUP; g += WARPS) {
        const size_t head = size_t(kv_head) * GROUP + g;
        const bool has_sink = piece.part < 0 && sinks != nullptr;
        float largest = has_sink ? widen(sinks[head]) * LOG2_E : NEVER;
        for (int w = 0; w < WARPS; ++w) largest = fmaxf(largest, marks[w][g][0]);
        float weights[WARPS], all = has_sink ? exp2_fast(widen(sinks[head]) * LOG2_E - largest) : 0.f;
        for (int w = 0; w < WARPS; ++w) {
            weights[w] = exp2_fast(marks[w][g][0] - largest);
            all += weights[w] * marks[w][g][1];
        }
        const size_t part = size_t(piece.part) * layer.kv_heads * GROUP + head;
        for (int chunk = lane; chunk < CHUNKS; chunk += 32) {
            float merged[8];
            for (int i = 0; i < 8; ++i) {
                merged[i] = 0.f;
                for (int w = 0; w < WARPS; ++w) merged[i] += weights[w] * partial[w][g][i * CHUNKS + chunk];
                merged[i] *= layer.value_scale;
            }
            if (piece.part < 0) {
                for (int i = 0; i < 8; ++i) merged[i] /= all;
                store8(out + (first_head + g) * HEAD + chunk * 8, merged);
            } else {
                float4* to = reinterpret_cast<float4*>(parts.sums + part * HEAD + chunk * 8);
                to[0] = make_float4(merged[0], merged[1], merged[2], merged[3]);
                to[1] = make_float4(merged[4], merged[5], merged[6], merged[7]);
            }
        }
        if (piece.part >= 0 && lane == 0) {
            parts.marks[part * 2] = largest;
            parts.marks[part * 2 + 1] = all;
        }
    }
}

// out, queries: [row][KV head][GROUP][HEAD]. sinks: [head], or null. grid: (shares, KV heads).
extern "C" __global__ void __launch_bounds__(THREADS)
attention_decode(u16* __restrict__ out, const u16* __restrict__ queries, const Layer layer,
                 const Piece* __restrict__ pieces, const Share* __restrict__ shares, const u16* __restrict__ sinks,
                 const Parts parts) {
    const Share share = shares[blockIdx.x];
    for (int i = 0; i < share.count; ++i) {
        if (i > 0) __syncthreads();
        attend(out, queries, layer, pieces[share.first + i], sinks, parts);
    }
}
