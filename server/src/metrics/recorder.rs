//! Takes the engine's numbers, which go through the `metrics` facade.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::histogram::{COUNTS, Histogram, SECONDS};
use super::text::Text;

/// Everything that was registered, by name and labels.
#[derive(Debug, Default)]
pub(super) struct Registry {
    families: Mutex<BTreeMap<String, BTreeMap<Labels, Series>>>,
}

type Labels = Vec<(String, String)>;

#[derive(Clone, Debug)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// The bits of a number.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Histogram>),
}

impl Registry {
    pub(super) fn render(&self, text: &mut Text) {
        let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, all) in &*families {
            for (number, (labels, series)) in all.iter().enumerate() {
                let labels: Vec<_> =
                    labels.iter().map(|(name, value)| (&**name, &**value)).collect();
                match series {
                    Series::Counter(_) if number == 0 => text.family(name, "counter"),
                    Series::Gauge(_) if number == 0 => text.family(name, "gauge"),
                    _ => {}
                }
                match series {
                    Series::Counter(bits) => {
                        text.sample(name, &labels, bits.load(Ordering::Relaxed) as f64);
                    }
                    Series::Gauge(bits) => {
                        text.sample(name, &labels, f64::from_bits(bits.load(Ordering::Relaxed)));
                    }
                    Series::Histogram(histogram) => text.histogram(name, &labels, histogram),
                }
            }
        }
    }

    /// The series of a key, made where it is new. A key that was registered as something else keeps to that.
    fn series(&self, key: &Key, new: impl FnOnce() -> Series) -> Series {
        let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned()));
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(key.name().to_owned()).or_default();
        family.entry(labels.collect()).or_insert_with(new).clone()
    }
}

impl Recorder for Registry {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, || Series::Counter(Arc::default())) {
            Series::Counter(counter) => Counter::from_arc(counter),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, || Series::Gauge(Arc::default())) {
            Series::Gauge(gauge) => Gauge::from_arc(gauge),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        let bounds = if key.name().ends_with("_seconds") { SECONDS } else { COUNTS };
        match self.series(key, || Series::Histogram(Arc::new(Histogram::new(bounds)))) {
            Series::Histogram(histogram) => metrics::Histogram::from_arc(histogram),
            _ => metrics::Histogram::noop(),
        }
    }
}
