//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;

use super::histogram::Histogram;

/// Numbers as text, each with the model's name.
#[derive(Debug)]
pub(super) struct Text {
    text: String,
    model: String,
}

impl Text {
    pub(super) fn new(model: &str) -> Self {
        Self { text: String::with_capacity(1 << 15), model: escaped(model) }
    }

    /// Begins the series of a name.
    pub(super) fn family(&mut self, name: &str, kind: &str) {
        // Writing to a string always succeeds; here and below.
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.text, "{name}{{model_name=\"{}\"", self.model);
        for (label, value) in labels {
            let _ = write!(self.text, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    pub(super) fn gauge(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.family(name, "gauge");
        self.sample(name, labels, value);
    }

    pub(super) fn counter(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.family(name, "counter");
        self.sample(name, labels, value);
    }

    pub(super) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        self.family(name, "histogram");
        let bucket = format!("{name}_bucket");
        let mut all = 0;
        for (bound, count) in histogram.cumulative() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let labels: Vec<_> = labels.iter().copied().chain([("le", &*bound)]).collect();
            self.sample(&bucket, &labels, count as f64);
            all = count;
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.sample(&format!("{name}_count"), labels, all as f64);
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
