//! Replays a trace of requests against the prefix cache and draws what an operator wants to know
//! before sizing its memory: the hit rate over time, and against capacity, for every policy.
//!
//! ```text
//! cargo run --release --example explain_cache -- conversation_trace.jsonl --out cache.svg
//! ```
//!
//! The trace is in Mooncake's format: one JSON object a line with `input_length` in tokens and
//! `hash_ids`, one for each 512 prompt tokens. Without one, the excerpt in `radix-cache/data` is
//! replayed.

#[path = "support/program.rs"]
mod program;
#[path = "../radix-cache/benches/cache/replay.rs"]
mod replay;
#[path = "../radix-cache/benches/cache/trace.rs"]
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use plotters::prelude::*;
use program::Outcome;
use radix_cache::{CacheConfig, Policy};

use crate::replay::{TreeWithPool, lru_hit_rate, replay};
use crate::trace::Request;

#[derive(Debug, Parser)]
struct Arguments {
    /// The trace; without one, `UNDERSTORY_TRACE` or the excerpt that comes with the sources.
    trace: Option<PathBuf>,
    /// Where the picture goes.
    #[arg(long, default_value = "explain_cache.svg")]
    out: PathBuf,
    /// Tokens a page holds.
    #[arg(long, default_value_t = 16)]
    page_size: usize,
    /// Capacity of the curves over time, in percent of the trace's different blocks.
    #[arg(long, default_value_t = 10)]
    percent: usize,
}

/// Capacities of the second picture, in percent of the trace's different blocks.
const PERCENTS: [usize; 8] = [1, 2, 5, 10, 20, 40, 70, 100];
/// Requests that a point of the curves over time stands for, as a share of the trace.
const WINDOWS: usize = 60;

/// One line of a picture.
struct Curve {
    label: String,
    points: Vec<(f64, f64)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let path = arguments.trace.clone().or_else(trace::path);
    let requests = trace::read(path.as_deref())?;
    let ids = trace::unique_ids(&requests);
    println!(
        "{}: {} requests, {ids} different blocks of 512 tokens",
        replay::name(path.as_deref()),
        requests.len()
    );

    let mut over_time = Vec::new();
    let mut against_capacity = Vec::new();
    for policy in Policy::ALL {
        let label = format!("{policy:?}");
        let served = serve(arguments, &requests, policy, ids * arguments.percent / 100)?;
        over_time.push(Curve { label: label.clone(), points: windows(&served) });
        let mut points = Vec::new();
        for percent in PERCENTS {
            let served = serve(arguments, &requests, policy, ids * percent / 100)?;
            let rate = rate(&served);
            println!("{label:>12}, capacity {percent:>3} %: {rate:.2} % of tokens hit");
            points.push((percent as f64, rate));
        }
        against_capacity.push(Curve { label, points });
    }
    let plain = PERCENTS
        .iter()
        .map(|&percent| (percent as f64, 100.0 * lru_hit_rate(&requests, ids * percent / 100)));
    against_capacity.push(Curve { label: "plain LRU list".to_owned(), points: plain.collect() });

    let canvas = SVGBackend::new(&arguments.out, (1_280, 520)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let (left, right) = canvas.split_horizontally(640);
    let capacity = arguments.percent;
    draw(&left, &format!("over time, capacity {capacity} %"), "requests", &over_time)?;
    draw(&right, "against capacity", "capacity, % of different blocks", &against_capacity)?;
    canvas.present()?;
    println!("drawn to {}", arguments.out.display());
    Ok(())
}

/// Replays the trace and returns (tokens, tokens hit) of each request.
fn serve(
    arguments: &Arguments,
    requests: &[Request],
    policy: Policy,
    ids: usize,
) -> Outcome<Vec<(usize, usize)>> {
    let config = CacheConfig::default().page_size(arguments.page_size).policy(policy);
    let pages = replay::pages(ids, arguments.page_size);
    let outcome = replay(requests, arguments.page_size, &mut TreeWithPool::new(config, pages)?);
    Ok(outcome.served)
}

/// The share of tokens hit, in percent.
fn rate(served: &[(usize, usize)]) -> f64 {
    let tokens: usize = served.iter().map(|(tokens, _)| tokens).sum();
    let hit: usize = served.iter().map(|(_, hit)| hit).sum();
    100.0 * hit as f64 / tokens.max(1) as f64
}

/// The hit rate of one window of requests after another.
fn windows(served: &[(usize, usize)]) -> Vec<(f64, f64)> {
    let length = served.len().div_ceil(WINDOWS).max(1);
    let numbered = served.chunks(length).enumerate();
    numbered.map(|(number, window)| ((number * length) as f64, rate(window))).collect()
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    below: &str,
    curves: &[Curve],
) -> Outcome<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption(format!("Hit rate by tokens {title}"), ("sans-serif", 20))
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc(below).y_desc("%").draw()?;
    for (number, curve) in curves.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(&curve.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    let place = SeriesLabelPosition::LowerRight;
    chart.configure_series_labels().position(place).background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}
