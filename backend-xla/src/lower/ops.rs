//! One short function for each operation but attention.
//!
//! Activations are matrices `[rows, width]` in the placement's element type; norms, rotations and
//! the softmax are computed in `f32`.

use std::sync::Arc;

use backend_api::{
    BackendError,
    program::{Activation, Op, Residual, RopePairs, Split, ValueId, WeightId},
};

use super::step::{Lowering, Rotation, StepShape};
use crate::stablehlo::{Element, Function, Order, Reduction, Sharding, Value};

impl Lowering<'_> {
    pub(super) fn op(&mut self, op: &Op) -> Result<(), BackendError> {
        match op {
            Op::Embed { weight, scale, out } => self.embed(*weight, *scale, *out),
            Op::RmsNorm { input, residual, weight, run, weight_offset, epsilon, out } => {
                let input = self.add_residual(*input, *residual)?;
                self.rms_norm(&input, *weight, *run, *weight_offset, *epsilon, *out)
            }
            Op::Linear { input, weight, bias, out } => self.linear(*input, *weight, *bias, *out),
            Op::Rope { input, head_dim, inverse_frequencies, attention_factor, pairs, out } => {
                let rotation = self.rotation(inverse_frequencies, *attention_factor);
                self.rope(*input, *head_dim as usize, rotation, *pairs, *out)
            }
            Op::ScaleByPosition { input, beta, original_context, out } => {
                self.scale_by_position(*input, *beta, *original_context, *out)
            }
            Op::Attention(attention) => self.attention(attention),
            Op::GatedActivation { gate, up, activation, out } => {
                self.gated_activation(*gate, *up, *activation, *out)
            }
            Op::MixtureOfExperts(mixture) => self.mixture_of_experts(mixture),
            Op::Multiply { input, weight, out } => self.multiply(*input, *weight, *out),
            Op::SelectColumns { input, first, out } => self.select_columns(*input, *first, *out),
            Op::Add { left, right, out } => self.sum(*left, *right, *out),
            Op::Scale { input, factor, out } => self.scaled(*input, *factor, *out),
            Op::SoftCap { input, cap, out } => self.soft_cap(*input, *cap, *out),
            Op::SelectOutputs { input, out } => self.select_outputs(*input, *out),
            Op::Logits { input, weight, out } => self.logits(*input, *weight, *out),
        }
    }

    /// `out[t] = weight[token[t]] * scale`. Where the vocabulary is divided each device looks up
    /// what it has, and the sum over devices is the row.
    fn embed(&mut self, weight: WeightId, scale: f32, out: ValueId) -> Result<(), BackendError> {
        let devices = self.placement.devices;
        let sharding = self.placement.weights[weight.index()].sharding;
        let table = self.weights[weight.index()].clone();
        let ids = self.token_ids.clone();
        let f = &mut self.function;
        let rows = if sharding == Sharding::REPLICATED {
            f.take(&table, &ids)
        } else {
            let inputs = [(&table, sharding), (&ids, Sharding::REPLICATED)];
            let mut rows =
                f.on_each_device(devices, &inputs, &[Sharding::REPLICATED], |f, local| {
                    let [table, ids] = local else { return Vec::new() };
                    let share = f.int(table.dim(0));
                    let device = f.device_index();
                    let first = f.multiply(&device, &share);
                    let first = f.broadcast_to(&first, ids, &[]);
                    let own = f.subtract(ids, &first);
                    let zero = f.splat(Element::I32, ids.dims(), 0.0);
                    let end = f.broadcast_to(&share, ids, &[]);
                    let from_start = f.compare(&own, Order::GreaterEqual, &zero);
                    let before_end = f.compare(&own, Order::Less, &end);
                    let is_own = f.and(&from_start, &before_end);
                    let own = f.select(&is_own, &own, &zero);
                    let rows = f.take(table, &own);
                    let nothing = f.splat(rows.element(), rows.dims(), 0.0);
                    let is_own = f.broadcast_to(&is_own, &rows, &[0]);
                    let rows = f.select(&is_own, &rows, &nothing);
                    vec![f.sum_over_devices(&rows, devices)]
                });
            rows.remove(0)
        };
        let rows = f.scale(&rows, scale);
        self.set(out, rows);
        Ok(())
    }

    /// `input + residual`, if there is a residual, which is set as a value too.
    fn add_residual(
        &mut self,
        input: ValueId,
        residual: Option<Residual>,
    ) -> Result<Value, BackendError> {
        let input = self.value(input)?;
        let Some(Residual { value, sum }) = residual else { return Ok(input) };
        let residual = self.value(value)?;
        let total = self.function.add(&input, &residual);
        self.set(sum, total.clone());
        Ok(total)
    }

    /// `x / sqrt(mean(x²) + epsilon) * (weight + offset)` over runs of `run` columns, and of the
    /// zeros that fill up a row of heads.
    fn rms_norm(
        &mut self,
        input: &Value,
        weight: Option<WeightId>,
        run: u32,
        offset: f32,
        epsilon: f32,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let weight = weight.map(|weight| self.weights[weight.index()].clone());
        let (rows, width) = (input.dim(0), input.dim(1));
        let (run, count) = self.placement.norm_run(out, run as usize);
        let f = &mut self.function;
        let x = f.convert(input, Element::F32);
        let x = f.reshape(&x, &[rows, width / run, run]);
        let squares = f.multiply(&x, &x);
        let sum = f.reduce(&squares, Reduction::Sum, &[2]);
        let mean = f.scale(&sum, 1.0 / count as f32);
        let epsilon = f.splat(Element::F32, mean.dims(), epsilon.into());
        let mean = f.add(&mean, &epsilon);
        let factor = f.rsqrt(&mean);
        let factor = f.broadcast_to(&factor, &x, &[0, 1]);
        let x = f.multiply(&x, &factor);
        let weight = weight.map(|weight| match offset == 0.0 {
            true => weight,
            false => {
                let offset = f.splat(Element::F32, &[run], offset.into());
                f.add(&weight, &offset)
            }
        });
        let x = match weight {
            Some(weight) => {
                let weight = f.broadcast_to(&weight, &x, &[2]);
                f.multiply(&x, &weight)
            }
            None => f.scale(&x, 1.0 + offset),
        };
        let x = f.reshape(&x, &[rows, width]);
        let x = f.convert(&x, input.element());
        self.set(out, x);
        Ok(())
    }

    /// `out = input × weightᵀ (+ bias)`. Partial results of a row split are summed over devices,
    /// as the annotation says that each device has the whole result.
    fn linear(
        &mut self,
        input: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let matrix = self.matrix(weight, input.element());
        let inputs_dim = if self.placement.weights[weight.index()].transposed { 0 } else { 1 };
        let f = &mut self.function;
        let mut product = f.dot((&input, &matrix), &[], (1, inputs_dim), input.element());
        if self.placement.devices > 1 {
            product = match self.program.weights()[weight.index()].split {
                Split::Rows => f.constrain(&product, Sharding::REPLICATED),
                Split::Columns => f.constrain(&product, Sharding::along(1)),
                Split::None => product,
            };
        }
        if let Some(bias) = bias {
            let bias = f.convert(&self.weights[bias.index()], product.element());
            let bias = f.broadcast_to(&bias, &product, &[1]);
            product = f.add(&product, &bias);
        }
        self.set(out, product);
        Ok(())
    }

    /// Cosines and sines of the tokens' angles, computed once for all layers that share them.
    fn rotation(&mut self, frequencies: &Arc<[f32]>, factor: f32) -> usize {
        let known =
            |rotation: &Rotation| rotation.frequencies == *frequencies && rotation.factor == factor;
        if let Some(index) = self.rotations.iter().position(known) {
            return index;
        }
        let dims = [self.shape.tokens(), frequencies.len()];
        let f = &mut self.function;
        let positions = f.convert(&self.positions, Element::F32);
        let positions = f.broadcast(&positions, &dims, &[0]);
        let radians = f.vector(frequencies);
        let radians = f.broadcast(&radians, &dims, &[1]);
        let angles = f.multiply(&positions, &radians);
        let cosine = f.cosine(&angles);
        let cosine = f.scale(&cosine, factor);
        let sine = f.sine(&angles);
        let sine = f.scale(&sine, factor);
        self.rotations.push(Rotation { frequencies: frequencies.clone(), factor, cosine, sine });
        self.rotations.len() - 1
    }

    /// Rotates pairs of each head's dimensions: `(a cos - b sin, b cos + a sin)`.
    fn rope(
        &mut self,
        input: ValueId,
        head_dim: usize,
        rotation: usize,
        pairs: RopePairs,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let Rotation { frequencies, cosine, sine, .. } = &self.rotations[rotation];
        let (rows, width, count) = (input.dim(0), input.dim(1), frequencies.len());
        let f = &mut self.function;
        let x = f.convert(&input, Element::F32);
        let x = f.reshape(&x, &[rows, width / head_dim, head_dim]);
        let rotary = f.slice(&x, 2, 0, 2 * count);
        let dims = [rows, width / head_dim, count];
        let (a, b) = match pairs {
            RopePairs::Halves => (f.slice(&rotary, 2, 0, count), f.slice(&rotary, 2, count, count)),
            RopePairs::Adjacent => {
                let apart = f.reshape(&rotary, &[dims[0], dims[1], count, 2]);
                let a = f.slice(&apart, 3, 0, 1);
                let b = f.slice(&apart, 3, 1, 1);
                (f.reshape(&a, &dims), f.reshape(&b, &dims))
            }
        };
        let cosine = f.broadcast(cosine, &dims, &[0, 2]);
        let sine = f.broadcast(sine, &dims, &[0, 2]);
        let (a_cos, b_sin) = (f.multiply(&a, &cosine), f.multiply(&b, &sine));
        let (b_cos, a_sin) = (f.multiply(&b, &cosine), f.multiply(&a, &sine));
        let first = f.subtract(&a_cos, &b_sin);
        let second = f.add(&b_cos, &a_sin);
        let rotated = match pairs {
            RopePairs::Halves => f.concatenate(&[&first, &second], 2),
            RopePairs::Adjacent => {
                let wide = [dims[0], dims[1], count, 1];
                let (first, second) = (f.reshape(&first, &wide), f.reshape(&second, &wide));
                let apart = f.concatenate(&[&first, &second], 3);
                f.reshape(&apart, &[dims[0], dims[1], 2 * count])
            }
        };
        let x = match 2 * count == head_dim {
            true => rotated,
            false => {
                let rest = f.slice(&x, 2, 2 * count, head_dim - 2 * count);
                f.concatenate(&[&rotated, &rest], 2)
            }
        };
        let x = f.reshape(&x, &[rows, width]);
        let x = f.convert(&x, input.element());
        self.set(out, x);
        Ok(())
    }

    /// `input * (1 + beta * ln(1 + floor(position / original_context)))`
    fn scale_by_position(
        &mut self,
        input: ValueId,
        beta: f32,
        original_context: u32,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let f = &mut self.function;
        let length = f.splat(Element::I32, self.positions.dims(), original_context.into());
        let passed = f.divide(&self.positions, &length);
        let passed = f.convert(&passed, Element::F32);
        let growth = f.log_plus_one(&passed);
        let growth = f.scale(&growth, beta);
        let one = f.splat(Element::F32, growth.dims(), 1.0);
        let factor = f.add(&one, &growth);
        let scaled = scale_rows(f, &input, &factor, &[0]);
        self.set(out, scaled);
        Ok(())
    }

    /// `input * weight`, for all columns or for each.
    fn multiply(
        &mut self,
        input: ValueId,
        weight: WeightId,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let weight = self.weights[weight.index()].clone();
        let f = &mut self.function;
        let product = match weight.dim(0) {
            1 => {
                let weight = f.scalar(&weight);
                scale_rows(f, &input, &weight, &[])
            }
            _ => scale_rows(f, &input, &weight, &[1]),
        };
        self.set(out, product);
        Ok(())
    }

    /// `out[r, c] = input[r, first + c]`
    fn select_columns(
        &mut self,
        input: ValueId,
        first: u32,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let columns = self.width(out);
        let selected = self.function.slice(&input, 1, first as usize, columns);
        self.set(out, selected);
        Ok(())
    }

    /// `out = activation(gate, up)`
    fn gated_activation(
        &mut self,
        gate: ValueId,
        up: ValueId,
        activation: Activation,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let (gate, up) = (self.value(gate)?, self.value(up)?);
        let f = &mut self.function;
        let gate = match gate.dim(1) == up.dim(1) {
            true => gate,
            false => {
                let gate = f.reshape(&gate, &[gate.dim(0)]);
                f.broadcast_to(&gate, &up, &[0])
            }
        };
        let product = gated(f, &gate, &up, activation);
        self.set(out, product);
        Ok(())
    }

    fn sum(&mut self, left: ValueId, right: ValueId, out: ValueId) -> Result<(), BackendError> {
        let (left, right) = (self.value(left)?, self.value(right)?);
        let sum = self.function.add(&left, &right);
        self.set(out, sum);
        Ok(())
    }

    fn scaled(&mut self, input: ValueId, factor: f32, out: ValueId) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let scaled = self.function.scale(&input, factor);
        self.set(out, scaled);
        Ok(())
    }

    /// `out = cap * tanh(input / cap)`
    fn soft_cap(&mut self, input: ValueId, cap: f32, out: ValueId) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let capped = soft_cap(&mut self.function, &input, cap);
        self.set(out, capped);
        Ok(())
    }

    /// `out[o] = input[token of o]`
    fn select_outputs(&mut self, input: ValueId, out: ValueId) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let selected = self.function.take(&input, &self.output_tokens);
        self.set(out, selected);
        Ok(())
    }

    /// `out = input × weightᵀ` in `f32`, of the rows whose logits are wanted; what is wanted of the
    /// rows behind them is the input. Each device computes its share of the vocabulary.
    ///
    /// One row is multiplied as two: XLA's CPU compiler has a slow product for a single row and a
    /// matrix of this layout, several times slower than for two.
    fn logits(
        &mut self,
        input: ValueId,
        weight: WeightId,
        out: ValueId,
    ) -> Result<(), BackendError> {
        let input = self.value(input)?;
        let sharding = self.placement.weights[weight.index()].sharding;
        let StepShape { outputs, hidden, .. } = self.shape;
        let f = &mut self.function;
        if hidden > 0 {
            let states = f.slice(&input, 0, outputs, hidden);
            self.hidden = Some(f.convert(&states, Element::F32));
        }
        let input = f.slice(&input, 0, 0, outputs);
        let is_single = input.dim(0) == 1;
        let input = if is_single { f.concatenate(&[&input, &input], 0) } else { input };
        let mut logits = f.dot((&input, &self.weights[weight.index()]), &[], (1, 1), Element::F32);
        if sharding != Sharding::REPLICATED {
            logits = f.constrain(&logits, Sharding::along(1));
        }
        if is_single {
            logits = f.slice(&logits, 0, 0, 1);
        }
        self.set(out, logits);
        Ok(())
    }
}

/// `value * factor` in `f32`, where dimension `i` of the factor is dimension `places[i]`.
fn scale_rows(f: &mut Function, value: &Value, factor: &Value, places: &[usize]) -> Value {
    let x = f.convert(value, Element::F32);
    let factor = f.broadcast_to(factor, &x, places);
    let x = f.multiply(&x, &factor);
    f.convert(&x, value.element())
}

/// `activation(gate, up)`; the function of the gate is computed in `f32`.
pub(super) fn gated(f: &mut Function, gate: &Value, up: &Value, activation: Activation) -> Value {
    let x = f.convert(gate, Element::F32);
    let active = match activation {
        Activation::Identity => x,
        Activation::Sigmoid => f.logistic(&x),
        Activation::Silu => {
            let sigmoid = f.logistic(&x);
            f.multiply(&x, &sigmoid)
        }
        Activation::GeluTanh => {
            let square = f.multiply(&x, &x);
            let cube = f.multiply(&square, &x);
            let cube = f.scale(&cube, 0.044_715);
            let inner = f.add(&x, &cube);
            let inner = f.scale(&inner, (2.0 / std::f32::consts::PI).sqrt());
            let tanh = f.tanh(&inner);
            let one = f.splat(Element::F32, x.dims(), 1.0);
            let sum = f.add(&one, &tanh);
            let half = f.scale(&x, 0.5);
            f.multiply(&half, &sum)
        }
        Activation::ClampedSwiglu { slope, limit } => {
            let high = f.splat(Element::F32, x.dims(), limit.into());
            let low = f.splat(Element::F32, x.dims(), (-limit).into());
            let one = f.splat(Element::F32, x.dims(), 1.0);
            let x = f.minimum(&x, &high);
            let inner = f.scale(&x, slope);
            let sigmoid = f.logistic(&inner);
            let active = f.multiply(&x, &sigmoid);
            let up = f.convert(up, Element::F32);
            let up = f.minimum(&up, &high);
            let up = f.maximum(&up, &low);
            let up = f.add(&up, &one);
            let product = f.multiply(&active, &up);
            return f.convert(&product, gate.element());
        }
    };
    let active = f.convert(&active, gate.element());
    f.multiply(&active, up)
}

/// `cap * tanh(value / cap)`
pub(super) fn soft_cap(f: &mut Function, value: &Value, cap: f32) -> Value {
    let ratio = f.scale(value, 1.0 / cap);
    let tanh = f.tanh(&ratio);
    f.scale(&tanh, cap)
}
