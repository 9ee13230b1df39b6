//! The table at the end: what Criterion measured, and what was counted.

use std::fs;
use std::path::PathBuf;

/// Lines of the table, printed when everything has run.
#[derive(Debug)]
pub(crate) struct Table {
    /// Where Criterion leaves its samples.
    directory: PathBuf,
    lines: Vec<String>,
}

impl Table {
    pub(crate) fn new(directory: PathBuf) -> Self {
        let lines = vec![
            "| figure | least | median | to reach |".to_owned(),
            "| --- | --- | --- | --- |".to_owned(),
        ];
        Self { directory, lines }
    }

    /// Adds what Criterion measured under a name, divided by the operations of an iteration, and
    /// returns the least time in seconds. Nothing if a filter left the measurement out.
    pub(crate) fn measured(&mut self, name: &str, operations: f64, target: &str) -> Option<f64> {
        let samples = self.samples(name)?;
        let (first, middle) = (samples.first()?, samples.get(samples.len() / 2)?);
        let (least, median) = (first / operations, middle / operations);
        let line = format!("| {name} | {} | {} | {target} |", time(least), time(median));
        self.lines.push(line);
        Some(least)
    }

    /// Adds a figure that Criterion did not measure.
    pub(crate) fn value(&mut self, name: &str, value: String, target: &str) {
        self.lines.push(format!("| {name} | {value} | | {target} |"));
    }

    /// Adds a line of text.
    pub(crate) fn note(&mut self, text: &str) {
        self.lines.push(format!("| {text} | | | |"));
    }

    pub(crate) fn print(&self) {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
    }

    /// Nanoseconds an iteration, sample by sample, in ascending order.
    fn samples(&self, name: &str) -> Option<Vec<f64>> {
        let folder = name.replace(['?', '"', '/', '\\', '*', '<', '>', ':', '|', '^'], "_");
        let path = self.directory.join(folder).join("new/sample.json");
        let sample: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let numbers = |key: &str| -> Option<Vec<f64>> {
            sample.get(key)?.as_array()?.iter().map(serde_json::Value::as_f64).collect()
        };
        let pairs = numbers("times")?.into_iter().zip(numbers("iters")?);
        let mut samples: Vec<f64> = pairs.map(|(time, iterations)| time / iterations).collect();
        samples.sort_by(f64::total_cmp);
        Some(samples)
    }
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1_000.0 => format!("{nanoseconds:.0} ns"),
        ..1_000_000.0 => format!("{:.2} µs", nanoseconds / 1e3),
        _ => format!("{:.2} ms", nanoseconds / 1e6),
    }
}
