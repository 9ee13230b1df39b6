//! Understory against transformers: logits and greedy tokens on the same weights.
//!
//! What transformers computes is recorded in `tests/fixtures`. Each test prints how far from it
//! we are (`--nocapture` shows it).

mod backends;
mod comparison;
mod driver;
mod experts;
mod families;
mod fixtures;
mod gemma2;
mod gemma3;
mod recorded;
mod served;
mod smollm2;
mod tiny;
