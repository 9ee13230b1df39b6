//! What every backend must pass, whatever device it drives.
//!
//! Each case runs small programs with random weights on the backend under test and on the
//! [interpreter](crate::interpreter), and compares what comes back through the ordinary
//! interface: whole vectors of log probabilities, as vocabularies are small enough that one
//! output can ask for every token. A backend's crate instantiates all cases at once, each a test
//! with a sentence for a name:
//!
//! ```
//! use std::sync::Arc;
//! use testkit::conformance::Subject;
//! use testkit::interpreter::Interpreter;
//!
//! fn subject() -> Subject {
//!     Subject::new(Arc::new(Interpreter), 1e-6)
//! }
//!
//! testkit::conformance_suite!(subject());
//! ```
//!
//! What a backend doesn't support it says with a typed error, or in its capabilities. The case,
//! or the part of it, then counts as skipped, and must be among the skips that the subject
//! declares: a backend can't lose support for something, nor gain it, unnoticed.

mod batches;
mod check;
mod experts;
mod failure;
mod faults;
mod layers;
mod models;
mod operations;
mod outputs;
mod programs;
mod rules;
mod sampling;
mod session;
mod slots;
mod wants;
mod whole_models;

use std::sync::Arc;

use engine_core::backend::Backend;
use engine_core::backend::{Compute, KvFormat};

pub use check::{Case, Check, assert_passes};
pub use failure::{CaseError, Failure};

/// The cases, by name. [`conformance_suite!`](crate::conformance_suite) lists all of them.
pub mod cases {
    pub use super::batches::*;
    pub use super::experts::*;
    pub use super::faults::*;
    pub use super::layers::*;
    pub use super::operations::*;
    pub use super::outputs::*;
    pub use super::programs::*;
    pub use super::rules::*;
    pub use super::sampling::*;
    pub use super::slots::*;
    pub use super::wants::*;
    pub use super::whole_models::*;
}

/// A backend under test.
#[derive(Clone)]
pub struct Subject {
    backend: Arc<dyn Backend>,
    tolerance: f32,
    kv_format: Option<KvFormat>,
    compute: Compute,
    skips: &'static [&'static str],
}

impl Subject {
    /// A backend whose log probabilities differ from the reference's by at most `tolerance`
    /// (natural logarithms). About 1e-4 suits one that computes in f32.
    pub fn new(backend: Arc<dyn Backend>, tolerance: f32) -> Self {
        Self { backend, tolerance, kv_format: None, compute: Compute::Exact, skips: &[] }
    }

    /// Stores KV in another format than f32. The tolerance must allow for it.
    #[must_use]
    pub fn kv_format(self, format: KvFormat) -> Self {
        Self { kv_format: Some(format), ..self }
    }

    /// Computes in another precision than exact. The tolerance must allow for it.
    #[must_use]
    pub fn compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// What the backend doesn't support: names of cases, or `case/part`. A suite fails if the
    /// backend skips anything else, and also if it doesn't skip these.
    #[must_use]
    pub fn skips(self, skips: &'static [&'static str]) -> Self {
        Self { skips, ..self }
    }

    fn description(&self) -> String {
        self.backend.capabilities().description
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("backend", &self.description())
            .field("tolerance", &self.tolerance)
            .field("kv_format", &self.kv_format)
            .field("compute", &self.compute)
            .field("skips", &self.skips)
            .finish()
    }
}

/// Instantiates every case of the suite as a test.
///
/// The argument is an expression of type [`Subject`](crate::conformance::Subject), or of
/// `Option<Subject>` where the machine may not have what the backend needs; it is evaluated
/// anew for each test. Invoke it once a module.
#[macro_export]
macro_rules! conformance_suite {
    ($subject:expr) => {
        $crate::conformance_suite! { @tests $subject;
            embedding_looks_rows_up_and_scales_them,
            linear_reads_every_format,
            linear_adds_its_bias_once,
            logits_read_every_format,
            norms_divide_rows_by_their_root_mean_square,
            norms_add_their_offset_to_the_weight,
            norms_of_heads_stay_within_their_head,
            norms_write_the_sum_that_they_normalize,
            norms_and_biases_are_read_in_every_plain_format,
            rope_rotates_pairs_by_position,
            rope_leaves_further_dimensions_alone,
            activations_gate,
            values_add_and_scale,
            soft_caps_bound_logits,
            attention_groups_query_heads,
            attention_scales_scores,
            attention_windows_hide_older_positions,
            attention_soft_caps_scores,
            attention_sinks_take_probability,
            attention_reaches_back_over_hundreds_of_positions,
            page_groups_have_tables_of_their_own,
            gates_have_more_functions_than_silu_and_gelu,
            one_gate_gates_a_whole_row,
            learned_factors_multiply_columns,
            neighbouring_columns_are_selected,
            norms_need_no_weight,
            norms_of_divided_rows_span_all_columns,
            queries_are_scaled_by_position,
            rope_of_frequency_zero_turns_nothing,
            attention_reads_the_kv_of_an_earlier_layer,
            experts_are_weighed_by_their_scores,
            experts_add_their_own_biases,
            experts_read_every_format,
            experts_take_one_row_and_many,
            experts_that_no_row_chose_are_not_computed,
            equal_scores_choose_the_lower_expert,
            company_changes_no_bit_of_experts,
            llama_agrees_with_the_reference,
            llama_3_agrees_with_the_reference,
            llama_with_biases_agrees_with_the_reference,
            qwen2_agrees_with_the_reference,
            qwen2_with_a_window_agrees_with_the_reference,
            qwen3_agrees_with_the_reference,
            qwen3_with_yarn_agrees_with_the_reference,
            mixed_formats_in_one_model_agree_with_the_reference,
            decode_and_prefill_rows_share_a_step,
            chunks_of_a_prompt_agree_with_the_whole,
            page_sizes_agree,
            the_largest_step_runs,
            steps_without_outputs_write_their_kv,
            nothing_is_compiled_after_warm_up,
            the_batch_changes_no_bit,
            chunking_changes_no_bit,
            the_page_size_changes_no_bit,
            produced_tokens_need_no_host,
            slots_keep_their_own_next_token,
            forks_go_on_from_their_parents_positions,
            pages_move_between_launches,
            a_reopened_slot_forgets_its_sequence,
            pages_come_back_from_the_host_tier,
            transfers_without_a_host_tier_are_refused,
            rows_answer_several_outputs_in_order,
            likeliest_tokens_are_as_many_as_asked_for,
            log_probabilities_are_normalized,
            greedy_takes_the_likeliest_token,
            temperature_flattens_the_distribution,
            filters_keep_the_likeliest_tokens,
            noise_depends_on_seed_and_sample,
            penalties_count_tokens_seen_and_sampled,
            logit_bias_moves_single_tokens,
            suppressed_tokens_wait_for_their_position,
            deferred_sampling_obeys_masks,
            deferred_sampling_without_masks_is_free,
            a_deferred_step_that_is_never_sampled_is_given_up,
            only_deferred_steps_are_sampled_and_only_once,
            a_mask_that_allows_nothing_fails_its_row_alone,
            a_verified_draft_gives_the_tokens_of_plain_steps,
            a_verified_draft_is_sampled_as_plain_steps_are,
            a_run_of_tokens_is_scored_at_once,
            hidden_states_and_pooled_vectors_agree,
            one_deferred_output_does_not_defer_the_others,
            a_draft_is_verified_under_a_mask_for_each_token,
            programs_share_slots_and_keep_their_own_kv,
            tokens_of_a_draft_are_not_counted,
            batches_that_break_a_rule_are_refused,
            a_missing_tensor_is_named,
            a_tensor_of_another_shape_is_named,
            options_without_sense_are_refused,
            logits_that_are_not_numbers_fail_their_row_alone,
            malformed_batches_are_errors,
        }
    };
    (@tests $subject:expr; $($case:ident,)+) => {
        $(
            #[test]
            fn $case() {
                let case = $crate::conformance::cases::$case;
                $crate::conformance::assert_passes(stringify!($case), case, $subject);
            }
        )+
    };
}
