//! Attention over paged KV, in StableHLO alone: it runs wherever XLA does.
//!
//! Each device works on its own heads. The new tokens' K and V are scattered into their pages, in
//! place, since the KV array is donated. Then a loop walks the page tables block by block, with an
//! online softmax (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022): what it reads
//! of the KV at one time is one block of each sequence, never a whole context.
//!
//! Decode rows have one query each, and prefill rows come in runs of queries that read the same
//! pages ([`StepShape`](super::step::StepShape)). Both are the same code with another run length.
//! The loop ends with the longest sequence of the segment; shorter ones are masked meanwhile.
//!
//! In a layer with a sliding window each run starts at the first page that it sees: no more pages
//! are read than the window and the run can touch, however long the sequences are, and the entries
//! of pages that were given back are not looked at.

mod ragged;

pub(crate) use ragged::{RaggedRows, plan};

use backend_api::{
    BackendError,
    program::{Attention, KeyValue, Program},
};

use super::{
    Geometry, ops,
    step::{Lowering, StepShape, kv_sharding},
};
use crate::stablehlo::{Element, Function, Order, Reduction, Sharding, Value};

/// Stands for minus infinity in the running maximum, and is finite so that differences are.
const LOW: f64 = -1e30;

/// The heads of one device, and what one attention layer is.
struct Heads<'a> {
    attention: &'a Attention,
    geometry: &'a Geometry,
    kv_heads: usize,
    /// Query heads of each KV head.
    group: usize,
}

/// Runs of tokens that share a page table: `runs` of `run` tokens.
struct Segment {
    start: usize,
    runs: usize,
    run: usize,
}

/// The part of their page tables that a segment's runs read.
struct Tables {
    /// `[runs, entries]`.
    pages: Value,
    /// `[runs]`: the position of each run's first entry; `None` for 0.
    start: Option<Value>,
    /// Entries that one turn of the loop reads; divides `entries`.
    at_once: usize,
}

impl Lowering<'_> {
    pub(super) fn attention(&mut self, attention: &Attention) -> Result<(), BackendError> {
        if self.shape.is_ragged {
            return self.ragged_attention(attention);
        }
        let devices = self.placement.devices;
        let group = usize::from(attention.group.0);
        let layer = kv_index(self.program, attention);
        let query = self.value(attention.query)?;
        let new = self.new_kv(attention)?;
        let kv_heads = self.placement.kv_heads(attention.kv_heads as usize);
        let query_heads = self.width(attention.query) / attention.head_dim as usize;
        let heads = Heads {
            attention,
            geometry: self.geometry,
            kv_heads: kv_heads / devices,
            group: query_heads / kv_heads,
        };
        let shape = self.shape;
        let across = if devices == 1 { Sharding::REPLICATED } else { Sharding::along(1) };
        let whole = Sharding::REPLICATED;
        let kv_sharding = kv_sharding(self.placement);
        let mut inputs = vec![
            (&query, across),
            (&self.kv[layer], kv_sharding),
            (&self.tables[group], whole),
            (&self.token_slots, whole),
            (&self.positions, whole),
        ];
        if let Some([key, value, destinations]) = &new {
            inputs.extend([(key, across), (value, across), (destinations, whole)]);
        }
        let sinks = attention.sinks.map(|weight| &self.weights[weight.index()]);
        if let Some(sinks) = sinks {
            inputs.push((sinks, if devices == 1 { whole } else { Sharding::along(0) }));
        }
        let body = |f: &mut Function, local: &[Value]| heads.lower(f, local, shape);
        let mut results =
            self.function.on_each_device(devices, &inputs, &[across, kv_sharding], body);
        // The body returns the output and the KV array.
        if let (Some(kv), Some(out)) = (results.pop(), results.pop()) {
            self.kv[layer] = kv;
            self.set(attention.out, out);
        }
        Ok(())
    }

    /// K and V of the new tokens, and where they go, unless an earlier layer wrote them.
    fn new_kv(&mut self, attention: &Attention) -> Result<Option<[Value; 3]>, BackendError> {
        let Some(KeyValue { key, value }) = attention.new else { return Ok(None) };
        let destinations = self.destinations(usize::from(attention.group.0));
        Ok(Some([self.value(key)?, self.value(value)?, destinations]))
    }

    /// Where each token's K and V go in a group: `page * page_size + offset`, `[tokens]`.
    fn destinations(&mut self, group: usize) -> Value {
        if let Some(known) = &self.destinations[group] {
            return known.clone();
        }
        let table = self.tables[group].clone();
        let f = &mut self.function;
        let tokens = [self.shape.tokens()];
        let page_size = f.splat(Element::I32, &tokens, self.geometry.page_size as f64);
        let table_len = f.splat(Element::I32, &tokens, table.dim(1) as f64);
        let flat_table = f.reshape(&table, &[table.dim(0) * table.dim(1)]);
        let row = f.multiply(&self.token_slots, &table_len);
        let entry = f.divide(&self.positions, &page_size);
        let entry = f.add(&row, &entry);
        let page = f.take(&flat_table, &entry);
        let page_start = f.multiply(&page, &page_size);
        let offset = f.remainder(&self.positions, &page_size);
        let destinations = f.add(&page_start, &offset);
        self.destinations[group] = Some(destinations.clone());
        destinations
    }
}

/// The KV array of an attention layer, in the order of [`Geometry::kv_types`].
pub(crate) fn kv_index(program: &Program, attention: &Attention) -> usize {
    let before = &program.groups()[..usize::from(attention.group.0)];
    before.iter().map(|group| group.layers as usize).sum::<usize>() + attention.layer as usize
}

impl Heads<'_> {
    /// Writes K and V, then attends. Returns the output and the KV array.
    fn lower(&self, f: &mut Function, local: &[Value], shape: StepShape) -> Vec<Value> {
        let [query, kv, table, slots, positions, rest @ ..] = local else { return Vec::new() };
        let (kv, sinks) = match rest {
            [key, value, destinations, sinks @ ..] if self.attention.new.is_some() => {
                (self.write(f, key, value, kv, destinations), sinks)
            }
            sinks => (kv.clone(), sinks),
        };
        let decode = Segment { start: 0, runs: shape.decode, run: 1 };
        let prefill = Segment { start: shape.decode, runs: shape.blocks, run: shape.block };
        let mut parts = Vec::new();
        for segment in [decode, prefill] {
            if segment.runs > 0 {
                let part =
                    self.attend(f, &segment, query, &kv, table, slots, positions, sinks.first());
                parts.push(part);
            }
        }
        let parts: Vec<&Value> = parts.iter().collect();
        vec![f.concatenate(&parts, 0), kv]
    }

    /// Scatters the new tokens' K and V, `[tokens, kv_heads * head_dim]` each, into the pages.
    fn write(
        &self,
        f: &mut Function,
        key: &Value,
        value: &Value,
        kv: &Value,
        destinations: &Value,
    ) -> Value {
        let (tokens, head_dim) = (key.dim(0), self.attention.head_dim as usize);
        let apart = [tokens, self.kv_heads, 1, head_dim];
        let key = f.reshape(key, &apart);
        let value = f.reshape(value, &apart);
        let both = f.concatenate(&[&key, &value], 2);
        let both = f.reshape(&both, &[tokens, 2 * self.kv_heads, head_dim]);
        let both = f.convert(&both, kv.element());
        let pages = kv.dims().to_vec();
        let flat = f.reshape(kv, &[pages[0] * pages[1], pages[2], pages[3]]);
        let flat = f.put(&flat, destinations, &both);
        f.reshape(&flat, &pages)
    }

    /// Attention of one segment: `[runs * run, heads * head_dim]`.
    #[allow(clippy::too_many_arguments)] // The operands of one equation.
    fn attend(
        &self,
        f: &mut Function,
        segment: &Segment,
        query: &Value,
        kv: &Value,
        table: &Value,
        slots: &Value,
        positions: &Value,
        sinks: Option<&Value>,
    ) -> Value {
        let &Segment { start, runs, run } = segment;
        let (kv_heads, group) = (self.kv_heads, self.group);
        let head_dim = self.attention.head_dim as usize;
        let queries = group * run;
        let tokens = runs * run;

        // [runs, kv_heads, group * run, head_dim]: all queries that read one KV head together.
        let q = f.slice(query, 0, start, tokens);
        let q = f.scale(&q, self.attention.scale);
        let q = f.convert(&q, kv.element());
        let q = f.reshape(&q, &[runs, run, kv_heads, group, head_dim]);
        let q = f.transpose(&q, &[0, 2, 3, 1, 4]);
        let q = f.reshape(&q, &[runs, kv_heads, queries, head_dim]);

        // A run's tokens are of one row, and its first is no padding unless all are.
        let slots = f.slice(slots, 0, start, tokens);
        let slots = f.reshape(&slots, &[runs, run]);
        let slots = f.slice(&slots, 1, 0, 1);
        let slots = f.reshape(&slots, &[runs]);
        let positions = f.slice(positions, 0, start, tokens);
        let positions = f.reshape(&positions, &[runs, run]);
        let tables = self.tables(f, table, &slots, &positions);

        let block = tables.at_once * self.geometry.page_size;
        let distance = match &tables.start {
            Some(start) => {
                let start = f.broadcast_to(start, &positions, &[0]);
                f.subtract(&positions, &start)
            }
            None => positions.clone(),
        };
        let first = f.int(0);
        let last = f.reduce(&distance, Reduction::Max, &[0, 1]);
        let block_size = f.int(block);
        let last = f.divide(&last, &block_size);

        let rows = [runs, kv_heads, queries];
        let (maximum, total) = match sinks {
            // A sink is one more logit, whose value is zero.
            Some(sinks) => {
                let sinks = f.reshape(sinks, &[kv_heads, group]);
                let sinks = f.broadcast(&sinks, &[runs, kv_heads, group, run], &[1, 2]);
                (f.reshape(&sinks, &rows), f.splat(Element::F32, &rows, 1.0))
            }
            None => (f.splat(Element::F32, &rows, LOW), f.splat(Element::F32, &rows, 0.0)),
        };
        let sum = f.splat(Element::F32, &[runs, kv_heads, queries, head_dim], 0.0);
        let state = f.while_loop(
            &[&first, &maximum, &total, &sum],
            |f, state| f.compare(&state[0], Order::LessEqual, &last),
            |f, state| self.block(f, state, &q, kv, &tables, &positions),
        );
        let total = f.broadcast_to(&state[2], &state[3], &[0, 1, 2]);
        let out = f.divide(&state[3], &total);
        let out = f.convert(&out, query.element());
        let out = f.reshape(&out, &[runs, kv_heads, group, run, head_dim]);
        let out = f.transpose(&out, &[0, 3, 1, 2, 4]);
        f.reshape(&out, &[tokens, kv_heads * group * head_dim])
    }

    /// What the runs read of the page tables: all of it, or the entries that the window of a run's
    /// first token begins in and those behind.
    fn tables(&self, f: &mut Function, table: &Value, slots: &Value, positions: &Value) -> Tables {
        let (runs, run) = (positions.dim(0), positions.dim(1));
        let Geometry { page_size, table_len, .. } = *self.geometry;
        let window = self.attention.window.map_or(usize::MAX, |window| window as usize);
        // So many positions from anywhere in a page touch at most so many pages.
        let seen = window.saturating_add(run - 1);
        let entries = ((seen - 1).div_ceil(page_size) + 1).min(table_len);
        let most = self.geometry.pages_per_block();
        let at_once = most.min(entries);
        let entries = entries.next_multiple_of(at_once);
        if entries >= table_len {
            return Tables { pages: f.take(table, slots), start: None, at_once: most };
        }
        let oldest = f.slice(positions, 1, 0, 1);
        let oldest = f.reshape(&oldest, &[runs]);
        let before = f.splat(Element::I32, &[runs], (window - 1) as f64);
        let oldest = f.subtract(&oldest, &before);
        let zero = f.splat(Element::I32, &[runs], 0.0);
        let oldest = f.maximum(&oldest, &zero);
        let size = f.splat(Element::I32, &[runs], page_size as f64);
        let first = f.divide(&oldest, &size);

        let dims = [runs, entries];
        let entry = f.broadcast(&first, &dims, &[0]);
        let offset = f.iota(Element::I32, &dims, 1);
        let entry = f.add(&entry, &offset);
        // Beyond the table there is nothing that a token sees.
        let end = f.splat(Element::I32, &dims, (table_len - 1) as f64);
        let entry = f.minimum(&entry, &end);
        let width = f.splat(Element::I32, &[runs], table_len as f64);
        let row = f.multiply(slots, &width);
        let row = f.broadcast(&row, &dims, &[0]);
        let entry = f.add(&row, &entry);
        let flat = f.reshape(table, &[table.dim(0) * table_len]);
        Tables { pages: f.take(&flat, &entry), start: Some(f.multiply(&first, &size)), at_once }
    }

    /// One turn of the loop: reads a block of each sequence's KV and folds it into the running
    /// maximum, total and sum.
    fn block(
        &self,
        f: &mut Function,
        state: &[Value],
        q: &Value,
        kv: &Value,
        tables: &Tables,
        positions: &Value,
    ) -> Vec<Value> {
        let [index, maximum, total, sum] = state else { return Vec::new() };
        let (runs, run) = (positions.dim(0), positions.dim(1));
        let pages = tables.at_once;
        let block = pages * self.geometry.page_size;
        let one = f.int(1);
        let next = f.add(index, &one);

        let pages_size = f.int(pages);
        let entry = f.multiply(index, &pages_size);
        let entries = f.dynamic_slice(&tables.pages, 1, &entry, pages);
        let [key, value] = self.read(f, kv, &entries);
        let keys = self.keys(f, index, tables, [runs, block]);
        // What an earlier owner left behind the sequence need not be a number, and a weight of 0
        // would not help against it.
        let last = f.reduce(positions, Reduction::Max, &[1]);
        let last = f.broadcast_to(&last, &keys, &[0]);
        let exists = f.compare(&keys, Order::LessEqual, &last);
        let exists = f.broadcast_to(&exists, &value, &[0, 2]);
        let nothing = f.splat(value.element(), value.dims(), 0.0);
        let value = f.select(&exists, &value, &nothing);

        let mut scores = f.dot((q, &key), &[(0, 0), (1, 1)], (3, 3), Element::F32);
        if let Some(cap) = self.attention.soft_cap {
            scores = ops::soft_cap(f, &scores, cap);
        }
        let seen = self.seen(f, &keys, positions);
        let seen = f.broadcast(&seen, &[runs, self.kv_heads, self.group, run, block], &[0, 3, 4]);
        let seen = f.reshape(&seen, scores.dims());
        let low = f.splat(Element::F32, scores.dims(), LOW);
        let scores = f.select(&seen, &scores, &low);

        let largest = f.reduce(&scores, Reduction::Max, &[3]);
        let largest = f.maximum(maximum, &largest);
        let shift = f.broadcast_to(&largest, &scores, &[0, 1, 2]);
        let weights = f.subtract(&scores, &shift);
        let weights = f.exponential(&weights);
        let nothing = f.splat(Element::F32, scores.dims(), 0.0);
        let weights = f.select(&seen, &weights, &nothing);
        let correction = f.subtract(maximum, &largest);
        let correction = f.exponential(&correction);

        let added = f.reduce(&weights, Reduction::Sum, &[3]);
        let total = f.multiply(total, &correction);
        let total = f.add(&total, &added);
        let weights = f.convert(&weights, kv.element());
        let added = f.dot((&weights, &value), &[(0, 0), (1, 1)], (3, 2), Element::F32);
        let correction = f.broadcast_to(&correction, sum, &[0, 1, 2]);
        let sum = f.multiply(sum, &correction);
        let sum = f.add(&sum, &added);
        vec![next, largest, total, sum]
    }

    /// The keys and values of pages `entries`, `[runs, pages]`, each as `[runs, kv_heads,
    /// pages * page_size, head_dim]`. They are put into this order together, in one pass over what
    /// was read; the product would transpose each of them.
    fn read(&self, f: &mut Function, kv: &Value, entries: &Value) -> [Value; 2] {
        let runs = entries.dim(0);
        let [page_size, heads, head_dim] = [kv.dim(1), kv.dim(2), kv.dim(3)];
        let block = entries.dim(1) * page_size;
        let read = f.take(kv, entries);
        let read = f.reshape(&read, &[runs, block, heads, head_dim]);
        let read = f.transpose(&read, &[0, 2, 1, 3]);
        let read = f.reshape(&read, &[runs, self.kv_heads, 2, block, head_dim]);
        [0, 1].map(|which| {
            let part = f.slice(&read, 2, which, 1);
            f.reshape(&part, &[runs, self.kv_heads, block, head_dim])
        })
    }

    /// The positions of block `index` of each run: `[runs, block]`.
    fn keys(&self, f: &mut Function, index: &Value, tables: &Tables, dims: [usize; 2]) -> Value {
        let block_size = f.int(dims[1]);
        let first = f.multiply(index, &block_size);
        let first = f.broadcast(&first, &dims, &[]);
        let offset = f.iota(Element::I32, &dims, 1);
        let keys = f.add(&first, &offset);
        let Some(start) = &tables.start else { return keys };
        let start = f.broadcast(start, &dims, &[0]);
        f.add(&keys, &start)
    }

    /// Which of the positions `keys` each token sees: `[runs, run, block]`.
    fn seen(&self, f: &mut Function, keys: &Value, positions: &Value) -> Value {
        let dims = [positions.dim(0), positions.dim(1), keys.dim(1)];
        let key = f.broadcast(keys, &dims, &[0, 2]);
        let own = f.broadcast(positions, &dims, &[0, 1]);
        let seen = f.compare(&key, Order::LessEqual, &own);
        let Some(window) = self.attention.window else { return seen };
        let distance = f.subtract(&own, &key);
        let window = f.splat(Element::I32, &dims, f64::from(window));
        let near = f.compare(&distance, Order::Less, &window);
        f.and(&seen, &near)
    }
}
