//! A path that adds instructions to another one.

/// Implements [`Isa`](super::Isa) for a path whose field 0 is the path that it extends.
macro_rules! delegate_isa {
    ($path:ty => $base:ty, $features:literal) => {
        impl $crate::isa::Isa for $path {
            type F32 = <$base as $crate::isa::Isa>::F32;

            const TILE_ROWS: usize = <$base as $crate::isa::Isa>::TILE_ROWS;
            const TILE_PANELS: usize = <$base as $crate::isa::Isa>::TILE_PANELS;
            const SINGLE_ROW_PANELS: usize = <$base as $crate::isa::Isa>::SINGLE_ROW_PANELS;
            const TILE_QUERIES: usize = <$base as $crate::isa::Isa>::TILE_QUERIES;

            #[inline(always)]
            fn vectorize<O: $crate::isa::Op>(self, op: O) -> O::Output {
                #[target_feature(enable = $features)]
                fn inner<O: $crate::isa::Op>(isa: $path, op: O) -> O::Output {
                    op.run(isa)
                }
                // SAFETY: a value of this type exists only where its instructions were found.
                unsafe { inner(self, op) }
            }

            #[inline(always)]
            fn prefetch<T>(self, value: &T) {
                $crate::isa::Isa::prefetch(self.0, value);
            }

            $crate::isa::delegate::delegate_isa!(@methods
                splat(value: f32) -> Self::F32;
                load(from: &[f32; LANES]) -> Self::F32;
                store(value: Self::F32, to: &mut [f32; LANES]) -> ();
                add(a: Self::F32, b: Self::F32) -> Self::F32;
                sub(a: Self::F32, b: Self::F32) -> Self::F32;
                mul(a: Self::F32, b: Self::F32) -> Self::F32;
                div(a: Self::F32, b: Self::F32) -> Self::F32;
                mul_add(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
                max(a: Self::F32, b: Self::F32) -> Self::F32;
                min(a: Self::F32, b: Self::F32) -> Self::F32;
                round(a: Self::F32) -> Self::F32;
                power_of_two(a: Self::F32) -> Self::F32;
                keep_first(a: Self::F32, count: usize, fill: f32) -> Self::F32;
                load_f16(from: &[u16; LANES]) -> Self::F32;
                load_bf16(from: &[u16; LANES]) -> Self::F32;
                load_i8(from: &[i8; LANES]) -> Self::F32;
                load_nibbles(from: &[u8; LANES]) -> [Self::F32; 2];
                look_up(table: &[f32; LANES], nibbles: &[u8; LANES]) -> [Self::F32; 2];
            );
        }
    };
    (@methods $($name:ident($($argument:ident: $type:ty),*) -> $out:ty;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $type),*) -> $out {
                $crate::isa::Isa::$name(self.0, $($argument),*)
            }
        )*
    };
}
pub(super) use delegate_isa;
