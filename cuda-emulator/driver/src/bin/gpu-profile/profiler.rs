//! Counts of the hardware, through Nsight Compute where it is installed and permitted.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::cases::Case;

/// What is counted, and what of the emulator's counts it is compared with.
const METRICS: [(&str, &str); 5] = [
    ("smsp__inst_executed.sum", "warp instructions"),
    ("l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum", "sectors loaded"),
    ("l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum", "sectors stored"),
    ("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum", "shared wavefronts"),
    ("dram__sectors.sum", "sectors of device memory"),
];

/// Counts by kernel and metric, or why there are none.
pub(crate) type Profile = Result<BTreeMap<String, BTreeMap<&'static str, f64>>, String>;

/// Runs this program under the profiler, one kernel after the other.
pub(crate) fn profile(device: i32, cases: &[Case]) -> Profile {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let metrics: Vec<&str> = METRICS.iter().map(|(metric, _)| *metric).collect();
    let mut all = BTreeMap::new();
    for case in cases {
        let output = Command::new("ncu")
            .args(["--csv", "--page", "raw", "--metrics", &metrics.join(",")])
            .arg(&program)
            .args(["--once", "--only", case.name, "--device", &device.to_string()])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("ncu can't be run: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || text.contains("ERR_NVGPUCTRPERM") {
            let last = text.lines().last().unwrap_or("no output").to_owned();
            return Err(format!("ncu did not count ({last})"));
        }
        all.insert(case.name.to_owned(), parse(&text)?);
    }
    Ok(all)
}

/// Reads the table that `--csv --page raw` gives: a line of names, a line of units, and a line for
/// each launch.
fn parse(text: &str) -> Result<BTreeMap<&'static str, f64>, String> {
    let mut lines = text.lines().filter(|line| line.starts_with('"')).map(fields);
    let (Some(names), Some(_), Some(values)) = (lines.next(), lines.next(), lines.next()) else {
        return Err("ncu gave no table".to_owned());
    };
    let mut found = BTreeMap::new();
    for (metric, what) in METRICS {
        let column = names.iter().position(|name| name == metric);
        let value = column.and_then(|column| values.get(column));
        if let Some(number) = value.and_then(|value| value.replace(',', "").parse().ok()) {
            found.insert(what, number);
        }
    }
    Ok(found)
}

/// The fields of a line, each between quotes.
fn fields(line: &str) -> Vec<String> {
    line.trim_matches('"').split("\",\"").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_table() {
        let text = "==PROF== Connected to process 1\n\
                    \"ID\",\"Kernel Name\",\"dram__sectors.sum\",\"smsp__inst_executed.sum\"\n\
                    \"\",\"\",\"sector\",\"inst\"\n\
                    \"0\",\"decode\",\"1,234\",\"56,789\"\n";
        let found = parse(text).unwrap();
        assert_eq!(found["sectors of device memory"], 1234.0);
        assert_eq!(found["warp instructions"], 56_789.0);
        assert_eq!(found.len(), 2);
        assert!(parse("==ERROR== no\n").is_err());
    }
}
