//! Products with weights in blocks of quants, on the emulator, against the reference decoder.

mod support;

use backend_api::weights::Format;
use backend_cuda::Kernel;
use support::blocks::{Case, columns_of_block, embeds, function_of, run};

/// Columns of a few blocks, the tail of a warp's and of a step's.
fn inners(format: Format) -> [usize; 3] {
    let unit = format.block_elements().max(32);
    [unit, unit * 3, unit.max(64) * 9]
}

#[test]
fn few_rows_agree_with_the_decoders_product_in_every_format() {
    for format in Format::ALL {
        for (index, inner) in inners(format).into_iter().enumerate() {
            let rows = [1, 3, 8][index];
            // The last group of rows and the last block are not full.
            let case = Case { with_bias: index == 1, ..Case::new(format, rows, 27, inner) };
            let ran = run(&case, Kernel::BlocksVector, function_of(rows));
            assert!(ran.error < 1e-6, "{}: {case:?}", ran.error);
        }
    }
}

#[test]
fn every_number_of_few_rows_agrees() {
    for rows in 1..=8 {
        for half in [false, true] {
            let case = Case { half, wide: false, ..Case::new(Format::Q4_K, rows, 12, 768) };
            let ran = run(&case, Kernel::BlocksVector, function_of(rows));
            assert!(ran.error < 0.003, "{}: {case:?}", ran.error);
        }
    }
}

#[test]
fn many_rows_agree_on_tensor_cores_in_every_format() {
    for format in Format::ALL {
        for (index, inner) in inners(format).into_iter().enumerate() {
            let (rows, columns) = [(9, 130), (70, 27), (64, 128)][index];
            let case = Case { with_bias: index == 1, ..Case::new(format, rows, columns, inner) };
            let case = Case { half: index == 0, wide: index < 2, ..case };
            let ran = run(&case, Kernel::BlocksTile, "blocks_tile");
            assert!(ran.error < 0.003, "{}: {case:?}", ran.error);
        }
    }
}

#[test]
fn few_rows_read_each_block_once() {
    let formats = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q8_0,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::MXFP4,
        Format::F8_E4M3,
        Format::U4,
    ];
    for format in formats {
        for rows in [1, 8] {
            let case = Case::new(format, rows, 64, 2048);
            let function = function_of(rows);
            let ran = run(&case, Kernel::BlocksVector, function);
            // Each block of threads reads the input, from the caches: that is known, and taken off. A lane takes two
            // halves of a sector, one after the other.
            let blocks = case.columns / columns_of_block(function);
            let input = blocks * rows * case.inner * 2 / 16;
            let read = ran.counts.sectors_loaded - input as u64;
            let least = case.columns * case.inner / format.block_elements() * format.block_bytes();
            let ratio = read as f64 * 32.0 / least as f64;
            println!("{format}, {rows} rows: {ratio:.4} of its blocks");
            assert!(ratio <= 1.03, "{ratio}: {case:?}");
            assert!(ratio >= 1.0, "{ratio}: {case:?} reads less than there is");
            assert!(ran.layout.bytes() as f64 <= least as f64 * 1.001, "{format}");
            // From device memory: blocks and input once.
            let once = (least + rows * case.inner * 2) as f64;
            let ratio = ran.counts.l2_misses as f64 * 32.0 / once;
            assert!((1.0..=1.03).contains(&ratio), "{ratio} from device memory: {case:?}");
        }
    }
}

#[test]
fn decoded_weights_are_stored_without_bank_conflicts() {
    let case = Case::new(Format::Q4_K, 64, 128, 512);
    let counts = run(&case, Kernel::BlocksTile, "blocks_tile").counts;
    assert_eq!(counts.shared_wavefronts, counts.shared_wavefronts_ideal);
}

#[test]
fn rows_of_an_embedding_are_decoded_in_every_format() {
    for format in Format::ALL.into_iter().filter(|format| format.is_quantized()) {
        embeds(format);
    }
}
