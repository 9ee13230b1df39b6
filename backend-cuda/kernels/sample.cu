// A token for each row of logits: mask, temperature, top-k, top-p, min-p, Gumbel-max with Philox noise (Salmon et al.,
// 2011), as backend_api::sample defines it.
//
// Layout      logits: [row][vocabulary] f32.
// Tile        a block for each row. The logits are read once for the largest, four times for each of top-k and top-p (radix
//             selection, eight bits at a time), once to sample; they stay in the L2 cache between.
// Intensity   a few operations for 4 bytes: bound by memory, and small beside the product that makes the logits.
//
// A row's token depends on the row alone: masses are summed as integers, so no order of threads shows.
#include "common.cuh"

constexpr int THREADS = 512;

struct Sampling {
    // 0: the largest logit, of equal ones the lowest id.
    float temperature;
    // 0: all.
    u32 top_k;
    // 1: all.
    float top_p;
    // 0: all.
    float min_p;
    u32 seed_low;
    u32 seed_high;
    u32 sample_index;
    u32 position;
    // Slot whose next token this is.
    int slot;
    // First word of the row's mask, or -1: bit t % 32 of word t / 32 allows token t.
    int mask;
};

// Larger floats have larger keys.
__device__ __forceinline__ u32 key_of(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u32 noise_word(const Sampling& s, u32 token) {
    u32 c0 = token / 4, c1 = s.position, c2 = s.sample_index, c3 = 0, k0 = s.seed_low, k1 = s.seed_high;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 a_high = __umulhi(0xD2511F53u, c0), a_low = 0xD2511F53u * c0;
        const u32 b_high = __umulhi(0xCD9E8D57u, c2), b_low = 0xCD9E8D57u * c2;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const u32 words[2][2] = {{c0, c1}, {c2, c3}};
    return words[token % 4 / 2][token % 2];
}

// A standard Gumbel variable from 32 random bits.
__device__ __forceinline__ float gumbel(u32 word) {
    const double uniform = (double(word) + 0.5) * (1.0 / 4294967296.0);
    // Close to 1 the logarithm needs more digits than f32 has; -log1p(-x) keeps them.
    const float inner = uniform > 0.5 ? -log1pf(float(uniform - 1.0)) : -logf(float(uniform));
    return -logf(inner);
}

struct Best {
    float value;
    int token;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.token < a.token) ? b : a;
}

__device__ __forceinline__ Best block_best(Best best, Best* scratch) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const Best other = {__shfl_xor_sync(ALL_LANES, best.value, step), __shfl_xor_sync(ALL_LANES, best.token, step)};
        best = better(best, other);
    }
    __syncthreads();
    if (lane == 0) scratch[warp] = best;
    __syncthreads();
    best = scratch[0];
    for (int w = 1; w < THREADS / 32; ++w) best = better(best, scratch[w]);
    return best;
}

// The tokens that are kept: keys above `key`, and of equal ones those with ids up to `last`.
struct Cut {
    u32 key;
    int last;
};

// tokens: [row], next: [slot]; both get the sampled token. Where a logit is not finite, tokens gets -1 and next 0, a token that
// exists. grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
sample(int* __restrict__ tokens, int* __restrict__ next, const float* __restrict__ logits,
       const Sampling* __restrict__ samplings, const u32* __restrict__ masks, const int vocabulary) {
    __shared__ Best scratch[THREADS / 32];
    __shared__ u64 bins[256];
    __shared__ u32 chosen_bin;
    __shared__ u64 rest;

    const Sampling s = samplings[blockIdx.x];
    const float* row = logits + size_t(blockIdx.x) * vocabulary;
    const u32* mask = s.mask < 0 ? nullptr : masks + s.mask;
    auto allowed = [&](int token) { return mask == nullptr || (mask[token / 32] >> (token % 32) & 1); };

    Best best = {__uint_as_float(0xff800000u), vocabulary};
    int broken = 0;
    for (int token = threadIdx.x; token < vocabulary; token += THREADS) {
        broken |= !(fabsf(row[token]) < __uint_as_float(0x7f800000u));
        if (allowed(token)) best = better(best, {row[token], token});
    }
    if (__syncthreads_or(broken)) {
        if (threadIdx.x == 0) {
            tokens[blockIdx.x] = -1;
            next[s.slot] = 0;
        }
        return;
    }
    best = block_best(best, scratch);
    if (s.temperature <= 0.f) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = next[s.slot] = best.token;
        return;
    }

    // Distances to the largest: never above 0, so a tiny temperature can't overflow.
    auto distance = [&](int token) { return (row[token] - best.value) / s.temperature; };
    // A token's share of the mass, relative to the likeliest one's, with 40 bits behind the point.
    auto mass = [&](int token) { return u64(exp2f(distance(token) * LOG2_E) * 1099511627776.f); };
    Cut cut = {0, vocabulary};
    auto kept = [&](int token) {
        const u32 key = key_of(row[token]);
        return allowed(token) && (key > cut.key || (key == cut.key && token <= cut.last));
    };

    // Cuts where the sum of `amount` over the kept tokens, likeliest first, reaches `wanted`.
    auto select = [&](auto amount, u64 wanted) {
        u32 prefix = 0;
        if (threadIdx.x == 0) rest = wanted;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int bin = threadIdx.x; bin < 256; bin += THREADS) bins[bin] = 0;
            __syncthreads();
            for (int token = threadIdx.x; token < vocabulary; token += THREADS) {
                const u32 key = key_of(row[token]);
                const bool inside = shift == 24 || (key ^ prefix) >> (shift + 8) == 0;
                if (inside && kept(token)) atomicAdd(&bins[key >> shift & 0xff], amount(token));
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                int bin = 255;
                while (bin > 0 && bins[bin] < rest) rest -= bins[bin--];
                chosen_bin = bin;
            }
            __syncthreads();
            prefix |= chosen_bin << shift;
        }
        // Of the tokens whose key is the prefix the lowest ids stay: as many as bring the rest.
        int last = vocabulary;
        const u64 equal = bins[prefix & 0xff];
        if (equal > rest) {
            int low = 0, high = vocabulary - 1;
            while (low < high) {
                const int middle = (low + high) / 2;
                __syncthreads();
                if (threadIdx.x == 0) bins[0] = 0;
                __syncthreads();
                for (int token = threadIdx.x; token <= middle; token += THREADS)
                    if (key_of(row[token]) == prefix && kept(token)) atomicAdd(&bins[0], amount(token));
                __syncthreads();
                if (bins[0] >= rest) high = middle; else low = middle + 1;
            }
            last = low;
        }
        __syncthreads();
        cut = {prefix, prefix == cut.key && cut.last < last ? cut.last : last};
    };

    if (s.top_k > 0 && s.top_k < u32(vocabulary)) select([](int) { return u64(1); }, s.top_k);
    if (s.top_p < 1.f) {
        for (int bin = threadIdx.x; bin < 256; bin += THREADS) bins[bin] = 0;
        __syncthreads();
        u64 mine = 0;
        for (int token = threadIdx.x; token < vocabulary; token += THREADS)
            if (kept(token)) mine += mass(token);
        atomicAdd(&bins[0], mine);
        __syncthreads();
        const u64 wanted = u64(double(bins[0]) * double(s.top_p));
        __syncthreads();
        select(mass, wanted > 0 ? wanted : 1);
    }
    const float least = s.min_p > 0.f ? logf(s.min_p) : __uint_as_float(0xff800000u);

    Best sampled = {__uint_as_float(0xff800000u), best.token};
    for (int token = threadIdx.x; token < vocabulary; token += THREADS) {
        const float x = distance(token);
        if (!kept(token) || x < least) continue;
        sampled = better(sampled, {x + gumbel(noise_word(s, token)), token});
    }
    sampled = block_best(sampled, scratch);
    if (threadIdx.x == 0) tokens[blockIdx.x] = next[s.slot] = sampled.token;
}
