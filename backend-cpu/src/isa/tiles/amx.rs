//! AMX: matrix units of x86-64.
//!
//! Stable Rust has no intrinsics for tiles, so that each operation is one block of assembly which
//! loads the configuration of the tiles, uses them and releases them: no tile is live outside of it.

use std::arch::{
    asm,
    x86_64::{__cpuid_count, _xgetbv},
};

use super::{
    BLOCKS_AT_ONCE, ByteBlock, PAIRS, PairBlock, RowBlock, TileInputs, TileSums, Tiles,
    check_panels,
};

/// Proof that the processor has AMX for bytes and bf16, and that the operating system lets this
/// process use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// The unit, where processor and operating system have it. Asks Linux for the permission to use
    /// tiles, which a process has to.
    pub(crate) fn detect() -> Option<Self> {
        const TILE_STATE: u64 = 3 << 17;
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const BYTES: u32 = 1 << 25;
        if !is_x86_feature_detected!("xsave") || __cpuid_count(0, 0).eax < 7 {
            return None;
        }
        let features = __cpuid_count(7, 0).edx;
        if features & (BF16 | TILES | BYTES) != BF16 | TILES | BYTES {
            return None;
        }
        // SAFETY: the processor has `xsave`, and systems that report it have enabled `xgetbv`.
        let enabled = unsafe { enabled_states() };
        (enabled & TILE_STATE == TILE_STATE && request_tiles()).then_some(Self(()))
    }
}

#[target_feature(enable = "xsave")]
fn enabled_states() -> u64 {
    // SAFETY: register 0 always exists.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for the state of tiles in this process's threads.
#[cfg(target_os = "linux")]
fn request_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: this call of the kernel reads no memory and changes nothing but the permission; the
    // registers that a call overwrites are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Sums in tiles 0 to 3; inputs, `depth` bytes a row, in 4 and 5; weights in 6 and 7.
    const fn new(depth: u16) -> Self {
        let rows = (depth / 4) as u8;
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes: [64, 64, 64, 64, depth, depth, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, rows, rows, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

static BYTES: Configuration = Configuration::new(32);
static BF16: Configuration = Configuration::new(64);

impl Tiles for Amx {
    fn bytes(
        self,
        inputs: TileInputs<'_, RowBlock>,
        weights: [&[ByteBlock]; 2],
        sums: &mut [[[TileSums<i32>; 2]; 2]; BLOCKS_AT_ONCE],
    ) {
        let blocks = weights[0].len();
        if blocks == 0 {
            return;
        }
        inputs.check(blocks);
        assert!(blocks <= BLOCKS_AT_ONCE && weights[1].len() == blocks, "too many blocks");
        let second = inputs.tiles[inputs.count - 1];
        // SAFETY: an `Amx` exists only where the instructions may be used. Tile loads read 32 bytes
        // of sixteen rows `stride` blocks apart, and 512 bytes of each weight block: `check` and
        // the assertion saw that `blocks` of them are there. The stores fill `blocks` elements of
        // `sums`, 4 KiB each. With one tile of rows the second is the first again, and its sums
        // are not read.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{first} + {stride}*1]",
                "tileloadd tmm6, [{left} + {line}*1]",
                "tileloadd tmm7, [{right} + {line}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{second} + {stride}*1]",
                "tdpbsud tmm1, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                "add {first}, {block}",
                "add {second}, {block}",
                "add {left}, 512",
                "add {right}, 512",
                "add {sums}, 4096",
                "dec {blocks}",
                "jnz 2b",
                "tilerelease",
                configuration = in(reg) &raw const BYTES,
                first = inout(reg) inputs.tiles[0].as_ptr() => _,
                second = inout(reg) second.as_ptr() => _,
                stride = in(reg) inputs.stride * size_of::<RowBlock>(),
                left = inout(reg) weights[0].as_ptr() => _,
                right = inout(reg) weights[1].as_ptr() => _,
                line = in(reg) 64_usize,
                block = const size_of::<RowBlock>(),
                sums = inout(reg) sums.as_mut_ptr() => _,
                blocks = inout(reg) blocks => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    fn pairs(
        self,
        inputs: TileInputs<'_, u16>,
        weights: [&[PairBlock]; 2],
        step: usize,
        blocks: usize,
        sums: &mut [[TileSums<f32>; 2]; 2],
    ) {
        inputs.check(blocks * PAIRS);
        check_panels(weights, step, blocks);
        let second = inputs.tiles[inputs.count - 1];
        // SAFETY: an `Amx` exists only where the instructions may be used. Tile loads read 64 bytes
        // of sixteen rows, and 1 KiB of each weight block, `blocks` times: the checks saw that they
        // are there. The stores fill `sums`. With one tile of rows the second is the first again,
        // and its sums are not read.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{first} + {stride}*1]",
                "tileloadd tmm6, [{left} + {line}*1]",
                "tileloadd tmm7, [{right} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{second} + {stride}*1]",
                "tdpbf16ps tmm1, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {first}, 64",
                "add {second}, 64",
                "add {left}, {step}",
                "add {right}, {step}",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                "tilerelease",
                configuration = in(reg) &raw const BF16,
                first = inout(reg) inputs.tiles[0].as_ptr() => _,
                second = inout(reg) second.as_ptr() => _,
                stride = in(reg) inputs.stride * size_of::<u16>(),
                left = inout(reg) weights[0].as_ptr() => _,
                right = inout(reg) weights[1].as_ptr() => _,
                line = in(reg) 64_usize,
                step = in(reg) step * size_of::<PairBlock>(),
                sums = in(reg) sums.as_mut_ptr(),
                blocks = inout(reg) blocks => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
