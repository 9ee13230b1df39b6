//! The tree against the naive cache of `tests/oracle`, with the fuzzer's bytes for decisions.
//!
//! ```sh
//! cargo +nightly fuzz run oracle -- -max_total_time=600
//! ```

#![no_main]

// Its seeds are for the tests.
#[allow(dead_code)]
#[path = "../../tests/oracle/choices.rs"]
mod choices;
#[path = "../../tests/oracle/drive.rs"]
mod drive;
#[path = "../../tests/oracle/follower.rs"]
mod follower;
#[path = "../../tests/oracle/model.rs"]
mod model;
#[path = "../../tests/oracle/prompts.rs"]
mod prompts;
#[path = "../../tests/oracle/transfers.rs"]
mod transfers;
#[path = "../../tests/oracle/windows.rs"]
mod windows;

use libfuzzer_sys::fuzz_target;
use radix_cache::{Policy, WritePolicy};

use crate::choices::Choices;
use crate::drive::{Driver, Setup};

/// Each decision takes a byte; when they are used up, every decision is 0.
struct Bytes<'a>(&'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, bound: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        usize::from(*first) % bound
    }

    fn any_left(&self) -> bool {
        !self.0.is_empty()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Bytes(data);
    let policy = |choices: &mut Bytes<'_>| Policy::ALL[choices.below(Policy::ALL.len())];
    let writes = [WritePolicy::Through, WritePolicy::ThroughAfterHits(1), WritePolicy::Back];
    let page_size = [1, 4, 16][choices.below(3)];
    let mut setup = Setup {
        page_size,
        policy: policy(&mut choices),
        events: choices.one_in(2),
        host: None,
        window: None,
    };
    match choices.below(6) {
        0 => {}
        1..3 => setup.window = Some(1 + choices.below(5 * page_size)),
        write => setup.host = Some((policy(&mut choices), writes[write - 3])),
    }
    if let Err(difference) = Driver::new(setup).run(&mut choices, usize::MAX) {
        panic!("{setup:?}: {difference}");
    }
});
