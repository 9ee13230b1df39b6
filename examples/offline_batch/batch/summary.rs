//! A batch in numbers.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::answer::{Outcome, milliseconds};

/// A batch in numbers: what `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Requests, good and bad.
    pub(crate) requests: usize,
    /// Requests that have no answer.
    pub(crate) errors: usize,
    /// Tokens of prompts.
    pub(crate) prompt_tokens: u64,
    /// Of those, tokens whose KV was in the cache.
    pub(crate) cached_tokens: u64,
    /// Tokens generated.
    pub(crate) completion_tokens: u64,
    /// Seconds from the first line read to the last answer.
    pub(crate) elapsed_s: f64,
    /// Tokens generated a second.
    pub(crate) output_tok_s: f64,
    /// Cached tokens of all prompt tokens, from 0 to 1.
    pub(crate) cache_hit_rate: f64,
    /// Times to the first token.
    pub(crate) ttft_ms: Percentiles,
    /// Times from one token to the next, over all tokens of all answers.
    pub(crate) itl_ms: Percentiles,
    /// Whether requests were left without an answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) interrupted: bool,
}

/// Percentiles of times in milliseconds; `None` where there was nothing to measure.
///
/// Between two neighbouring values they are interpolated linearly, as numpy does by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// Half of the times are below.
    pub p50: Option<f64>,
    /// Nine of ten are below.
    pub p90: Option<f64>,
    /// All but one of a hundred are below.
    pub p99: Option<f64>,
}

/// Adds answers up.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    requests: usize,
    errors: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    first_tokens: Vec<f64>,
    gaps: Vec<f64>,
}

impl Tally {
    /// Counts what became of a request.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        self.requests += 1;
        match outcome {
            Outcome::Error { .. } => self.errors += 1,
            Outcome::Answer(answer) => {
                self.prompt_tokens += answer.usage.prompt_tokens;
                self.cached_tokens += answer.usage.cached_tokens;
                self.completion_tokens += answer.usage.completion_tokens;
                self.first_tokens.extend(answer.ttft_ms);
                self.gaps.extend(answer.gaps.iter().map(|&gap| milliseconds(gap)));
            }
        }
    }

    /// The sum, for a batch that took so long.
    pub(crate) fn finish(mut self, elapsed: Duration, interrupted: bool) -> Summary {
        let elapsed_s = elapsed.as_secs_f64();
        Summary {
            requests: self.requests,
            errors: self.errors,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.completion_tokens,
            elapsed_s,
            output_tok_s: ratio(self.completion_tokens as f64, elapsed_s),
            cache_hit_rate: ratio(self.cached_tokens as f64, self.prompt_tokens as f64),
            ttft_ms: Percentiles::of(&mut self.first_tokens),
            itl_ms: Percentiles::of(&mut self.gaps),
            interrupted,
        }
    }
}

impl Percentiles {
    /// Of times in any order, which are left sorted.
    pub(crate) fn of(times: &mut [f64]) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        let at = |fraction: f64| {
            let place = fraction * times.len().checked_sub(1)? as f64;
            let below = *times.get(place.floor() as usize)?;
            let above = *times.get(place.ceil() as usize)?;
            Some(below + (above - below) * place.fract())
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

impl fmt::Display for Summary {
    /// A table for people.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, errors, prompt_tokens, cached_tokens, completion_tokens, .. } = self;
        let Self { elapsed_s, output_tok_s, .. } = self;
        let hit_rate = self.cache_hit_rate * 100.0;
        let computed = prompt_tokens.saturating_sub(*cached_tokens);
        writeln!(formatter, "requests            {requests:>10}   of which {errors} failed")?;
        writeln!(formatter, "prompt tokens       {prompt_tokens:>10}")?;
        writeln!(formatter, "  from the cache    {cached_tokens:>10}   {hit_rate:.1} %")?;
        writeln!(formatter, "  computed          {computed:>10}")?;
        writeln!(formatter, "generated tokens    {completion_tokens:>10}")?;
        writeln!(formatter, "time                {elapsed_s:>10.2}   s")?;
        writeln!(formatter, "generated per second{output_tok_s:>10.1}   tok/s")?;
        writeln!(formatter)?;
        writeln!(formatter, "milliseconds               p50        p90        p99")?;
        writeln!(formatter, "time to first token {}", self.ttft_ms)?;
        write!(formatter, "between tokens      {}", self.itl_ms)
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [self.p50, self.p90, self.p99].map(|time| match time {
            Some(time) => format!("{time:>10.1}"),
            None => format!("{:>10}", "-"),
        });
        formatter.write_str(&columns.join(" "))
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        let mut times = [40.0, 10.0, 30.0, 20.0];
        let found = Percentiles::of(&mut times);
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}, not {expected}");
        };
        // numpy.percentile([40, 10, 30, 20], [50, 90, 99])
        near(found.p50, 25.0);
        near(found.p90, 37.0);
        near(found.p99, 39.7);
    }

    #[test]
    fn nothing_has_no_percentiles_and_one_time_is_all_of_them() {
        assert_eq!(Percentiles::of(&mut []), Percentiles::default());
        let all = Some(3.5);
        assert_eq!(Percentiles::of(&mut [3.5]), Percentiles { p50: all, p90: all, p99: all });
    }

    proptest! {
        #[test]
        fn percentiles_leave_their_share_of_the_times_below(
            mut times in prop::collection::vec(0.0..1e6f64, 1..200),
        ) {
            let found = Percentiles::of(&mut times);
            for (percentile, fraction) in [(found.p50, 0.5), (found.p90, 0.9), (found.p99, 0.99)] {
                let percentile = percentile.unwrap();
                let share = |matches: fn(f64, f64) -> bool| {
                    let count = times.iter().filter(|&&time| matches(time, percentile)).count();
                    count as f64 / times.len() as f64
                };
                let slack = 1.0 / times.len() as f64 + 1e-9;
                prop_assert!(share(|time, at| time < at) <= fraction + slack);
                prop_assert!(share(|time, at| time <= at) >= fraction - slack);
            }
        }
    }

    #[test]
    fn an_empty_batch_has_a_summary_without_nonsense() {
        let summary = Tally::default().finish(Duration::ZERO, false);
        assert_eq!((summary.output_tok_s, summary.cache_hit_rate), (0.0, 0.0));
        let value = serde_json::to_value(&summary).unwrap();
        assert!(value["ttft_ms"]["p50"].is_null());
        assert!(summary.to_string().contains('-'));
    }

    #[test]
    fn the_summary_has_the_fields_that_scripts_rely_on() {
        let value = serde_json::to_value(Tally::default().finish(Duration::ZERO, false)).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "requests",
            "errors",
            "prompt_tokens",
            "cached_tokens",
            "completion_tokens",
            "elapsed_s",
            "output_tok_s",
            "cache_hit_rate",
            "ttft_ms",
            "itl_ms",
        ];
        assert_eq!(fields, expected);
        let percentiles: Vec<_> = value["itl_ms"].as_object().unwrap().keys().collect();
        assert_eq!(percentiles, ["p50", "p90", "p99"]);
    }
}
