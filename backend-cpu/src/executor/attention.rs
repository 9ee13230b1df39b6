//! How the attention of a step is divided into tasks.
//!
//! A task is some tokens of a row and a KV head. Two changes to that, neither of which changes a
//! bit of the result:
//!
//! - **Shared prefixes** (cascade attention, as in FlashInfer): rows that share a run of pages are
//!   computed together up to the last whole block of the run, so that its keys and values are read
//!   once for up to [`ROWS_TOGETHER`] rows; each row goes on from its state.
//! - **Split contexts** (as in flash decoding): where few rows decode with long contexts, blocks are
//!   computed by themselves on all threads, and merged in order.
//!
//! States between tasks have room of their own, for as many as [`most_states`] says; a step that
//! would need more is computed without the change.

use backend_api::{CompileOptions, GroupId};

use super::{
    compile::AttentionInstruction, forward::Forward, owned_batch::OwnedBatch,
    step_memory::AttentionRoom,
};
use crate::{
    kernels::{
        attention::{
            AttentionLayer, AttentionTask, BLOCK, MergeTask, Part, Partials, QueryTokens,
            TOKENS_PER_TASK,
        },
        kv::KvLayer,
    },
    pool::{Pool, TaskPanicked},
    shared::SharedMut,
};

/// Rows that read a shared run of pages together, at most.
const ROWS_TOGETHER: usize = 16;
/// Blocks of a task where contexts are split.
const BLOCKS_PER_TASK: usize = 4;
/// Contexts of full length that are split at once, at most: so many keep all threads busy anyway.
const MOST_SPLIT: usize = 4;
/// Tokens of a step from which on writing their keys and values pays a parallel region.
const PARALLEL_WRITES: usize = 32;

/// Attention's tasks for one KV head.
#[derive(Debug, Default)]
pub(super) struct AttentionPlan {
    queries: Vec<Queries>,
    /// Rows that share pages.
    shared: Vec<SharedQueries>,
    /// Positions of the longest context of a decode row, if contexts are to be split.
    split: Option<usize>,
}

/// Tokens of a row.
#[derive(Clone, Copy, Debug)]
struct Queries {
    row: usize,
    tokens: QueryTokens,
    /// Where the row goes on from a shared prefix.
    start: usize,
    /// Its state after that prefix, or that of its first block.
    state: usize,
}

/// Tokens of rows that share pages.
#[derive(Clone, Copy, Debug)]
struct SharedQueries {
    /// One of the rows.
    row: usize,
    tokens: QueryTokens,
    /// Where the last whole block of the shared pages ends.
    end: usize,
    /// The first row's state.
    state: usize,
}

/// States that the largest step has room for, each of all heads of a token: after a shared prefix
/// one for each row, in split contexts one for each block.
pub(super) fn most_states(options: &CompileOptions, threads: usize) -> usize {
    let (rows, context) = (options.limits.rows as usize, options.context_length as usize);
    let split =
        if is_long(context) { rows.min(most_split_rows(threads)).min(MOST_SPLIT) } else { 0 };
    let shared = if context > BLOCK && rows > 1 { rows } else { 0 };
    shared.max(split.saturating_mul(context.div_ceil(BLOCK)))
}

/// Whether a context of so many positions is worth splitting.
fn is_long(context: usize) -> bool {
    context > 2 * BLOCKS_PER_TASK * BLOCK
}

/// Rows up to which contexts are split.
fn most_split_rows(threads: usize) -> usize {
    if threads > 1 { 2 * threads } else { 0 }
}

impl AttentionPlan {
    /// Plans a step for pages of `page_size` positions, some threads, and room for some states.
    pub(super) fn fill(
        &mut self,
        batch: &OwnedBatch,
        page_size: usize,
        threads: usize,
        room: usize,
    ) {
        self.queries.clear();
        self.shared.clear();
        for (index, row) in batch.rows.iter().enumerate() {
            let (count, position) = (row.tokens.len as usize, row.position as usize);
            for start in (0..count).step_by(TOKENS_PER_TASK) {
                let tokens = QueryTokens {
                    first_token: row.tokens.start as usize + start,
                    count: TOKENS_PER_TASK.min(count - start),
                    position: position + start,
                };
                self.queries.push(Queries { row: index, tokens, start: 0, state: 0 });
            }
        }
        let is_decode = |row: usize| batch.rows.get(row).is_some_and(|row| row.tokens.len == 1);
        for prefix in &batch.shared {
            let end = prefix.pages as usize * page_size / BLOCK * BLOCK;
            let mut rows = prefix.rows.range();
            while end > 0 && !rows.is_empty() {
                // A row of several tokens computes by itself.
                let first = rows.start;
                let together = rows.clone().take(ROWS_TOGETHER);
                let count = together.take_while(|&row| is_decode(row)).count();
                rows.start += count.max(1);
                self.share(batch, first, count, end, room);
            }
        }
        let longest = self.queries.iter().map(|queries| queries.tokens.position + 1).max();
        let is_few = self.queries.len() <= most_split_rows(threads);
        let all_decode = (0..batch.rows.len()).all(is_decode);
        self.split = longest
            .filter(|&longest| is_long(longest) && is_few && all_decode && self.shared.is_empty());
        if self.split.is_some() {
            let mut states = 0;
            for queries in &mut self.queries {
                queries.state = states;
                states += blocks_of(queries.tokens);
            }
            self.split = self.split.filter(|_| states <= room);
        }
    }

    /// Lets `count` decode rows from `first` on read the positions before `end` together.
    fn share(&mut self, batch: &OwnedBatch, first: usize, count: usize, end: usize, room: usize) {
        let state = self.shared.last().map_or(0, |shared| shared.state + shared.tokens.count);
        if count < 2 || state + count > room {
            return;
        }
        let first_token = batch.rows[first].tokens.start as usize;
        let tokens = QueryTokens { first_token, count, position: end };
        self.shared.push(SharedQueries { row: first, tokens, end, state });
        let from = self.queries.partition_point(|queries| queries.row < first);
        for (queries, state) in self.queries[from..][..count].iter_mut().zip(state..) {
            (queries.start, queries.state) = (end, state);
        }
    }

    /// Positions whose keys and values are read for each KV head of a layer without a window.
    #[cfg(test)]
    fn positions_read(&self) -> usize {
        let shared: usize = self.shared.iter().map(|shared| shared.end).sum();
        let own = self.queries.iter().map(|it| it.tokens.position + it.tokens.count - it.start);
        shared + own.sum::<usize>()
    }
}

/// Blocks that the context of a decode row has.
fn blocks_of(tokens: QueryTokens) -> usize {
    (tokens.position + 1).div_ceil(BLOCK)
}

/// Memory for states between tasks.
#[derive(Debug, Default)]
pub(super) struct AttentionStates {
    sums: Vec<f32>,
    softmax: Vec<[f32; 2]>,
    room: usize,
}

impl AttentionStates {
    pub(super) fn new(room: AttentionRoom) -> Self {
        let AttentionRoom { states, heads, width } = room;
        Self {
            sums: vec![0.0; states * width],
            softmax: vec![[0.0; 2]; states * heads],
            room: states,
        }
    }

    /// States that there is room for.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    pub(super) fn bytes(&self) -> u64 {
        (size_of_val(&self.sums[..]) + size_of_val(&self.softmax[..])) as u64
    }

    /// Bytes of such memory, without allocating it.
    pub(super) fn bytes_of(room: AttentionRoom) -> u64 {
        let values = (room.width as u64).saturating_add(2 * room.heads as u64);
        values.saturating_mul(room.states as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// States of so many heads, each with a sum of some width.
    fn partials(&mut self, heads: usize, width: usize) -> Partials<'_> {
        Partials {
            sums: SharedMut::new(&mut self.sums),
            softmax: SharedMut::new(&mut self.softmax),
            first: 0,
            blocks: 1,
            heads,
            width,
        }
    }
}

impl Forward<'_> {
    /// Writes keys and values of the step's tokens, and attends.
    pub(super) fn attention(
        &mut self,
        attention: &AttentionInstruction,
    ) -> Result<(), TaskPanicked> {
        let AttentionInstruction { query, out, group, layer, heads, .. } = *attention;
        self.write_kv(attention)?;
        let mut memory = self.take(out);
        let kv = &self.kv[group.index()][layer];
        let layer = AttentionLayer {
            kv,
            queries: &self.buffers[query.index],
            output: SharedMut::new(&mut memory),
            heads,
            scale: attention.scale,
            window: attention.window,
            soft_cap: attention.soft_cap,
            sinks: attention.sinks.map(|sinks| self.weights.vector(sinks)),
        };
        let (simd, plan) = (self.workers.simd, &self.shape.attention);
        let (kv_heads, width) = (kv.shape().kv_heads, kv.shape().value_width());
        let batch = self.batch;
        let table = |row: usize| batch.table(row, group);
        let workers = &mut *self.workers;
        let scratch = SharedMut::new(&mut workers.attention);
        // SAFETY: no two tasks that run at the same time have the same thread number.
        let scratch = |thread: usize| unsafe { &mut scratch.part(thread..thread + 1)[0] };
        let partials = self.states.partials(heads, width);
        let result = match plan.split.filter(|_| attention.window.is_none()) {
            Some(longest) => {
                let parts = longest.div_ceil(BLOCK).div_ceil(BLOCKS_PER_TASK);
                let tasks = plan.queries.len() * kv_heads * parts;
                let blocks = workers.pool.run(tasks, &|thread, task| {
                    let Queries { row, tokens, state, .. } = plan.queries[task / parts / kv_heads];
                    let (kv_head, first) =
                        (task / parts % kv_heads, task % parts * BLOCKS_PER_TASK);
                    let end = first + BLOCKS_PER_TASK;
                    let to = partials.of(state, blocks_of(tokens));
                    let part = Part::Blocks { first, end, to };
                    let (pages, scratch) = (table(row), scratch(thread));
                    AttentionTask { layer, pages, tokens, part, kv_head, scratch }.run(simd);
                });
                blocks.and_then(|()| {
                    workers.pool.run(plan.queries.len() * heads, &|thread, task| {
                        let Queries { tokens, state, .. } = plan.queries[task / heads];
                        let blocks = blocks_of(tokens);
                        let partials = partials.of(state, blocks);
                        let (token, head) = (tokens.first_token, task % heads);
                        let sums = scratch(thread).sums();
                        simd.run(MergeTask { layer, partials, token, head, blocks, sums });
                    })
                })
            }
            None => {
                let shares = attention.window.is_none() && !plan.shared.is_empty();
                let shared = if shares { plan.shared.len() * kv_heads } else { 0 };
                let before = workers.pool.run(shared, &|thread, task| {
                    let SharedQueries { row, tokens, end, state } = plan.shared[task / kv_heads];
                    let part = Part::Before { end, to: partials.of(state, 1) };
                    let (pages, kv_head) = (table(row), task % kv_heads);
                    let scratch = scratch(thread);
                    AttentionTask { layer, pages, tokens, part, kv_head, scratch }.run(simd);
                });
                before.and_then(|()| {
                    workers.pool.run(plan.queries.len() * kv_heads, &|thread, task| {
                        let Queries { row, tokens, start, state } = plan.queries[task / kv_heads];
                        let part = match start {
                            start if start > 0 && shares => {
                                Part::After { start, from: partials.of(state, 1) }
                            }
                            _ => Part::Whole,
                        };
                        let (pages, kv_head) = (table(row), task % kv_heads);
                        let scratch = scratch(thread);
                        AttentionTask { layer, pages, tokens, part, kv_head, scratch }.run(simd);
                    })
                })
            }
        };
        self.put_back(out, memory);
        result
    }

    /// Writes keys and values of the step's tokens, in parallel by head if that pays.
    fn write_kv(&mut self, attention: &AttentionInstruction) -> Result<(), TaskPanicked> {
        let AttentionInstruction { new: Some([key, value]), group, layer, .. } = *attention else {
            // The layer attends to what another one wrote.
            return Ok(());
        };
        let kv = &self.kv[group.index()][layer];
        let (keys, values) = (&self.buffers[key.index], &self.buffers[value.index]);
        let operands = (&keys[..], key.width, &values[..], value.width);
        let batch = self.batch;
        let heads = kv.shape().kv_heads;
        if self.shape.positions.len() < PARALLEL_WRITES {
            return Pool::run_here(heads, &|head| write_head(kv, batch, group, head, operands));
        }
        self.workers.pool.run(heads, &|_, head| write_head(kv, batch, group, head, operands))
    }
}

/// Writes a head's keys and values of all tokens.
fn write_head(
    kv: &KvLayer,
    batch: &OwnedBatch,
    group: GroupId,
    head: usize,
    (keys, key_width, values, value_width): (&[f32], usize, &[f32], usize),
) {
    let (page_size, dim) = (kv.shape().page_size, kv.shape().head_dim);
    for (row_index, row) in batch.rows.iter().enumerate() {
        let table = batch.table(row_index, group);
        for (token, position) in row.tokens.range().zip(row.position as usize..) {
            let key = &keys[token * key_width + head * dim..][..dim];
            let value = &values[token * value_width + head * dim..][..dim];
            let page = table[position / page_size];
            // SAFETY: a task writes all of a head, and nobody reads before all tasks are done.
            unsafe { kv.write(page, (head, position % page_size), key, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use backend_api::{Row, SharedPrefix, SlotId, Span};

    use super::*;

    /// Decode rows at these positions, the first of which share pages of 16.
    fn decoding(positions: &[u32], sharing: u32, pages: u32) -> OwnedBatch {
        let one = |start| Span { start, len: 1 };
        let rows = (0..).zip(positions).map(|(row, &position)| Row {
            slot: SlotId(row),
            tokens: one(row),
            position,
            outputs: one(row),
        });
        let rows: Vec<Row> = rows.collect();
        let shared = vec![SharedPrefix { rows: Span { start: 0, len: sharing }, pages }];
        let mut batch = OwnedBatch::default();
        (batch.rows, batch.shared) = (rows, shared);
        batch
    }

    #[test]
    fn rows_that_share_most_of_their_context_read_a_sixth_of_the_plain_positions() {
        let read = |batch: &OwnedBatch| {
            let mut plan = AttentionPlan::default();
            plan.fill(batch, 16, 2, 32);
            plan.positions_read()
        };
        let plain = read(&decoding(&[2303; 32], 0, 0));
        let cascade = read(&decoding(&[2303; 32], 32, 2048 / 16));
        assert_eq!(plain, 32 * 2304);
        assert_eq!(cascade, 2 * 2048 + 32 * 256);
        assert!(cascade * 5 <= plain);
    }

    #[test]
    fn a_shared_run_of_less_than_a_block_is_not_read_together() {
        let mut plan = AttentionPlan::default();
        plan.fill(&decoding(&[300; 4], 4, 7), 16, 2, 4);
        assert!(plan.shared.is_empty());
        assert!(plan.queries.iter().all(|queries| queries.start == 0));
    }

    #[test]
    fn contexts_are_split_only_where_few_rows_decode_with_long_ones() {
        let split = |positions: &[u32], threads| {
            let mut plan = AttentionPlan::default();
            plan.fill(&decoding(positions, 0, 0), 16, threads, 41);
            plan.split
        };
        assert_eq!(split(&[5000, 10], 2), Some(5001));
        assert_eq!(split(&[5000], 1), None);
        assert_eq!(split(&[900], 2), None);
        assert_eq!(split(&[5000; 9], 2), None);
        // Each row needs room for its own blocks, 40 here.
        assert_eq!(split(&[5000, 300], 2), None);
    }

    #[test]
    fn a_row_of_several_tokens_leaves_the_others_of_its_run_together() {
        let mut batch = decoding(&[900; 7], 7, 32);
        for row in &mut batch.rows[3..] {
            row.tokens.start += 2;
        }
        batch.rows[2].tokens = Span { start: 2, len: 3 };
        let mut plan = AttentionPlan::default();
        plan.fill(&batch, 16, 2, 7);
        let shared = plan.shared.iter().map(|it| (it.row, it.tokens.first_token, it.tokens.count));
        assert_eq!(shared.collect::<Vec<_>>(), [(0, 0, 2), (3, 5, 4)]);
        let starts = plan.queries.iter().map(|queries| (queries.start, queries.state));
        let own = [(512, 0), (512, 1), (0, 0), (512, 2), (512, 3), (512, 4), (512, 5)];
        assert_eq!(starts.collect::<Vec<_>>(), own);
    }

    #[test]
    fn no_step_needs_more_states_than_there_is_room_for() {
        for (rows, context, threads) in [(1, 4096, 2), (3, 4096, 2), (9, 2000, 8), (5, 300, 2)] {
            let limits =
                backend_api::Limits { rows, tokens: 64, outputs: 64, slots: rows, pages: vec![] };
            let room = most_states(&CompileOptions::new(limits, 16, context), threads);
            let split = |rows: usize| {
                let mut plan = AttentionPlan::default();
                plan.fill(&decoding(&vec![context - 1; rows], 0, 0), 16, threads, room);
                let last = plan.queries.last().map(|it| it.state + blocks_of(it.tokens));
                plan.split.and(last)
            };
            let most = (rows as usize).min(MOST_SPLIT);
            let expected = (context > 1024).then_some(most * (context as usize).div_ceil(BLOCK));
            assert_eq!(split(most), expected);
            let together = decoding(&vec![context - 1; rows as usize], rows, 16);
            let mut plan = AttentionPlan::default();
            plan.fill(&together, 16, threads, room);
            assert_eq!(plan.shared.is_empty(), rows == 1);
            assert!(plan.shared.iter().all(|it| it.state + it.tokens.count <= room));
        }
    }
}
