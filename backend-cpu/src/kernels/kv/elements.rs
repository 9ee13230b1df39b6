//! Keys and values as elements by themselves.

use std::marker::PhantomData;

use backend_api::PageId;
use bytemuck::Pod;

use super::{PageShape, Part};
use crate::{
    isa::{Isa, LANES},
    shared::Cells,
};

/// How an element is stored.
pub(crate) trait Element: Copy + Send + Sync + std::fmt::Debug + 'static {
    type Raw: Pod + Send + Sync + std::fmt::Debug;
    /// Whether each head's key and value of a position has a scale.
    const IS_SCALED: bool;

    /// Sixteen elements, without scale.
    fn load<S: Isa>(isa: S, from: &[Self::Raw; LANES]) -> S::F32;

    /// What stands for a value divided by the scale.
    fn encode(value: f32) -> Self::Raw;
}

/// Single precision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32;

impl Element for F32 {
    type Raw = f32;
    const IS_SCALED: bool = false;

    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[f32; LANES]) -> S::F32 {
        isa.load(from)
    }

    fn encode(value: f32) -> f32 {
        value
    }
}

/// IEEE half precision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F16;

impl Element for F16 {
    type Raw = u16;
    const IS_SCALED: bool = false;

    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[u16; LANES]) -> S::F32 {
        isa.load_f16(from)
    }

    fn encode(value: f32) -> u16 {
        half::f16::from_f32(value).to_bits()
    }
}

/// Signed bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct I8;

impl Element for I8 {
    type Raw = i8;
    const IS_SCALED: bool = true;

    #[inline(always)]
    fn load<S: Isa>(isa: S, from: &[i8; LANES]) -> S::F32 {
        isa.load_i8(from)
    }

    fn encode(value: f32) -> i8 {
        value.round_ties_even() as i8
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct Elements<E: Element> {
    shape: PageShape,
    keys: Cells<E::Raw>,
    values: Cells<E::Raw>,
    /// Empty unless elements are scaled.
    key_scales: Cells<f32>,
    value_scales: Cells<f32>,
    element: PhantomData<E>,
}

fn key_page(shape: PageShape) -> usize {
    shape.kv_heads * shape.head_dim * shape.page_size
}

fn value_page(shape: PageShape) -> usize {
    shape.kv_heads * shape.value_width() * shape.page_size
}

fn scale_page(shape: PageShape) -> usize {
    shape.kv_heads * shape.page_size
}

impl<E: Element> Elements<E> {
    /// `pages` pages of zeros.
    pub(crate) fn new(shape: PageShape, pages: usize) -> Self {
        let scales = if E::IS_SCALED { pages * scale_page(shape) } else { 0 };
        Self {
            shape,
            keys: Cells::zeroed(pages * key_page(shape)),
            values: Cells::zeroed(pages * value_page(shape)),
            key_scales: Cells::zeroed(scales),
            value_scales: Cells::zeroed(scales),
            element: PhantomData,
        }
    }

    #[inline(always)]
    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// Keys of a head in a page: `[dimension, position]`.
    #[inline(always)]
    pub(crate) fn keys(&self, page: PageId, head: usize) -> &[E::Raw] {
        let size = self.shape.head_dim * self.shape.page_size;
        &self.keys.get()[(page.0 as usize * self.shape.kv_heads + head) * size..][..size]
    }

    /// Values of a head in a page: `[position, padded dimension]`.
    #[inline(always)]
    pub(crate) fn values(&self, page: PageId, head: usize) -> &[E::Raw] {
        let size = self.shape.value_width() * self.shape.page_size;
        &self.values.get()[(page.0 as usize * self.shape.kv_heads + head) * size..][..size]
    }

    /// Scales of the keys and of the values of a head in a page, by position.
    #[inline(always)]
    pub(crate) fn scales(&self, page: PageId, head: usize) -> [&[f32]; 2] {
        let size = self.shape.page_size;
        let start = (page.0 as usize * self.shape.kv_heads + head) * size;
        [&self.key_scales.get()[start..][..size], &self.value_scales.get()[start..][..size]]
    }

    /// Writes one position of one head: `key` and `value` are `[head_dim]`.
    ///
    /// # Safety
    /// No two calls at the same time may write the same head, and nobody may read the memory
    /// meanwhile.
    pub(crate) unsafe fn write(
        &self,
        page: PageId,
        (head, offset): (usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        let PageShape { page_size, kv_heads, head_dim } = self.shape;
        let place = page.0 as usize * kv_heads + head;
        let (size, start) = (head_dim * page_size, place * head_dim * page_size);
        // SAFETY: keys and values of this head are written by the caller alone.
        let keys = unsafe { self.keys.part(start..start + size) };
        let start = (place * page_size + offset) * self.shape.value_width();
        // SAFETY: as above.
        let values = unsafe { self.values.part(start..start + head_dim) };
        let mut inverse = [1.0; 2];
        if E::IS_SCALED {
            let scale = place * page_size + offset;
            let scales = [&self.key_scales, &self.value_scales];
            for ((scales, inverse), from) in scales.iter().zip(&mut inverse).zip([key, value]) {
                // SAFETY: as above.
                let to = unsafe { scales.part(scale..scale + 1) };
                (to[0], *inverse) = scale_of(from);
            }
        }
        for (to, from) in keys[offset..].iter_mut().step_by(page_size).zip(key) {
            *to = E::encode(*from * inverse[0]);
        }
        for (to, from) in values.iter_mut().zip(value) {
            *to = E::encode(*from * inverse[1]);
        }
    }

    /// Bytes of its memory.
    pub(super) fn bytes(&self) -> u64 {
        (size_of_val(self.keys.get())
            + size_of_val(self.values.get())
            + size_of_val(self.key_scales.get())
            + size_of_val(self.value_scales.get())) as u64
    }

    pub(super) fn parts(&mut self) -> Vec<Part<'_>> {
        let mut parts: Vec<Part<'_>> = vec![
            (self.keys.bytes(), |shape| key_page(shape) * size_of::<E::Raw>()),
            (self.values.bytes(), |shape| value_page(shape) * size_of::<E::Raw>()),
        ];
        if E::IS_SCALED {
            for scales in [&mut self.key_scales, &mut self.value_scales] {
                parts.push((scales.bytes(), |shape| scale_page(shape) * size_of::<f32>()));
            }
        }
        parts
    }
}

/// The scale with which values fit into -127 to 127, and its inverse. A value that is not finite
/// makes a scale that is not a number.
fn scale_of(values: &[f32]) -> (f32, f32) {
    let greatest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let poison: f32 = values.iter().map(|value| value * 0.0).sum();
    let inverse = if greatest > f32::MIN_POSITIVE * 128.0 { 127.0 / greatest } else { 0.0 };
    (greatest / 127.0 + poison, inverse)
}
