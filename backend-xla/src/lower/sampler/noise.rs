//! Gumbel noise.

use super::{Field, Rows};
use crate::stablehlo::{Element, Function, Order, Value};

impl Rows<'_> {
    /// Gumbel noise for each token: `-ln(-ln u)`, with `u` from Philox-4x32-10 (Salmon et al.,
    /// "Parallel random numbers: as easy as 1, 2, 3", 2011). Four neighbouring tokens share a
    /// block.
    pub(super) fn gumbel(&self, f: &mut Function) -> Value {
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
