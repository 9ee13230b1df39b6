//! From logits and hidden states to the answers of a step's outputs.

use std::{ops::Range, sync::Arc};

use backend_api::{
    Masks, OutputRequest, OutputResult, ProgramId, Sampled, SlotSampling, Span, StepResult, Token,
    Want,
    sample::{OutputRows, OutputSampler, SampleError, TokenCounts},
};

use super::owned_batch::{OutputClass, OwnedBatch};
use crate::{
    pool::{Pool, TaskPanicked},
    shared::SharedMut,
};

/// What stays with a slot from step to step.
#[derive(Debug)]
pub(crate) struct ResidentSlot {
    sampling: Arc<SlotSampling>,
    /// Of the tokens that the first program generated: a draft's are proposals only.
    counts: TokenCounts,
    /// By program.
    next: Vec<NextToken>,
}

/// The token that a slot's sequence goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextToken {
    /// None was sampled since the slot was opened.
    None,
    /// The last one sampled.
    Sampled(Token),
    /// Its step failed for this slot.
    Failed,
}

impl ResidentSlot {
    /// An empty slot of an executor of so many programs.
    pub(crate) fn new(programs: usize) -> Self {
        let sampling = Arc::new(SlotSampling::greedy());
        Self { sampling, counts: TokenCounts::default(), next: vec![NextToken::None; programs] }
    }

    /// A sequence moves in.
    pub(crate) fn open(&mut self, sampling: &Arc<SlotSampling>) {
        self.counts.open(sampling);
        self.sampling = Arc::clone(sampling);
        self.close();
    }

    /// The sequence moves out.
    pub(crate) fn close(&mut self) {
        self.next.fill(NextToken::None);
    }

    /// The token that a program's next step goes on with.
    pub(crate) fn next(&mut self, program: ProgramId) -> &mut NextToken {
        &mut self.next[program.index()]
    }
}

/// What a forward pass computed for the output rows of a class.
#[derive(Debug)]
pub(crate) struct OutputValues<'a> {
    /// `[rows of the class, vocab_size]`; overwritten. Empty for vectors.
    pub(crate) logits: &'a mut [f32],
    /// `[rows of the class, hidden width]`. Empty for tokens.
    pub(crate) hidden: &'a [f32],
}

/// Answers outputs, in parallel.
#[derive(Debug, Default)]
pub(crate) struct Sampling {
    /// By thread.
    threads: Vec<ThreadSampler>,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct ThreadSampler {
    sampler: OutputSampler,
    answers: StepResult,
    /// For outputs that sample nothing.
    nothing: SlotSampling,
    /// Counts of a slot and of what a draft has sampled for it.
    drafted: TokenCounts,
}

/// Some tokens of an output: the work of one task.
#[derive(Debug)]
struct Part {
    /// Index of the output.
    output: usize,
    /// The tokens and what is wanted of them.
    request: OutputRequest,
    /// Which thread has the answer, and which of its answers it is.
    answer: Result<(usize, usize), SampleError>,
    next: Option<Token>,
}

impl Sampling {
    /// Answers the outputs of a class. Outputs of rows that have failed are left out.
    ///
    /// # Errors
    /// If a task panicked.
    pub(crate) fn answer(
        &mut self,
        pool: &mut Pool,
        class: OutputClass,
        batch: &mut OwnedBatch,
        values: OutputValues<'_>,
        slots: &mut [ResidentSlot],
        masks: &Masks<'_>,
    ) -> Result<(), TaskPanicked> {
        self.divide(class, batch);
        if self.parts.is_empty() {
            return Ok(());
        }
        self.threads.resize_with(pool.threads(), ThreadSampler::new);
        self.threads.iter_mut().for_each(|thread| thread.answers.clear());
        let rows = batch.rows_of(class);
        let OutputValues { logits, hidden } = values;
        let (vocab_size, width) = (logits.len() / rows.len(), hidden.len() / rows.len());
        let tasks = self.parts.len();
        let threads = SharedMut::new(&mut self.threads);
        let parts = SharedMut::new(&mut self.parts);
        let logits = SharedMut::new(logits);
        let shared_slots = SharedMut::new(slots);
        let inputs: &OwnedBatch = batch;
        pool.run(tasks, &|thread_index, task| {
            // SAFETY: no two tasks that run at the same time have the same thread number.
            let thread = unsafe { &mut threads.part(thread_index..thread_index + 1)[0] };
            // SAFETY: each part is one task.
            let part = unsafe { &mut parts.part(task..task + 1)[0] };
            let scaled = |rows: &Range<usize>, by| rows.start * by..rows.end * by;
            let of_part = inputs.rows_of_part(part.output, &part.request);
            let of_part = of_part.start - rows.start..of_part.end - rows.start;
            let row = &inputs.rows[part.request.row as usize];
            let rows = OutputRows {
                output: part.output as u32,
                request: &part.request,
                tokens: &inputs.resolved[part.request.tokens.range()],
                position: row.position + (part.request.tokens.start - row.tokens.start),
                targets: &inputs.targets,
                // SAFETY: each output row is in one part.
                logits: unsafe { logits.part(scaled(&of_part, vocab_size)) },
                hidden: &hidden[scaled(&of_part, width)],
            };
            // SAFETY: no two rows have the same slot, and of a row's outputs one part at most is a
            // sample or verification, which are what changes a slot: `Batch::check` saw to it.
            // Others are given no slot.
            let slot = makes_next(&part.request).then(|| unsafe {
                &mut shared_slots.part(row.slot.index()..row.slot.index() + 1)[0]
            });
            let answer = thread.answer(rows, inputs.program, slot, masks);
            part.next = answer.unwrap_or_default();
            part.answer = answer.map(|_| (thread_index, thread.answers.outputs.len() - 1));
        })?;
        self.collect(batch, slots);
        Ok(())
    }

    /// Scores are independent of each other; the tokens of a chain are not.
    fn divide(&mut self, class: OutputClass, batch: &OwnedBatch) {
        self.parts.clear();
        let unanswered = Err(SampleError::NothingAllowed);
        for (output, request) in batch.outputs.iter().enumerate() {
            if OutputClass::of(request) != class || batch.has_failed(request.row) {
                continue;
            }
            let part = |request| Part { output, request, answer: unanswered, next: None };
            match request.want {
                Want::Score { targets, top } => self.parts.extend((0..targets.len).map(|index| {
                    let one = |span: Span| Span { start: span.start + index, len: 1 };
                    let want = Want::Score { targets: one(targets), top };
                    part(OutputRequest { tokens: one(request.tokens), want, ..*request })
                })),
                _ => self.parts.push(part(*request)),
            }
        }
    }

    /// Puts the parts' answers together, and lets slots go on with them.
    fn collect(&self, batch: &mut OwnedBatch, slots: &mut [ResidentSlot]) {
        for parts in self.parts.chunk_by(|a, b| a.output == b.output) {
            let Part { output, request, .. } = parts[0];
            let slot = &mut slots[batch.slot_of(&request).index()];
            if let Some(error) = parts.iter().find_map(|part| part.answer.err()) {
                batch.fail(error.of_row(request.row), slot);
            }
            if batch.has_failed(request.row) {
                continue;
            }
            let result = &mut batch.result;
            let tokens = result.tokens.len() as u32;
            let vectors = result.vectors.len() as u32;
            for part in parts {
                let Ok((thread, answer)) = part.answer else { continue };
                append(result, &self.threads[thread].answers, answer);
                if let Some(next) = part.next {
                    *slot.next(batch.program) = NextToken::Sampled(next);
                }
            }
            let since = |start: u32, len: usize| Span { start, len: len as u32 - start };
            result.outputs.push(OutputResult {
                output: output as u32,
                tokens: since(tokens, result.tokens.len()),
                vector: since(vectors, result.vectors.len()),
            });
        }
    }
}

impl ThreadSampler {
    fn new() -> Self {
        Self {
            sampler: OutputSampler::default(),
            answers: StepResult::default(),
            nothing: SlotSampling::greedy(),
            drafted: TokenCounts::default(),
        }
    }

    fn answer(
        &mut self,
        rows: OutputRows<'_>,
        program: ProgramId,
        slot: Option<&mut ResidentSlot>,
        masks: &Masks<'_>,
    ) -> Result<Option<Token>, SampleError> {
        let Self { sampler, answers, nothing, drafted } = self;
        match slot {
            None => sampler.answer(rows, nothing, drafted, masks, answers),
            Some(slot) => {
                let counts = if program == ProgramId::default() {
                    &mut slot.counts
                } else {
                    drafted.clone_from(&slot.counts);
                    drafted
                };
                sampler.answer(rows, &slot.sampling, counts, masks, answers)
            }
        }
    }
}

/// Whether an output changes its slot.
fn makes_next(request: &OutputRequest) -> bool {
    matches!(request.want, Want::Sample | Want::Verify(_))
}

/// Appends the tokens and vectors of one of a thread's answers.
fn append(result: &mut StepResult, from: &StepResult, answer: usize) {
    let answer = &from.outputs[answer];
    for token in from.tokens_of(answer) {
        let likeliest = &from.top[token.top.range()];
        let top = Span { start: result.top.len() as u32, len: likeliest.len() as u32 };
        result.top.extend_from_slice(likeliest);
        result.tokens.push(Sampled { top, ..*token });
    }
    result.vectors.extend_from_slice(from.vector_of(answer));
}
