//! Models whose logits a test knows exactly, and random ways to sample from them.

use engine_core::{
    backend::{GroupId, SlotSampling},
    model::{AttentionOptions, Program, ProgramBuilder, Split},
    weights::{Format, MapWeights, Shape, Tensor},
};
use radix_cache::Token;

/// A model whose logits after token `t` are row `t` of a table: attention to zeros, then the
/// table. So the test knows the logits exactly, and a hidden state is 1 at its token and 0
/// elsewhere. After the `spoiled` token they are no numbers.
pub(crate) fn table_model(
    table: &[Vec<f32>],
    vocab_size: usize,
    spoiled: Option<usize>,
) -> (Program, MapWeights) {
    let mut weights = MapWeights::new();
    let program = add_table_model("", table, vocab_size, spoiled, &mut weights);
    (program, weights)
}

/// As [`table_model`], with weights whose names start with `prefix`.
pub(crate) fn add_table_model(
    prefix: &str,
    table: &[Vec<f32>],
    vocab_size: usize,
    spoiled: Option<usize>,
    weights: &mut MapWeights,
) -> Program {
    let name = |name: &str| format!("{prefix}{name}");
    let mut insert = |what: &str, rows: usize, values: Vec<f32>| {
        let shape = Shape::matrix(rows, values.len() / rows);
        weights.insert(name(what), Tensor::from_f32(Format::F32, shape, &values).unwrap());
    };
    let mut embed = vec![0.0; vocab_size * vocab_size];
    (0..vocab_size).for_each(|token| embed[token * (vocab_size + 1)] = 1.0);
    if let Some(token) = spoiled {
        embed[token * (vocab_size + 1)] = f32::NAN;
    }
    insert("embed", vocab_size, embed);
    insert("zeros", 4, vec![0.0; 4 * vocab_size]);
    insert("nothing", vocab_size, vec![0.0; 4 * vocab_size]);
    // Logits are `x × tableᵀ`, so column `t` of the weight is what follows token `t`.
    let transposed = (0..vocab_size).flat_map(|out| (0..vocab_size).map(move |token| (token, out)));
    let values = transposed.map(|(token, out)| table.get(token).map_or(0.0, |row| row[out]));
    insert("table", vocab_size, values.collect());

    let mut builder = ProgramBuilder::new("a table", vocab_size as u32);
    let group = builder.page_group(1, 4, None);
    assert_eq!(group, GroupId(0));
    let x = builder.embed(&name("embed"), vocab_size, 1.0);
    let q = builder.linear(x, &name("zeros"), 4, Split::Columns);
    let k = builder.linear(x, &name("zeros"), 4, Split::Columns);
    let v = builder.linear(x, &name("zeros"), 4, Split::Columns);
    let attended = builder.attention(q, k, v, &AttentionOptions::full(4));
    let nothing = builder.linear(attended, &name("nothing"), vocab_size, Split::Rows);
    let x = builder.add(x, nothing);
    let x = builder.select_outputs(x);
    builder.finish_with_logits(x, &name("table"), None).expect("a program")
}

/// Numbers that look random; the same every time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.next() * end as f32) as usize).min(end - 1)
    }
}

pub(crate) fn random_sampling(numbers: &mut Numbers, vocab_size: usize) -> SlotSampling {
    let mut sampling = SlotSampling::greedy();
    let one_of = |numbers: &mut Numbers, choices: &[f32]| choices[numbers.below(choices.len())];
    sampling.temperature = one_of(numbers, &[0.0, 0.3, 1.0, 2.0]);
    sampling.top_k = one_of(numbers, &[0.0, 1.0, 5.0, 50.0, 1000.0]) as u32;
    sampling.top_p = one_of(numbers, &[1.0, 0.9, 0.5, 0.05]);
    sampling.min_p = one_of(numbers, &[0.0, 0.01, 0.2]);
    if numbers.next() < 0.5 {
        sampling.repetition_penalty = 1.5;
        sampling.frequency_penalty = 0.7;
        sampling.presence_penalty = -0.4;
        sampling.history = (0..20).map(|_| numbers.below(vocab_size) as Token).collect();
        sampling.history_prompt = numbers.below(21) as u32;
    }
    if numbers.next() < 0.3 {
        sampling.logit_bias = [(numbers.below(vocab_size) as Token, 3.0), (7, -50.0)].into();
    }
    if numbers.next() < 0.3 {
        sampling.suppress = (0..100).collect();
        sampling.suppress_before = 2;
    }
    sampling.seed = (numbers.next() * 1e9) as u64 | 1 << 40;
    sampling.sample_index = numbers.below(4) as u32;
    sampling.logprobs = Some(numbers.below(21) as u8);
    sampling
}
