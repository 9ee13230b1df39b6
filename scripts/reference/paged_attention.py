"""Attention over paged KV in numpy, to check kernels against.

Batches are as the XLA backend makes them: rows with one new token first, then longer ones, padding
behind; K and V of a head adjacent in a page; page tables that end in a padding page. What no row
may read is NaN.
"""

import numpy as np

# Element type, query heads, KV heads, window, soft cap, and the difference that is allowed.
CASES = [
    ("float32", 8, 2, None, None, 2e-6),
    ("float32", 4, 4, None, None, 2e-6),
    ("float32", 8, 2, 24, None, 2e-6),
    ("float32", 8, 2, None, 5.0, 2e-6),
    # One step of bfloat16 at the size of the largest output.
    ("bfloat16", 8, 2, None, None, 2e-2),
    ("bfloat16", 8, 2, 24, 5.0, 2e-2),
]
PAGE_SIZE, PAGES_PER_ROW, HEAD_DIM = 16, 6, 128
# (new tokens, tokens in the KV after them) of each row.
BATCHES = {
    "decode": [(1, 1), (1, 16), (1, 17), (1, 90), (1, 33)],
    "prefill": [(21, 21), (7, 55), (16, 96)],
    "mixed": [(1, 40), (1, 5), (30, 30), (3, 64), (1, 1)],
}
SCALE = 0.11


def attention(batch, queries, kv, tables, window, soft_cap):
    """The output of each real token: [tokens, heads, head_dim] in f64."""
    group = queries.shape[1] // (kv.shape[2] // 2)
    outputs, first = [], 0
    for row, (new, total) in enumerate(batch):
        pages = kv[tables[row]].reshape(-1, *kv.shape[2:]).astype(np.float64)[:total]
        keys, values = np.repeat(pages[:, 0::2], group, 1), np.repeat(pages[:, 1::2], group, 1)
        for token in range(new):
            position = total - new + token
            start = 0 if window is None else max(0, position - window + 1)
            query = queries[first + token].astype(np.float64)
            scores = np.einsum("hd,phd->hp", query, keys[start : position + 1]) * SCALE
            if soft_cap is not None:
                scores = soft_cap * np.tanh(scores / soft_cap)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            outputs.append(np.einsum("hp,phd->hd", weights, values[start : position + 1]))
        first += new
    return np.stack(outputs)


def check(make_kernel) -> None:
    """Compares kernels, which `make_kernel` makes from the fields of a shape, with `attention`;
    prints the largest difference of each case, and ends with an error if one is too large."""
    import jax.numpy as jnp

    failed = False
    for dtype, heads, kv_heads, window, soft_cap, allowed in CASES:
        for name, batch in BATCHES.items():
            random = np.random.default_rng(len(batch) + heads)
            rows, real_tokens = len(batch) + 2, sum(new for new, _ in batch)
            pages, tokens = rows * PAGES_PER_ROW + 1, real_tokens + 5
            sizes = dict(
                dtype=dtype,
                tokens=tokens,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=HEAD_DIM,
                pages=pages,
                page_size=PAGE_SIZE,
                rows=rows,
                pages_per_row=PAGES_PER_ROW,
                scale=SCALE,
                window=window,
                soft_cap=soft_cap,
            )
            queries = random.normal(size=(tokens, heads, HEAD_DIM)).astype(dtype)
            queries[real_tokens:] = np.nan
            kv_dims = (pages, PAGE_SIZE, 2 * kv_heads, HEAD_DIM)
            kv = np.full(kv_dims, np.nan).astype(dtype)
            tables = np.full((rows, PAGES_PER_ROW), pages - 1, np.int32)
            free = list(random.permutation(pages - 1))
            for row, (_, total) in enumerate(batch):
                for start in range(0, total, PAGE_SIZE):
                    page = tables[row, start // PAGE_SIZE] = free.pop()
                    filled = min(PAGE_SIZE, total - start)
                    kv[page, :filled] = random.normal(size=(filled, *kv_dims[2:])).astype(dtype)
            lengths = np.array([total for _, total in batch] + [0] * 2, np.int32)
            bounds = np.cumsum([0] + [new for new, _ in batch] + [0] * 2).astype(np.int32)
            count = np.array([len(batch)], np.int32)
            operands = (queries, kv, lengths, tables, bounds, count)
            found = make_kernel(**sizes)(*map(jnp.asarray, operands))
            found = np.asarray(found.astype(jnp.float32))[:real_tokens]
            expected = attention(batch, queries, kv, tables, window, soft_cap)
            difference = np.abs(found - expected).max()
            verdict = "ok" if difference <= allowed else "FAILED"
            failed |= verdict != "ok"
            what = f"{dtype}, {heads} heads on {kv_heads}, window {window}, cap {soft_cap}, {name}"
            print(f"{what}: {difference:.1e} of {allowed:.0e} ... {verdict}", flush=True)
    if failed:
        raise SystemExit("the kernel does not agree")
