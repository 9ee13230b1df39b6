//! The sampler: from logits on the device to tokens, by the pipeline of
//! [`backend_api::sample`], for all outputs of a step at once.
//!
//! Differences to the host's sampler, all below the noise of the logits themselves: sums of
//! probabilities and the Gumbel noise are `f32`, where the host's are `f64`. The random bits are
//! the same.
//!
//! Filters need no sort. The shortest run of likeliest tokens that reaches a count (top-k) or a
//! probability (top-p) is found by its end: 32 halvings find the logit where it ends, and 32 more
//! the token id among equals. Each halving is one pass over the vocabulary. Loops and branches
//! that no row wants take no turn.

use super::{Geometry, Module};
use crate::stablehlo::{Element, Function, Input, Order, Output, Reduction, Sharding, Type, Value};

/// The likeliest tokens that are reported, at most: as many as a request can ask for.
pub(crate) const MOST_TOP: usize = u8::MAX as usize;

/// What the sampler is told of each output, as words: floats are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Field {
    /// The slot whose next token this is; the padding slot for outputs that are only scored.
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
}

impl Field {
    pub(crate) const COUNT: usize = Self::Given as usize + 1;
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
}

impl Switch {
    pub(crate) const COUNT: usize = Self::Top as usize + 1;
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

/// How often each slot's tokens were seen, `[slots, vocab_size]`: 0 is never, and `n + 1` is in
/// prompt or output, generated `n` times.
pub(crate) fn counts_type(geometry: &Geometry, vocab_size: usize) -> Type {
    Type::new(Element::I32, &[geometry.slots + 1, vocab_size])
}

/// Words of a token mask: bit `t % 32` of word `t / 32` allows token `t`.
pub(crate) fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// The module that samples `outputs` rows.
///
/// Arguments: the logits, `[outputs, vocab_size]`; the next tokens and the counts, which are
/// donated; the biases, `[outputs, vocab_size]`; the masks, `[outputs, words]`; the control
/// vector. Results: the next tokens; the counts; the replies, `[outputs, reply::COUNT]`; the
/// likeliest tokens, `[outputs, 2 * MOST_TOP]`: ids, then the bits of their log probabilities.
pub(crate) fn sampler(
    geometry: &Geometry,
    vocab_size: usize,
    outputs: usize,
    partitions: usize,
) -> Module {
    let wide = Type::new(Element::F32, &[outputs, vocab_size]);
    let kinds = [
        wide.clone(),
        geometry.next_tokens_type(),
        counts_type(geometry, vocab_size),
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
    let penalized = rows.penalized(&mut f, &counts, &bias);
    let allowed = rows.masked(&mut f, &penalized, &mask);
    let (sampled, nothing_allowed) = rows.choose(&mut f, &allowed);

    let given = control.field(&mut f, Field::Given);
    let zero = f.splat(Element::I32, &[outputs], 0.0);
    let is_sampled = f.compare(&given, Order::Less, &zero);
    let token = f.select(&is_sampled, &sampled, &given);
    let slot = control.field(&mut f, Field::Slot);
    let next_tokens = f.put(&next_tokens, &slot, &token);
    let counts = rows.count(&mut f, &counts, &slot, &token);

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
            let generated = f.subtract(&counts, &one);
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

    /// Which tokens top-k, then top-p of those, then min-p keep.
    fn filtered(&self, f: &mut Function, distance: &Value) -> Value {
        let (dims, rows) = (distance.dims().to_vec(), [distance.dim(0)]);
        let zero = f.splat(Element::F32, &dims, 0.0);
        let one = f.splat(Element::F32, &dims, 1.0);
        let key = sort_key(f, distance);

        let top_k = self.control.field(f, Field::TopK);
        let none = f.splat(Element::I32, &rows, 0.0);
        let has_top_k = f.compare(&top_k, Order::Greater, &none);
        let target = f.convert(&top_k, Element::F32);
        let any = self.control.is_on(f, Switch::TopK);
        let kept = keep_reaching(f, &any, &has_top_k, &key, &one, &target);

        let weight = f.exponential(distance);
        let weight = f.select(&kept, &weight, &zero);
        let total = f.reduce(&weight, Reduction::Sum, &[1]);
        let top_p = self.control.float(f, Field::TopP);
        let all = f.splat(Element::F32, &rows, 1.0);
        let has_top_p = f.compare(&top_p, Order::Less, &all);
        let target = f.multiply(&top_p, &total);
        let any = self.control.is_on(f, Switch::TopP);
        let likely = keep_reaching(f, &any, &has_top_p, &key, &weight, &target);

        let floor = self.wide(f, Field::MinP);
        let above = f.compare(distance, Order::GreaterEqual, &floor);
        let kept = f.and(&kept, &likely);
        f.and(&kept, &above)
    }

    /// Gumbel noise for each token: `-ln(-ln u)`, with `u` from Philox-4x32-10 (Salmon et al.,
    /// "Parallel random numbers: as easy as 1, 2, 3", 2011). Four neighbouring tokens share a
    /// block.
    fn gumbel(&self, f: &mut Function) -> Value {
        let rows = self.logits.dim(0);
        let blocks = self.vocab_size.div_ceil(4);
        let dims = [rows, blocks];
        let wide = |f: &mut Function, field: Field| {
            let word = self.control.word(f, field);
            f.broadcast(&word, &dims, &[0])
        };
        let block = f.iota(Element::U32, &dims, 1);
        let nothing = f.splat(Element::U32, &dims, 0.0);
        let counter = [block, wide(f, Field::Position), wide(f, Field::SampleIndex), nothing];
        let key = [wide(f, Field::SeedLow), wide(f, Field::SeedHigh)];
        let words = philox(f, counter, key).map(|word| f.reshape(&word, &[rows, blocks, 1]));
        let words: Vec<&Value> = words.iter().collect();
        let word = f.concatenate(&words, 2);
        let word = f.reshape(&word, &[rows, 4 * blocks]);
        let word = f.slice(&word, 1, 0, self.vocab_size);

        // ln u from the smaller of u and 1 - u: an f32 near 1 has no room for 32 random bits.
        let fraction = |f: &mut Function, word: &Value| {
            let number = f.convert(word, Element::F32);
            let half = f.splat(Element::F32, number.dims(), 0.5);
            let number = f.add(&number, &half);
            f.scale(&number, 1.0 / 4_294_967_296.0)
        };
        let low = fraction(f, &word);
        let rest = f.not(&word);
        let high = fraction(f, &rest);
        let high = f.negate(&high);
        let middle = f.splat(Element::U32, word.dims(), 2_147_483_648.0);
        let is_low = f.compare(&word, Order::Less, &middle);
        let low = f.log(&low);
        let high = f.log_plus_one(&high);
        let logarithm = f.select(&is_low, &low, &high);
        let logarithm = f.negate(&logarithm);
        let noise = f.log(&logarithm);
        f.negate(&noise)
    }

    /// Counts the sampled tokens. Only rows with penalties read their counts, which are set when
    /// their slot is opened, so those of others may say anything.
    fn count(&self, f: &mut Function, counts: &Value, slot: &Value, token: &Value) -> Value {
        let [slots, vocab_size] = [counts.dim(0), counts.dim(1)];
        let rows = slot.dims().to_vec();
        let flat = f.reshape(counts, &[slots * vocab_size]);
        let stride = f.splat(Element::I32, &rows, vocab_size as f64);
        let index = f.multiply(slot, &stride);
        let index = f.add(&index, token);
        let before = f.take(&flat, &index);
        let zero = f.splat(Element::I32, &rows, 0.0);
        let one = f.splat(Element::I32, &rows, 1.0);
        let two = f.splat(Element::I32, &rows, 2.0);
        let is_new = f.compare(&before, Order::Equal, &zero);
        let added = f.select(&is_new, &two, &one);
        let flat = f.put_add(&flat, &index, &added);
        f.reshape(&flat, &[slots, vocab_size])
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

/// Keys that compare as unsigned integers the way the floats compare.
fn sort_key(f: &mut Function, x: &Value) -> Value {
    // Adding zero makes the two zeros equal.
    let zero = f.splat(Element::F32, x.dims(), 0.0);
    let x = f.add(x, &zero);
    let bits = f.bitcast(&x, Element::U32);
    let sign = f.splat(Element::U32, x.dims(), 2_147_483_648.0);
    let is_negative = f.compare(&bits, Order::GreaterEqual, &sign);
    let flipped = f.not(&bits);
    let raised = f.or(&bits, &sign);
    f.select(&is_negative, &flipped, &raised)
}

/// Marks, in each row for which `wanted` holds, the shortest run of tokens in the order of falling
/// keys (of equal ones the lowest ids first) whose weights add up to `target`; in other rows, and
/// if `any` does not hold, all tokens.
fn keep_reaching(
    f: &mut Function,
    any: &Value,
    wanted: &Value,
    key: &Value,
    weight: &Value,
    target: &Value,
) -> Value {
    let dims = key.dims().to_vec();
    f.if_else(
        any,
        |f| {
            let zero = f.splat(Element::F32, &dims, 0.0);
            let sum_where = |f: &mut Function, mask: &Value| {
                let part = f.select(mask, weight, &zero);
                f.reduce(&part, Reduction::Sum, &[1])
            };
            // The largest key such that the tokens from it upwards reach the target.
            let end = largest_word(f, target.dims(), |f, bound| {
                let bound = f.broadcast_to(bound, key, &[0]);
                let from = f.compare(key, Order::GreaterEqual, &bound);
                let reached = sum_where(f, &from);
                f.compare(&reached, Order::GreaterEqual, target)
            });
            let end = f.broadcast_to(&end, key, &[0]);
            let is_above = f.compare(key, Order::Greater, &end);
            let is_equal = f.compare(key, Order::Equal, &end);
            let above = sum_where(f, &is_above);
            // Of those with that key, the largest id such that the ones below don't reach it.
            let id = f.iota(Element::U32, &dims, 1);
            let last = largest_word(f, target.dims(), |f, bound| {
                let bound = f.broadcast_to(bound, &id, &[0]);
                let below = f.compare(&id, Order::Less, &bound);
                let below = f.and(&below, &is_equal);
                let reached = sum_where(f, &below);
                let reached = f.add(&reached, &above);
                f.compare(&reached, Order::Less, target)
            });
            let last = f.broadcast_to(&last, &id, &[0]);
            let is_first = f.compare(&id, Order::LessEqual, &last);
            let is_equal = f.and(&is_equal, &is_first);
            let kept = f.or(&is_above, &is_equal);
            let wanted = f.broadcast(wanted, &dims, &[0]);
            let unwanted = f.not(&wanted);
            f.or(&kept, &unwanted)
        },
        |f| f.splat(Element::Bool, &dims, 1.0),
    )
}

/// For each row the largest word for which a falling condition holds, bit by bit from the top.
fn largest_word(
    f: &mut Function,
    rows: &[usize],
    holds: impl FnOnce(&mut Function, &Value) -> Value,
) -> Value {
    let start = f.splat(Element::U32, rows, 0.0);
    let top = f.splat(Element::U32, &[], 2_147_483_648.0);
    let zero = f.splat(Element::U32, &[], 0.0);
    let state = f.while_loop(
        &[&top, &start],
        |f, state| f.compare(&state[0], Order::Greater, &zero),
        |f, state| {
            let [bit, found] = state else { return Vec::new() };
            let wide = f.broadcast_to(bit, found, &[]);
            let candidate = f.or(found, &wide);
            let holds = holds(f, &candidate);
            let found = f.select(&holds, &candidate, found);
            let one = f.splat(Element::U32, &[], 1.0);
            vec![f.shift_right(bit, &one), found]
        },
    );
    state[1].clone()
}

/// Ten rounds of Philox-4x32.
fn philox(f: &mut Function, counter: [Value; 4], key: [Value; 2]) -> [Value; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    const ROUNDS: usize = 10;
    let dims = counter[0].dims().to_vec();
    let thirty_two = f.splat(Element::U64, &dims, 32.0);
    let multipliers = MULTIPLIERS.map(|factor| f.splat(Element::U64, &dims, factor.into()));
    let weyl = WEYL.map(|step| f.splat(Element::U32, &dims, step.into()));
    let (mut counter, mut key) = (counter, key);
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = &counter;
        let mut product = |word: &Value, factor: &Value| {
            let word = f.convert(word, Element::U64);
            let product = f.multiply(&word, factor);
            let high = f.shift_right(&product, &thirty_two);
            (f.convert(&high, Element::U32), f.convert(&product, Element::U32))
        };
        let (a_high, a_low) = product(c0, &multipliers[0]);
        let (b_high, b_low) = product(c2, &multipliers[1]);
        let first = f.xor(&b_high, c1);
        let first = f.xor(&first, &key[0]);
        let third = f.xor(&a_high, c3);
        let third = f.xor(&third, &key[1]);
        counter = [first, b_low, third, a_low];
        key = [f.add(&key[0], &weyl[0]), f.add(&key[1], &weyl[1])];
    }
    counter
}
