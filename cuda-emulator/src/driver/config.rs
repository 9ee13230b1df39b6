//! What the environment says about the devices.

use crate::check::{Checks, NAMES};
use crate::hardware::Limits;
use crate::{Options, Schedule};

/// How the stand-in behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many devices there are.
    pub devices: u32,
    /// Memory of each, in bytes.
    pub memory: u64,
    /// The compute capability, as in 80 or 90.
    pub capability: u32,
    /// How kernels are run.
    pub options: Options,
    /// Whether work begins when it is queued. By default it waits until somebody waits for it, so
    /// that a missing wait shows.
    pub eager: bool,
    /// Whether what a check finds fails the launch, although a device would go on.
    pub strict: bool,
    /// Which allocation fails, counted from 1.
    pub failing_allocation: Option<u64>,
    /// Which kernel faults, counted from 1 in the order in which they run: as an access outside of memory would.
    pub failing_kernel: Option<u64>,
    /// The version of the interface, as the driver counts: 1000 for a major and 10 for a minor one.
    pub version: i32,
    /// How long a rank of a communicator waits for another while nothing happens.
    pub patience: std::time::Duration,
    /// A file to which reports are appended as lines of JSON; none for the standard error.
    pub reports: Option<std::path::PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            devices: 1,
            memory: 80 << 30,
            capability: 80,
            options: Options::default(),
            eager: false,
            strict: false,
            failing_allocation: None,
            failing_kernel: None,
            version: 12_090,
            patience: std::time::Duration::from_secs(30),
            reports: None,
        }
    }
}

impl Config {
    /// Reads `CUDA_EMULATOR_DEVICES`, `_MEMORY` (bytes), `_ARCH` (`sm_90`), `_CHECKS` (`all`,
    /// `none` or names with commas between), `_SEED`, `_PERTURB`, `_EAGER`, `_STRICT`,
    /// `_FAIL_ALLOCATION`, `_FAIL_KERNEL`, `_VERSION`, `_RANK_TIMEOUT` (seconds) and `_REPORTS` through `get`. A value that
    /// can't be read is an error that names the variable.
    ///
    /// # Errors
    ///
    /// The variable and its value.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut config = Self::default();
        let text = |name: &str| get(&format!("CUDA_EMULATOR_{name}")).filter(|v| !v.is_empty());
        let number = |name: &str| -> Result<Option<u64>, String> {
            let Some(value) = text(name) else { return Ok(None) };
            value.parse().map(Some).map_err(|_| format!("CUDA_EMULATOR_{name}={value}"))
        };
        if let Some(devices) = number("DEVICES")? {
            config.devices = u32::try_from(devices).unwrap_or(64).min(64);
        }
        if let Some(memory) = number("MEMORY")? {
            config.memory = memory;
        }
        if let Some(arch) = text("ARCH") {
            let digits = arch.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
            config.capability = digits.parse().map_err(|_| format!("CUDA_EMULATOR_ARCH={arch}"))?;
        }
        if let Some(names) = text("CHECKS") {
            config.options.checks = match names.as_str() {
                "all" => Checks::default(),
                "none" => Checks::none(),
                list => chosen(list)
                    .ok_or(format!("CUDA_EMULATOR_CHECKS={list}: all, none or {NAMES:?}"))?,
            };
        }
        if let Some(seed) = number("SEED")? {
            config.options.schedule = Schedule::Random(seed);
        }
        config.options.perturb = number("PERTURB")?.map(|seed| seed as u32);
        config.eager = number("EAGER")?.is_some_and(|on| on != 0);
        config.strict = number("STRICT")?.is_some_and(|on| on != 0);
        config.failing_allocation = number("FAIL_ALLOCATION")?;
        config.failing_kernel = number("FAIL_KERNEL")?;
        if let Some(version) = number("VERSION")? {
            config.version = i32::try_from(version).unwrap_or(i32::MAX);
        }
        if let Some(seconds) = number("RANK_TIMEOUT")? {
            config.patience = std::time::Duration::from_secs(seconds);
        }
        config.reports = text("REPORTS").map(Into::into);
        Ok(config)
    }
}

fn chosen(list: &str) -> Option<Checks> {
    let mut checks = Checks::none();
    list.split(',').all(|name| checks.set(name.trim(), true)).then_some(checks)
}

/// A device attribute by its number in `cuda.h`; 0 for those that say "not supported".
pub(crate) fn attribute(config: &Config, number: u32) -> i32 {
    let limits = Limits::of(config.capability).or_else(|| Limits::of(80));
    let of = |value: fn(&Limits) -> u32| limits.as_ref().map_or(0, value) as i32;
    match number {
        // Threads of a block, and along x, y and z.
        1..=3 => 1024,
        4 => 64,
        // Blocks along x, y and z.
        5 => i32::MAX,
        6 | 7 => 65_535,
        // Shared memory of a block without asking for more; constant memory; warp size.
        8 => 49_152,
        9 => 65_536,
        10 => 32,
        // Registers of a block; clock in kHz; multiprocessors.
        12 => 65_536,
        13 => 1_410_000,
        16 => 108,
        // Integrated: no. Host memory can be mapped: no. Compute mode: default.
        18..=20 => 0,
        // Concurrent kernels; PCI bus and device; memory clock and bus width; L2 size.
        31 => 1,
        33 | 34 => 0,
        36 => 1_215_000,
        37 => 5_120,
        38 => 40 << 20,
        // Threads of a multiprocessor; asynchronous engines; unified addressing.
        39 => 32 * of(|limits| limits.warps),
        40 => 3,
        41 => 1,
        // Compute capability.
        75 => (config.capability / 10) as i32,
        76 => (config.capability % 10) as i32,
        // Shared memory and registers of a multiprocessor.
        81 => of(|limits| limits.shared),
        82 => 65_536,
        // Blocks that wait for each other; blocks of a multiprocessor; shared memory that each
        // block takes for the system; clusters.
        95 => 1,
        106 => of(|limits| limits.blocks),
        111 => 1024,
        120 => i32::from(config.capability >= 90),
        // The most shared memory of a block; memory pools.
        97 => of(|limits| limits.shared_of_block),
        115 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(|name| {
            values
                .iter()
                .find(|(key, _)| name == format!("CUDA_EMULATOR_{key}"))
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_sets_devices_checks_and_order() {
        let config =
            read(&[("DEVICES", "2"), ("CHECKS", "shared-races, bounds"), ("SEED", "7")]).unwrap();
        assert_eq!(config.devices, 2);
        assert!(config.options.checks.shared_races && !config.options.checks.division);
        assert_eq!(config.options.schedule, Schedule::Random(7));
        assert_eq!(read(&[("ARCH", "sm_90a")]).unwrap().capability, 90);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_named() {
        assert_eq!(read(&[("MEMORY", "much")]).unwrap_err(), "CUDA_EMULATOR_MEMORY=much");
        assert!(read(&[("CHECKS", "everything")]).is_err());
    }
}
