//! The XLA backend through the engine, on XLA's CPU plugin with virtual devices, against
//! `backend-cpu`.

mod agreement;
#[allow(dead_code, unused_imports, reason = "a part of the example is used")]
#[path = "../../examples/offline_batch/batch/mod.rs"]
mod batch;
mod bundled;
#[path = "../reference/comparison.rs"]
mod comparison;
#[path = "../reference/driver.rs"]
mod driver;
mod embeddings;
mod families;
#[path = "../reference/fixtures.rs"]
mod fixtures;
#[path = "../../examples/support/json_request.rs"]
mod json_request;
mod qwen3;
mod speculation;
mod support;
mod traffic;
mod trouble;
