//! The registers of a warp, and functions applied to all of its lanes at once.

use std::marker::PhantomData;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// All lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// A 32-bit register of each lane. A 64-bit register is two rows, taken as 32 values of 8 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Row(pub(crate) [u32; LANES]);

// SAFETY: an array of integers without padding: its size of 128 is a multiple of its alignment.
unsafe impl bytemuck::Zeroable for Row {}
// SAFETY: as above; every pattern of bits is a value.
unsafe impl bytemuck::Pod for Row {}

/// What a register can hold of each lane.
pub(crate) trait Lane: Copy + Default + Send + Sync + 'static {
    /// Size of the value.
    const BYTES: usize;
    fn read(rows: &[Row], at: u32) -> [Self; LANES];
    fn write(rows: &mut [Row], at: u32, values: [Self; LANES], mask: u32);
}

/// A register that holds `T`.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    pub(crate) row: u32,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> Slot<T> {
    pub(crate) fn new(row: u32) -> Self {
        Self { row, kind: PhantomData }
    }
}

/// Takes the lanes of `mask` from `new`, and the others from `old`.
#[inline(always)]
fn blend<T: Copy>(old: &mut [T; LANES], new: [T; LANES], mask: u32) {
    if mask == FULL {
        *old = new;
    } else {
        for lane in 0..LANES {
            if mask >> lane & 1 == 1 {
                old[lane] = new[lane];
            }
        }
    }
}

macro_rules! lane_of_one_row {
    ($($type:ty),*) => {$(
        impl Lane for $type {
            const BYTES: usize = 4;
            #[inline(always)]
            fn read(rows: &[Row], at: u32) -> [Self; LANES] {
                bytemuck::cast(rows[at as usize])
            }
            #[inline(always)]
            fn write(rows: &mut [Row], at: u32, values: [Self; LANES], mask: u32) {
                blend(bytemuck::cast_mut::<Row, [Self; LANES]>(&mut rows[at as usize]), values, mask);
            }
        }
    )*};
}
lane_of_one_row!(u32, i32, f32);

macro_rules! lane_of_two_rows {
    ($($type:ty),*) => {$(
        impl Lane for $type {
            const BYTES: usize = 8;
            #[inline(always)]
            fn read(rows: &[Row], at: u32) -> [Self; LANES] {
                let at = at as usize;
                bytemuck::cast([rows[at], rows[at + 1]])
            }
            #[inline(always)]
            fn write(rows: &mut [Row], at: u32, values: [Self; LANES], mask: u32) {
                let at = at as usize;
                let rows: &mut [[Self; LANES]] = bytemuck::cast_slice_mut(&mut rows[at..at + 2]);
                blend(&mut rows[0], values, mask);
            }
        }
    )*};
}
lane_of_two_rows!(u64, i64, f64);

/// 16-bit registers live in the low half of a row; the upper half is zero.
macro_rules! lane_of_half_a_row {
    ($($type:ty),*) => {$(
        impl Lane for $type {
            const BYTES: usize = 2;
            #[inline(always)]
            fn read(rows: &[Row], at: u32) -> [Self; LANES] {
                rows[at as usize].0.map(|value| value as $type)
            }
            #[inline(always)]
            fn write(rows: &mut [Row], at: u32, values: [Self; LANES], mask: u32) {
                blend(&mut rows[at as usize].0, values.map(|value| u32::from(value as u16)), mask);
            }
        }
    )*};
}
lane_of_half_a_row!(u16, i16);

/// The registers of a warp.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registers {
    pub(crate) rows: Vec<Row>,
    /// Predicates: a bit for each lane.
    pub(crate) predicates: Vec<u32>,
    /// With a seed, approximate instructions are off by as much as they may be.
    pub(crate) perturb: Option<u32>,
}

impl Registers {
    #[inline(always)]
    pub(crate) fn get<T: Lane>(&self, slot: Slot<T>) -> [T; LANES] {
        T::read(&self.rows, slot.row)
    }

    #[inline(always)]
    pub(crate) fn set<T: Lane>(&mut self, slot: Slot<T>, values: [T; LANES], mask: u32) {
        T::write(&mut self.rows, slot.row, values, mask);
    }

    /// Writes the lanes of `mask` of a predicate.
    #[inline(always)]
    pub(crate) fn set_predicate(&mut self, index: usize, bits: u32, mask: u32) {
        let predicate = &mut self.predicates[index];
        *predicate = *predicate & !mask | bits & mask;
    }

    /// Writes one lane of a register of one or two rows.
    #[inline(always)]
    pub(crate) fn set_lane(&mut self, row: u32, wide: bool, lane: usize, value: u64) {
        let row = row as usize;
        if wide {
            let rows: &mut [[u64; LANES]] = bytemuck::cast_slice_mut(&mut self.rows[row..row + 2]);
            rows[0][lane] = value;
        } else {
            self.rows[row].0[lane] = value as u32;
        }
    }

    /// Reads one lane of a register of one or two rows.
    #[inline(always)]
    pub(crate) fn lane(&self, row: u32, wide: bool, lane: usize) -> u64 {
        let row = row as usize;
        if wide {
            let rows: &[[u64; LANES]] = bytemuck::cast_slice(&self.rows[row..row + 2]);
            rows[0][lane]
        } else {
            u64::from(self.rows[row].0[lane])
        }
    }

    #[inline(always)]
    pub(crate) fn map1<A: Lane, D: Lane>(
        &mut self,
        mask: u32,
        (d, a): (Slot<D>, Slot<A>),
        f: impl Fn(A) -> D,
    ) {
        wide(|| {
            let a = self.get(a);
            let mut out = [D::default(); LANES];
            for lane in 0..LANES {
                out[lane] = f(a[lane]);
            }
            self.set(d, out, mask);
        });
    }

    #[inline(always)]
    pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(
        &mut self,
        mask: u32,
        (d, a, b): (Slot<D>, Slot<A>, Slot<B>),
        f: impl Fn(A, B) -> D,
    ) {
        wide(|| {
            let (a, b) = (self.get(a), self.get(b));
            let mut out = [D::default(); LANES];
            for lane in 0..LANES {
                out[lane] = f(a[lane], b[lane]);
            }
            self.set(d, out, mask);
        });
    }

    #[inline(always)]
    pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        mask: u32,
        (d, a, b, c): (Slot<D>, Slot<A>, Slot<B>, Slot<C>),
        f: impl Fn(A, B, C) -> D,
    ) {
        wide(|| {
            let (a, b, c) = (self.get(a), self.get(b), self.get(c));
            let mut out = [D::default(); LANES];
            for lane in 0..LANES {
                out[lane] = f(a[lane], b[lane], c[lane]);
            }
            self.set(d, out, mask);
        });
    }

    /// The lanes for which `f` holds.
    #[inline(always)]
    pub(crate) fn test2<A: Lane, B: Lane>(
        &self,
        (a, b): (Slot<A>, Slot<B>),
        f: impl Fn(A, B) -> bool,
    ) -> u32 {
        wide(|| {
            let (a, b) = (self.get(a), self.get(b));
            let mut bits = [0u32; LANES];
            for lane in 0..LANES {
                bits[lane] = u32::from(f(a[lane], b[lane])) << lane;
            }
            bits.iter().fold(0, |all, bit| all | bit)
        })
    }
}

/// Runs `f` compiled for the vector units of this machine.
#[inline(always)]
pub(crate) fn wide<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function was compiled for.
        return unsafe { with_avx2(f) };
    }
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Work that must be compiled for the vector units of this machine as a whole: a closure that is large
/// is not, since it is then called rather than inlined.
pub(crate) trait Work {
    /// Must be `#[inline(always)]`.
    fn run(self);
}

/// Runs work compiled for the vector units of this machine.
#[inline(always)]
pub(crate) fn wide_work(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function was compiled for.
        return unsafe { work_with_avx2(work) };
    }
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn work_with_avx2(work: impl Work) {
    work.run();
}
