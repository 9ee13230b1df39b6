//! The sampler: from logits on the device to tokens, by the pipeline of
//! [`backend_api::sample`], for all outputs of a step at once.
//!
//! Differences to the host's sampler, all below the noise of the logits themselves: sums of
//! probabilities and the Gumbel noise are `f32`, where the host's are `f64`. The random bits are
//! the same.
//!
//! Proposed tokens are verified in the same module: all rows of a chain are sampled at once, each
//! with the noise of its own position, and a row counts if the tokens of all rows before it in its
//! chain are the proposals. What is sampled is a chain of one row.

mod chain;
mod filters;
mod noise;

use super::Module;
use crate::stablehlo::{Element, Function, Input, Order, Output, Reduction, Sharding, Type, Value};

/// The likeliest tokens that are reported, at most: as many as a request can ask for.
pub(crate) const MOST_TOP: usize = u8::MAX as usize;

/// What the sampler is told of each output, as words: floats are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Field {
    /// The slot whose next token this is; the padding slot for rows that are not sampled now.
    Slot,
    /// 0 is greedy.
    Temperature,
    /// 0 keeps all.
    TopK,
    /// 1 keeps all.
    TopP,
    /// The logarithm of min-p.
    MinP,
    SeedLow,
    SeedHigh,
    SampleIndex,
    /// Of the token that is sampled.
    Position,
    /// 1 is off.
    Repetition,
    Frequency,
    Presence,
    /// The token to score, or -1 to sample one.
    Given,
    /// The first row of the chain that the row belongs to.
    Start,
    /// The token that the chain's next row has as its input, or -1 in a chain's last row.
    Proposal,
}

impl Field {
    pub(crate) const COUNT: usize = Self::Proposal as usize + 1;
}

/// What the sampler is told once: words before those of the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Switch {
    /// Whether any output has a temperature.
    Noise,
    /// Whether any output has a top-k.
    TopK,
    /// Whether any output has a top-p.
    TopP,
    /// Whether any output has a penalty.
    Penalties,
    /// How many of the likeliest tokens are wanted of any output.
    Top,
    /// How many rows of its chain any row has before it, at most.
    Chain,
    /// Whether what is sampled is counted: what a draft samples is a proposal, and is not.
    Counts,
}

impl Switch {
    pub(crate) const COUNT: usize = Self::Counts as usize + 1;
}

/// Length of the control vector: the switches, then each field for all outputs.
pub(crate) fn control_len(outputs: usize) -> usize {
    Switch::COUNT + Field::COUNT * outputs
}

/// Words of the result for each output.
pub(crate) mod reply {
    pub(crate) const TOKEN: usize = 0;
    /// [`OK`], [`NOT_FINITE`] or [`NOTHING_ALLOWED`].
    pub(crate) const STATUS: usize = 1;
    /// Bits of a float.
    pub(crate) const LOGPROB: usize = 2;
    pub(crate) const COUNT: usize = 3;

    pub(crate) const OK: i32 = 0;
    pub(crate) const NOT_FINITE: i32 = 1;
    pub(crate) const NOTHING_ALLOWED: i32 = 2;
}

/// How often each slot's tokens were seen, `[slots, vocab_size]`: [`GENERATED`] for each time that
/// one was generated, and 1 more if it is in the prompt.
pub(crate) fn counts_type(slots: usize, vocab_size: usize) -> Type {
    Type::new(Element::I32, &[slots + 1, vocab_size])
}

/// What a generated token adds to its count.
pub(crate) const GENERATED: u32 = 2;

/// Words of a token mask: bit `t % 32` of word `t / 32` allows token `t`.
pub(crate) fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// What a sampler is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SamplerShape {
    /// Slots, without the padding slot.
    pub(crate) slots: usize,
    /// Rows of logits.
    pub(crate) outputs: usize,
    /// The program's tokens.
    pub(crate) vocab_size: usize,
    /// Tokens that are counted: those of the largest vocabulary of the executor's programs.
    pub(crate) counted: usize,
}

/// The module that samples `outputs` rows.
///
/// Arguments: the logits, `[outputs, vocab_size]`; the next tokens and the counts, which are
/// donated; the biases, `[outputs, vocab_size]`; the masks, `[outputs, words]`; the control
/// vector. Results: the next tokens; the counts; the replies, `[outputs, reply::COUNT]`; the
/// likeliest tokens, `[outputs, 2 * MOST_TOP]`: ids, then the bits of their log probabilities.
///
/// Every row has a reply. Of a chain only the rows count up to the first whose token is not its
/// proposal: their tokens are counted if the switch says so, and the last of them is the slot's next token.
pub(crate) fn sampler(shape: SamplerShape, partitions: usize) -> Module {
    let SamplerShape { slots, outputs, vocab_size, counted } = shape;
    let wide = Type::new(Element::F32, &[outputs, vocab_size]);
    let kinds = [
        wide.clone(),
        Type::new(Element::I32, &[slots + 1]),
        counts_type(slots, counted),
        wide,
        Type::new(Element::U32, &[outputs, mask_words(vocab_size)]),
        Type::new(Element::I32, &[control_len(outputs)]),
    ];
    let aliases = [None, Some(0), Some(1), None, None, None];
    let inputs: Vec<Input> = kinds
        .into_iter()
        .zip(aliases)
        .map(|(kind, aliased_output)| Input {
            kind,
            sharding: Sharding::REPLICATED,
            aliased_output,
        })
        .collect();
    let mut f = Function::new();
    let [logits, next_tokens, counts, bias, mask, control] =
        std::array::from_fn(|index| f.argument(index, &inputs[index]));

    let control = Control { vector: control, outputs };
    let rows = Rows { logits: logits.clone(), control: &control, vocab_size };
    let padding = f.splat(Element::I32, &[outputs], slots as f64);
    let penalized = rows.penalized(&mut f, &counts, &bias);
    let allowed = rows.masked(&mut f, &penalized, &mask);
    let (sampled, nothing_allowed) = rows.choose(&mut f, &allowed);

    let given = control.field(&mut f, Field::Given);
    let zero = f.splat(Element::I32, &[outputs], 0.0);
    let is_sampled = f.compare(&given, Order::Less, &zero);
    let token = f.select(&is_sampled, &sampled, &given);
    let slot = control.field(&mut f, Field::Slot);
    let (is_used, is_last) = rows.verify(&mut f, &token);
    let is_counted = control.is_on(&mut f, Switch::Counts);
    let is_counted = f.broadcast_to(&is_counted, &is_used, &[]);
    let is_counted = f.and(&is_used, &is_counted);
    let slot_of_counted = f.select(&is_counted, &slot, &padding);
    let slot_of_last = f.select(&is_last, &slot, &padding);
    let next_tokens = f.put(&next_tokens, &slot_of_last, &token);
    let counts = rows.count(&mut f, &counts, &slot_of_counted, &token);

    let status = rows.status(&mut f, &is_sampled, &nothing_allowed);
    let (replies, likeliest) = rows.reply(&mut f, &token, &status);
    let outputs = [next_tokens, counts, replies, likeliest]
        .map(|value| Output { value, sharding: Sharding::REPLICATED });
    Module::finish(f, &inputs, &outputs, partitions)
}

struct Control {
    vector: Value,
    outputs: usize,
}

impl Control {
    /// A field of all outputs, as `i32`.
    fn field(&self, f: &mut Function, field: Field) -> Value {
        let start = Switch::COUNT + field as usize * self.outputs;
        f.slice(&self.vector, 0, start, self.outputs)
    }

    fn float(&self, f: &mut Function, field: Field) -> Value {
        let bits = self.field(f, field);
        f.bitcast(&bits, Element::F32)
    }

    fn word(&self, f: &mut Function, field: Field) -> Value {
        let bits = self.field(f, field);
        f.bitcast(&bits, Element::U32)
    }

    fn switch(&self, f: &mut Function, switch: Switch) -> Value {
        let value = f.slice(&self.vector, 0, switch as usize, 1);
        f.scalar(&value)
    }

    fn is_on(&self, f: &mut Function, switch: Switch) -> Value {
        let value = self.switch(f, switch);
        let zero = f.int(0);
        f.compare(&value, Order::Greater, &zero)
    }
}

/// The rows of logits that are being sampled.
struct Rows<'a> {
    logits: Value,
    control: &'a Control,
    vocab_size: usize,
}

impl Rows<'_> {
    /// Adds the biases, then repetition, frequency and presence penalties.
    fn penalized(&self, f: &mut Function, counts: &Value, bias: &Value) -> Value {
        let biased = f.add(&self.logits, bias);
        let any = self.control.is_on(f, Switch::Penalties);
        let penalize = |f: &mut Function| {
            let slot = self.control.field(f, Field::Slot);
            let counts = f.take(counts, &slot);
            let counts = f.slice(&counts, 1, 0, self.vocab_size);
            let counts = self.with_proposals(f, &counts);
            let dims = counts.dims().to_vec();
            let zero = f.splat(Element::F32, &dims, 0.0);
            let none = f.splat(Element::I32, &dims, 0.0);
            let one = f.splat(Element::I32, &dims, 1.0);
            let is_seen = f.compare(&counts, Order::Greater, &none);
            let is_generated = f.compare(&counts, Order::Greater, &one);

            let repetition = self.wide(f, Field::Repetition);
            let divided = f.divide(&biased, &repetition);
            let multiplied = f.multiply(&biased, &repetition);
            let is_positive = f.compare(&biased, Order::Greater, &zero);
            let repeated = f.select(&is_positive, &divided, &multiplied);
            let x = f.select(&is_seen, &repeated, &biased);

            let frequency = self.wide(f, Field::Frequency);
            let presence = self.wide(f, Field::Presence);
            let generated = f.shift_right(&counts, &one);
            let generated = f.convert(&generated, Element::F32);
            let frequency = f.multiply(&frequency, &generated);
            let x_less = f.subtract(&x, &frequency);
            let x_less = f.subtract(&x_less, &presence);
            f.select(&is_generated, &x_less, &x)
        };
        f.if_else(&any, penalize, |_| biased.clone())
    }

    /// Minus infinity where the mask forbids.
    fn masked(&self, f: &mut Function, x: &Value, mask: &Value) -> Value {
        let (outputs, words) = (mask.dim(0), mask.dim(1));
        let dims = [outputs, words, 32];
        let word = f.broadcast(mask, &dims, &[0, 1]);
        let bit = f.iota(Element::U32, &dims, 2);
        let word = f.shift_right(&word, &bit);
        let one = f.splat(Element::U32, &dims, 1.0);
        let word = f.and(&word, &one);
        let is_allowed = f.compare(&word, Order::Equal, &one);
        let is_allowed = f.reshape(&is_allowed, &[outputs, words * 32]);
        let is_allowed = f.slice(&is_allowed, 1, 0, self.vocab_size);
        let never = f.splat(Element::F32, x.dims(), f64::NEG_INFINITY);
        f.select(&is_allowed, x, &never)
    }

    /// The token of each row under temperature, filters and noise, and whether none is allowed.
    fn choose(&self, f: &mut Function, x: &Value) -> (Value, Value) {
        let likeliest = f.argmax(x);
        let best = f.reduce(x, Reduction::Max, &[1]);
        let never = f.splat(Element::F32, best.dims(), f64::NEG_INFINITY);
        let nothing_allowed = f.compare(&best, Order::Equal, &never);
        let any = self.control.is_on(f, Switch::Noise);
        let noisy = |f: &mut Function| {
            let temperature = self.control.float(f, Field::Temperature);
            let zero = f.splat(Element::F32, temperature.dims(), 0.0);
            let one = f.splat(Element::F32, temperature.dims(), 1.0);
            let is_greedy = f.compare(&temperature, Order::Equal, &zero);
            let divisor = f.select(&is_greedy, &one, &temperature);
            let divisor = f.broadcast_to(&divisor, x, &[0]);
            let best = f.broadcast_to(&best, x, &[0]);
            let distance = f.subtract(x, &best);
            let distance = f.divide(&distance, &divisor);
            let kept = self.filtered(f, &distance);
            let noise = self.gumbel(f);
            let score = f.add(&distance, &noise);
            let never = f.splat(Element::F32, score.dims(), f64::NEG_INFINITY);
            let score = f.select(&kept, &score, &never);
            let noisiest = f.argmax(&score);
            f.select(&is_greedy, &likeliest, &noisiest)
        };
        let token = f.if_else(&any, noisy, |_| likeliest.clone());
        (token, nothing_allowed)
    }

    /// What is wrong with a row, if anything.
    fn status(&self, f: &mut Function, is_sampled: &Value, nothing_allowed: &Value) -> Value {
        let rows = is_sampled.dims().to_vec();
        let finite = f.is_finite(&self.logits);
        let finite = f.convert(&finite, Element::I32);
        let finite = f.reduce(&finite, Reduction::Min, &[1]);
        let one = f.splat(Element::I32, &rows, 1.0);
        let finite = f.compare(&finite, Order::Equal, &one);
        let ok = f.splat(Element::I32, &rows, reply::OK.into());
        let nothing = f.splat(Element::I32, &rows, reply::NOTHING_ALLOWED.into());
        let not_finite = f.splat(Element::I32, &rows, reply::NOT_FINITE.into());
        let nothing_allowed = f.and(nothing_allowed, is_sampled);
        let status = f.select(&nothing_allowed, &nothing, &ok);
        f.select(&finite, &status, &not_finite)
    }

    /// The replies, and the likeliest tokens. Log probabilities are those of the model itself.
    fn reply(&self, f: &mut Function, token: &Value, status: &Value) -> (Value, Value) {
        let x = &self.logits;
        let rows = x.dim(0);
        let largest = f.reduce(x, Reduction::Max, &[1]);
        let shift = f.broadcast_to(&largest, x, &[0]);
        let shifted = f.subtract(x, &shift);
        let sum = f.exponential(&shifted);
        let sum = f.reduce(&sum, Reduction::Sum, &[1]);
        let logarithm = f.log(&sum);
        let normalizer = f.add(&largest, &logarithm);

        let flat = f.reshape(x, &[rows * self.vocab_size]);
        let stride = f.splat(Element::I32, &[rows], self.vocab_size as f64);
        let row = f.iota(Element::I32, &[rows], 0);
        let row = f.multiply(&row, &stride);
        let index = f.add(&row, token);
        let own = f.take(&flat, &index);
        let logprob = f.subtract(&own, &normalizer);

        let (top_tokens, top_logits) = self.likeliest(f);
        let normalizer = f.broadcast_to(&normalizer, &top_logits, &[0]);
        let top_logprobs = f.subtract(&top_logits, &normalizer);

        let column = |f: &mut Function, value: &Value| f.reshape(value, &[rows, 1]);
        let token = column(f, token);
        let status = column(f, status);
        let logprob = f.bitcast(&logprob, Element::I32);
        let logprob = column(f, &logprob);
        let top_logprobs = f.bitcast(&top_logprobs, Element::I32);
        let reply = f.concatenate(&[&token, &status, &logprob], 1);
        (reply, f.concatenate(&[&top_tokens, &top_logprobs], 1))
    }

    /// The likeliest tokens and their logits, `[outputs, MOST_TOP]` each, one a turn. As many
    /// turns are taken as the switch says; the rest is zero.
    fn likeliest(&self, f: &mut Function) -> (Value, Value) {
        let dims = [self.logits.dim(0), MOST_TOP];
        let first = f.int(0);
        let tokens = f.splat(Element::I32, &dims, 0.0);
        let logits = f.splat(Element::F32, &dims, 0.0);
        let wanted = self.control.switch(f, Switch::Top);
        let state = f.while_loop(
            &[&first, &self.logits, &tokens, &logits],
            |f, state| f.compare(&state[0], Order::Less, &wanted),
            |f, state| {
                let [index, remaining, tokens, logits] = state else { return Vec::new() };
                let token = f.argmax(remaining);
                let logit = f.reduce(remaining, Reduction::Max, &[1]);
                let id = f.iota(Element::I32, remaining.dims(), 1);
                let wide = f.broadcast_to(&token, remaining, &[0]);
                let is_taken = f.compare(&id, Order::Equal, &wide);
                let never = f.splat(Element::F32, remaining.dims(), f64::NEG_INFINITY);
                let remaining = f.select(&is_taken, &never, remaining);
                let column = [token.dim(0), 1];
                let token = f.reshape(&token, &column);
                let logit = f.reshape(&logit, &column);
                let tokens = f.dynamic_update(tokens, &token, 1, index);
                let logits = f.dynamic_update(logits, &logit, 1, index);
                let one = f.int(1);
                let next = f.add(index, &one);
                vec![next, remaining, tokens, logits]
            },
        );
        (state[2].clone(), state[3].clone())
    }

    /// A float field, repeated for each token.
    fn wide(&self, f: &mut Function, field: Field) -> Value {
        let value = self.control.float(f, field);
        f.broadcast(&value, self.logits.dims(), &[0])
    }
}
