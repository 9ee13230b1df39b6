//! When and how `prefill_hopper` runs instead of `attention_append`.

use crate::Variant;

/// A launch of `prefill_hopper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hopper {
    /// Positions of KV that one copy brings: they divide a page and the kernel's 64 keys.
    pub box_rows: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

impl Hopper {
    /// Threads of a block: two warpgroups that multiply, one that brings keys and values.
    pub const THREADS: u32 = 384;
    /// The virtual architecture that the kernel needs: its instructions are those of one chip.
    pub const ARCHITECTURE: &'static str = "compute_90a";

    /// The launch for a variant on a device of compute capability `major.minor`, or none where `attention_append` must
    /// do: on other chips, for heads that aren't a multiple of 64 wide or wider than 256, for KV in FP8, and for pages of
    /// which no 8 positions lie together.
    pub fn new((major, minor): (u32, u32), variant: &Variant, page_size: u32) -> Option<Self> {
        let fits = variant.head.is_multiple_of(64) && (64..=256).contains(&variant.head);
        if (major, minor) != (9, 0) || !fits || variant.fp8 || variant.group > 64 {
            return None;
        }
        let box_rows = 1 << page_size.trailing_zeros().min(6);
        // Two tiles of queries, two of keys and two of values, 64 rows each, and six barriers.
        let shared = 6 * 64 * variant.head * 2 + 6 * 8;
        (page_size > 0 && box_rows >= 8).then_some(Self { box_rows, shared })
    }

    /// Blocks along x for a number of tiles.
    pub fn blocks(tiles: usize) -> u32 {
        tiles.div_ceil(2) as u32
    }

    /// Sizes, strides in bytes and box of the tensor map of a layer's KV in `pages` pages, as
    /// `cuTensorMapEncodeTiled` takes them, with two bytes an element and a swizzle of 128 bytes.
    pub fn map(&self, variant: &Variant, kv_heads: u32, page_size: u32, pages: u32) -> KvMap {
        let columns = u64::from(kv_heads) * u64::from(variant.head);
        KvMap {
            sizes: [columns, u64::from(pages) * 2 * u64::from(page_size)],
            strides: [columns * 2],
            box_sizes: [64, self.box_rows],
        }
    }
}

/// KV of a layer as a matrix: a row for each position of K or V of a page, KV heads times their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvMap {
    /// Columns and rows.
    pub sizes: [u64; 2],
    /// Bytes from one row to the next.
    pub strides: [u64; 1],
    /// Columns and rows of a box.
    pub box_sizes: [u32; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_runs_what_fits_and_leaves_the_rest() {
        let variant = Variant::new(128, 4);
        let at = |page_size| Hopper::new((9, 0), &variant, page_size);
        assert_eq!(at(16), Some(Hopper { box_rows: 16, shared: 98_352 }));
        assert_eq!(at(128).map(|one| one.box_rows), Some(64));
        assert_eq!(at(24).map(|one| one.box_rows), Some(8));
        for page_size in [0, 1, 4, 20] {
            assert_eq!(at(page_size), None, "{page_size}");
        }
        for capability in [(8, 0), (8, 9), (10, 0), (12, 0)] {
            assert_eq!(Hopper::new(capability, &variant, 16), None, "{capability:?}");
        }
        for head in [16, 80, 96, 512] {
            assert_eq!(Hopper::new((9, 0), &Variant::new(head, 4), 16), None, "{head}");
        }
        assert_eq!(Hopper::new((9, 0), &Variant { fp8: true, ..variant }, 16), None);
        // As much as a block can have.
        let wide = Hopper::new((9, 0), &Variant::new(256, 4), 16).expect("it fits");
        assert!(wide.shared <= 227 << 10);
    }

    #[test]
    fn the_map_covers_keys_and_values_of_all_pages() {
        let variant = Variant::new(64, 2);
        let hopper = Hopper::new((9, 0), &variant, 32).expect("it fits");
        let map = hopper.map(&variant, 3, 32, 10);
        let expected = KvMap { sizes: [192, 640], strides: [384], box_sizes: [64, 32] };
        assert_eq!(map, expected);
    }
}
