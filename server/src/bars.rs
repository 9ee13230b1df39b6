//! The bars that show how far a preparation has come.

use indicatif::{ProgressBar, ProgressStyle};
use understory::prelude::Progress;

/// One bar on the terminal's error stream for each thing that takes its time.
#[derive(Debug, Default)]
pub(crate) struct Bars {
    current: Option<(String, ProgressBar)>,
}

impl Progress for Bars {
    fn update(&mut self, what: &str, done: u64, total: u64) {
        let is_same = self.current.as_ref().is_some_and(|(name, _)| name == what);
        if !is_same {
            self.finish();
        }
        let (_, bar) = self.current.get_or_insert_with(|| (what.to_owned(), new_bar(what)));
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Bars {
    fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}

fn new_bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {human_pos}/{human_len} {eta}");
    let bar = ProgressBar::new(0).with_message(what.to_owned());
    // The template above is a constant; if it were wrong, the bar would look plain.
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
