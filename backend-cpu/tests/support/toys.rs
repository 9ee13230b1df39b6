//! Small models with windowed layers and random weights.

use engine_core::{
    backend::GroupId,
    model::{
        Activation, AttentionOptions, Program, ProgramBuilder, RopePairs, Rotary, Split, ValueId,
    },
    weights::{Format, MapWeights, Shape, Tensor},
};
use testkit::random::Random;

pub(crate) const WINDOW: u32 = 24;
pub(crate) const VOCAB_SIZE: u32 = 157;
const WIDTH: usize = 64;

/// What a toy is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Toy {
    /// Whether each layer sees a window only.
    pub(crate) windowed: &'static [bool],
    /// As Gemma 2: soft caps, norms after attention and MLP, embeddings scaled.
    pub(crate) is_gemma: bool,
    /// Whether page groups know of the window, so that pages are released. Otherwise the window is a
    /// mask only.
    pub(crate) releases: bool,
}

/// Five windowed layers for each full one.
pub(crate) const FIVE_TO_ONE: Toy =
    Toy { windowed: &[true, true, true, true, true, false], is_gemma: false, releases: true };

/// Windowed and full layers in turns.
pub(crate) const GEMMA: Toy =
    Toy { windowed: &[true, false, true, false], is_gemma: true, releases: true };

impl Toy {
    /// The same with the window as a mask.
    pub(crate) fn masked(self) -> Self {
        Self { releases: false, ..self }
    }

    pub(crate) fn program(self) -> Program {
        let mut b = ProgramBuilder::new("toy", VOCAB_SIZE);
        // The groups differ in everything.
        let window = self.releases.then_some(WINDOW);
        let shapes = [(2, 16, b.page_group(2, 16, None)), (1, 24, b.page_group(1, 24, window))];
        let scale = if self.is_gemma { 8.0 } else { 1.0 };
        let mut x = b.embed("embed", WIDTH, scale);
        for (layer, windowed) in self.windowed.iter().enumerate() {
            let (kv_heads, head_dim, group) = shapes[usize::from(*windowed)];
            let name = |part: &str| format!("layers.{layer}.{part}");
            let h = self.norm(&mut b, x, &name("norm"));
            let attended = self.attend(&mut b, h, &name, *windowed, (kv_heads, head_dim, group));
            let attended = self.after(&mut b, attended, &name("after_attention"));
            x = b.add(x, attended);
            let h = self.norm(&mut b, x, &name("mlp_norm"));
            let gate = b.linear(h, &name("gate"), 96, Split::Columns);
            let up = b.linear(h, &name("up"), 96, Split::Columns);
            let activation = if self.is_gemma { Activation::GeluTanh } else { Activation::Silu };
            let h = b.gated_activation(gate, up, activation);
            let h = b.linear(h, &name("down"), WIDTH, Split::Rows);
            let h = self.after(&mut b, h, &name("after_mlp"));
            x = b.add(x, h);
        }
        let x = self.norm(&mut b, x, "norm");
        let x = b.select_outputs(x);
        b.finish_with_logits(x, "embed", self.is_gemma.then_some(20.0)).unwrap()
    }

    fn attend(
        self,
        b: &mut ProgramBuilder,
        h: ValueId,
        name: &dyn Fn(&str) -> String,
        windowed: bool,
        (kv_heads, head_dim, group): (u32, u32, GroupId),
    ) -> ValueId {
        let heads = 4;
        let width = |heads: u32| (heads * head_dim) as usize;
        let pairs = head_dim / 2;
        let base: f32 = if windowed { 100.0 } else { 10_000.0 };
        let rotary = Rotary {
            inverse_frequencies: (0..pairs)
                .map(|pair| base.powf(-(pair as f32) / pairs as f32))
                .collect(),
            attention_factor: 1.0,
            pairs: RopePairs::Halves,
        };
        let q = b.linear(h, &name("q"), width(heads), Split::Columns);
        let q = b.rope(q, head_dim, &rotary);
        let k = b.linear(h, &name("k"), width(kv_heads), Split::Columns);
        let k = b.rope(k, head_dim, &rotary);
        let v = b.linear(h, &name("v"), width(kv_heads), Split::Columns);
        let options = AttentionOptions {
            group,
            window: windowed.then_some(WINDOW),
            soft_cap: self.is_gemma.then_some(5.0),
            ..AttentionOptions::full(head_dim)
        };
        let h = b.attention(q, k, v, &options);
        b.linear(h, &name("o"), WIDTH, Split::Rows)
    }

    fn norm(self, b: &mut ProgramBuilder, x: ValueId, name: &str) -> ValueId {
        b.rms_norm_with(x, name, WIDTH, 1e-6, if self.is_gemma { 1.0 } else { 0.0 })
    }

    fn after(self, b: &mut ProgramBuilder, x: ValueId, name: &str) -> ValueId {
        if self.is_gemma { self.norm(b, x, name) } else { x }
    }
}

/// Random weights for programs; those that several name are the same.
pub(crate) fn random_weights(programs: &[Program]) -> MapWeights {
    let mut random = Random::new(5);
    let mut weights = MapWeights::new();
    for weight in programs.iter().flat_map(Program::weights) {
        let (shape, deviation, mean) = match weight.shape[..] {
            [rows, cols] => (Shape::matrix(rows, cols), 2.5 / (cols as f32).sqrt(), 0.0),
            _ => (Shape::Vector(weight.shape.iter().product()), 0.2, 0.8),
        };
        let values: Vec<f32> =
            (0..shape.rows() * shape.cols()).map(|_| mean + deviation * random.uniform()).collect();
        weights.insert(&weight.name, Tensor::from_f32(Format::F32, shape, &values).unwrap());
    }
    weights
}
