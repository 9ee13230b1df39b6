//! The suite on the reference itself: every case must be well formed, skip nothing, and hold what
//! it says about batches, chunks, sampling and faults.

use std::sync::Arc;

use testkit::conformance::Subject;
use testkit::interpreter::Interpreter;

// Nothing at all may differ.
testkit::conformance_suite!(Subject::new(Arc::new(Interpreter), 0.0));
