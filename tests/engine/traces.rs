//! A trace of real conversations through the scheduler: what a host tier is for.

use engine_core::WritePolicy;
use engine_core::schedule::HostTierConfig;

use crate::{replay, trace};

#[test]
fn a_host_tier_raises_the_hit_rate_of_a_trace() {
    let requests = replay::read().unwrap();
    let blocks = trace::unique_ids(&requests);
    let pages = blocks / 20;
    let alone = replay::replay(&requests, pages, None).unwrap();
    assert_eq!(alone.host_cached_tokens, 0);
    for write in [WritePolicy::Through, WritePolicy::Back] {
        let mut host = HostTierConfig::new(blocks as u32);
        host.write = write;
        let tiered = replay::replay(&requests, pages, Some(host)).unwrap();
        assert_eq!(tiered.prompt_tokens, alone.prompt_tokens);
        // With room for everything, what comes again is found again, unless it is still computed.
        assert!(tiered.cached_tokens > alone.cached_tokens * 3 / 2, "{alone:?} {tiered:?}");
        assert!(tiered.host_cached_tokens > 0, "{tiered:?}");
    }
}
