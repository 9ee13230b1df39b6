//! The report, in Markdown.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use cuda_emulator::count::Counts;

use super::device::Device;
use super::profiler::Profile;

/// A kernel on both.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// For each output its error and the most that it may be.
    pub(crate) errors: Vec<(f64, f64)>,
    pub(crate) registers: u32,
    pub(crate) microseconds: Option<f64>,
    /// The least time by the roofline, for known devices.
    pub(crate) least: Option<f64>,
    pub(crate) counts: Counts,
}

impl Line {
    /// Whether all outputs agree. NaN doesn't.
    pub(crate) fn agrees(&self) -> bool {
        !self.errors.is_empty() && self.errors.iter().all(|(error, most)| error <= most)
    }

    fn emulated(&self, what: &str) -> Option<u64> {
        Some(match what {
            "warp instructions" => self.counts.warp_instructions(),
            "sectors loaded" => self.counts.sectors_loaded,
            "sectors stored" => self.counts.sectors_stored,
            "shared wavefronts" => self.counts.shared_wavefronts,
            "sectors of device memory" => self.counts.l2_misses + self.counts.l2_write_backs,
            _ => return None,
        })
    }
}

/// All kernels.
#[derive(Debug)]
pub(crate) struct Report {
    date: String,
    device: String,
    is_stand_in: bool,
    pub(crate) lines: Vec<Line>,
    pub(crate) profiler: Profile,
}

impl Report {
    pub(crate) fn new(device: &Device) -> Self {
        let seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (capability, version) = (device.capability(), device.version());
        let text = format!(
            "{}, compute capability {}.{}, driver for CUDA {}.{}",
            device.name(),
            capability / 10,
            capability % 10,
            version / 1000,
            version % 1000 / 10
        );
        Self {
            date: date(seconds / 86_400),
            device: text,
            is_stand_in: device.is_stand_in(),
            lines: Vec::new(),
            profiler: Err("not asked".to_owned()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Kernels on a device and in the emulator, {}\n", self.date)?;
        writeln!(f, "{}; cuda-emulator {}.", self.device, env!("CARGO_PKG_VERSION"))?;
        if self.is_stand_in {
            writeln!(
                f,
                "This is the emulator's stand-in driver, not a device: a test of the report."
            )?;
        }
        writeln!(f, "\n| kernel | results | error of each output | registers | time | roofline |")?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- |")?;
        let time = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.1} us"));
        for line in &self.lines {
            let errors: Vec<String> = line
                .errors
                .iter()
                .map(|(error, most)| format!("{error:.1e} of {most:.0e}"))
                .collect();
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} |",
                line.name,
                if line.agrees() { "agree" } else { "**differ**" },
                errors.join(", "),
                line.registers,
                time(line.microseconds),
                time(line.least)
            )?;
        }
        match &self.profiler {
            Err(reason) => writeln!(f, "\nCounts of the hardware: none, {reason}."),
            Ok(kernels) => {
                writeln!(f, "\n| kernel | count | device | emulator |\n| --- | --- | --- | --- |")?;
                for line in &self.lines {
                    for (what, found) in kernels.get(line.name).into_iter().flatten() {
                        let emulated = line.emulated(what).unwrap_or(0);
                        writeln!(f, "| {} | {what} | {found:.0} | {emulated} |", line.name)?;
                    }
                }
                writeln!(f, "\nWarp instructions of the device are SASS, the emulator's are PTX.")
            }
        }
    }
}

/// A day since 1970 as a date (Hinnant's algorithm for the proleptic Gregorian calendar).
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(20_782), "2026-11-25");
    }

    #[test]
    fn nothing_and_nan_do_not_agree() {
        let line = |errors| Line {
            name: "k",
            errors,
            registers: 1,
            microseconds: None,
            least: None,
            counts: Counts::default(),
        };
        assert!(line(vec![(0.0, 0.0)]).agrees());
        assert!(!line(vec![]).agrees());
        assert!(!line(vec![(f64::NAN, 1.0)]).agrees());
        assert!(!line(vec![(0.0, 0.0), (0.2, 0.1)]).agrees());
    }
}
