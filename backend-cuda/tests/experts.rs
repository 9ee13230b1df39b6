//! Mixtures of experts on the emulator: routing, sorting, tiles, products by expert and their sum.

mod support;

use backend_api::weights::Format;
use backend_cuda::Kernel;
use support::experts::{self, layer};

#[test]
fn rows_choose_the_experts_of_the_greatest_scores() {
    experts::rows_choose_the_experts_of_the_greatest_scores();
}

#[test]
fn of_equal_scores_the_lower_expert_is_chosen_and_what_is_no_number_first() {
    experts::of_equal_scores_the_lower_expert_is_chosen_and_what_is_no_number_first();
}

#[test]
fn choices_are_sorted_by_expert_in_order_and_cut_into_tiles() {
    experts::choices_are_sorted_by_expert_in_order_and_cut_into_tiles();
}

#[test]
fn rows_go_through_their_experts_and_the_results_are_added() {
    for format in [Format::BF16, Format::Q4_K, Format::MXFP4] {
        for (rows, chosen) in [(1, 1), (3, 2), (40, 4)] {
            layer(format, rows, chosen, 8, "blocks_vector_8", Kernel::BlocksVector);
            layer(format, rows, chosen, 64, "blocks_tile", Kernel::BlocksTile);
        }
    }
    layer(Format::Q8_0, 3, 4, 4, "blocks_vector_4", Kernel::BlocksVector);
    // More rows than a tile has.
    layer(Format::Q5_K, 300, 2, 64, "blocks_tile", Kernel::BlocksTile);
}
