//! The overlapped loop, and its plain twin: the oracle that it is tested against.

use super::driver::Driver;
use crate::error::EngineDead;

/// Plans and launches a step while the previous one runs.
///
/// ```text
/// host     plan 1 | plan 2      | commit 1, plan 3 | commit 2, plan 4 | ..
/// device          | step 1 .....| step 2 ..........| step 3 ..........| ..
/// ```
pub(super) fn overlapped(driver: &mut Driver) -> Result<(), EngineDead> {
    while driver.receive()? {
        let has_launched = driver.start()?;
        // What was just launched stays in flight while the next step is planned; the step before
        // it is waited for, as is everything where there was nothing to launch.
        if driver.in_flight() > usize::from(has_launched) {
            driver.retire()?;
        }
        driver.sample_deferred()?;
    }
    Ok(())
}

/// Waits for each step before the next is planned.
///
/// ```text
/// host     plan 1 |          | commit 1, plan 2 |          | commit 2, plan 3 | ..
/// device          | step 1 ..|                  | step 2 ..|                  | ..
/// ```
pub(super) fn plain(driver: &mut Driver) -> Result<(), EngineDead> {
    while driver.receive()? {
        driver.start()?;
        driver.sample_deferred()?;
        driver.retire()?;
    }
    Ok(())
}
