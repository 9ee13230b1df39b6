//! Whether the test doubles do what other tests rely on.

mod engine;
mod faults;
mod shadow;
mod transfers;
