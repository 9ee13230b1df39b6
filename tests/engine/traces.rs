//! A trace of real conversations through the scheduler: what a host tier is for.

use engine_core::WritePolicy;
use engine_core::schedule::HostTierConfig;

use crate::replay;

#[test]
fn a_host_tier_raises_the_hit_rate_of_a_trace() {
    let trace = replay::read().unwrap();
    let blocks = replay::unique_blocks(&trace);
    let pages = blocks / 20;
    let alone = replay::replay(&trace, pages, None).unwrap();
    assert_eq!(alone.host_cached_tokens, 0);
    for write in [WritePolicy::Through, WritePolicy::Back] {
        let mut host = HostTierConfig::new(blocks as u32);
        host.write = write;
        let tiered = replay::replay(&trace, pages, Some(host)).unwrap();
        assert_eq!(tiered.prompt_tokens, alone.prompt_tokens);
        // With room for everything, what comes again is found again, unless it is still computed.
        assert!(tiered.cached_tokens > alone.cached_tokens * 3 / 2, "{alone:?} {tiered:?}");
        assert!(tiered.host_cached_tokens > 0, "{tiered:?}");
    }
}
