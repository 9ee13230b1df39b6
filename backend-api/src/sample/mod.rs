//! From a row of logits to a token, on the host.
//!
//! A backend that has its logits in host memory calls [`OutputSampler`]; a backend that samples on
//! a device does the same arithmetic there. In order:
//!
//! 1. tokens below a minimum length are suppressed ([`SlotSampling::suppress`]);
//! 2. logit bias is added;
//! 3. penalties: repetition over prompt and output, then frequency and presence over the output;
//! 4. the grammar's mask;
//! 5. greedy stops here: the largest logit, of equal ones the lowest id;
//! 6. temperature;
//! 7. top-k, then top-p of what is left, then min-p; of equally likely tokens the lowest ids stay;
//! 8. Gumbel-max: the largest of `logit / temperature + noise`.
//!
//! The noise is a function of (seed, sample index, position, token) alone
//! ([`philox4x32`]), so a token does not depend on the batch, on the order of steps or on how the
//! vocabulary is split. Log probabilities are those of the model itself, before step 1.
//!
//! [`SlotSampling::suppress`]: crate::SlotSampling::suppress

mod candidates;
mod counts;
mod noise;
mod output;
mod row;
mod weight;

pub use counts::TokenCounts;
pub use noise::philox4x32;
pub use output::{OutputRows, OutputSampler, normalize, pool};
pub use row::{RowSampler, SampleError};
