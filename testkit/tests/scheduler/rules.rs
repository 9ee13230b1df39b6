//! What must hold, while a workload runs and at its end.

use std::collections::{HashMap, HashSet};

use engine_core::Token;
use engine_core::backend::{Row, StepError, Want};
use engine_core::kv::GroupKind;
use engine_core::schedule::{Event, FinishReason, SchedulerStats, SequenceId};
use testkit::shadow::{Violation, model};

use crate::driver::{Driver, Tracked, broken, may_follow};
use crate::log::{Entry, Snapshot};
use crate::workload::Case;

/// What a run found wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the engine broke the backend's contract: {0}")]
    Violation(Violation),
    #[error("the scheduler gave up: {0}")]
    Scheduler(String),
    /// Something that can be seen from outside.
    #[error("a rule doesn't hold: {0}")]
    Rule(String),
    #[error("{id:?} generates {found:?}, but alone {expected:?}")]
    Tokens { id: SequenceId, expected: Vec<Token>, found: Vec<Token> },
}

/// What a run that went well leaves behind.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) stats: SchedulerStats,
    pub(crate) log: Vec<Entry>,
    /// What [`Case::is_recorded`] asks for.
    pub(crate) recorded: Vec<u8>,
    pub(crate) strikes: u64,
    /// In the order in which they ran first.
    pub(crate) admitted: Vec<SequenceId>,
}

impl Driver {
    /// Whoever was admitted beside others finds pages for its whole answer, even once its
    /// prompt has its own. What copies between the tiers hold comes back to it.
    pub(crate) fn check_admission(&self) -> Result<(), Failure> {
        let newest = self.scheduler.events().rev().find_map(|event| match event {
            Event::Admitted { id, .. } => self.tracked.get(&id),
            _ => None,
        });
        let Some(newest) = newest else { return Ok(()) };
        let available =
            self.scheduler.pool().available(GroupKind::Full) * self.scheduler.config().page_size;
        let is_alone = self.scheduler.stats().running == 1;
        if is_alone || self.scheduler.copies_in_flight() > 0 || available >= newest.max_tokens {
            return Ok(());
        }
        Err(Failure::Rule(format!(
            "admitted where only {available} positions are left: {newest:?}"
        )))
    }

    /// Prompts take no more than the chunk budget, and in whole pages unless they end.
    pub(crate) fn check_prefill(&self, batch: &Snapshot) -> Result<(), Failure> {
        let wants = |row: &Row| batch.outputs.get(row.outputs.start as usize);
        let verifies = |row: &Row| {
            row.outputs.len > 0
                && wants(row).is_some_and(|output| matches!(output.want, Want::Verify(_)))
        };
        let others = &batch.rows[batch.decode_rows as usize..];
        let prefill: Vec<&Row> = others.iter().filter(|row| !verifies(row)).collect();
        let tokens: usize = prefill.iter().map(|row| row.tokens.len as usize).sum();
        let config = self.scheduler.config();
        if tokens > config.chunk() {
            return Err(Failure::Rule(format!("{tokens} tokens of prompts in a step")));
        }
        let is_ragged = |row: &Row| {
            row.outputs.len == 0 && !(row.kv_len() as usize).is_multiple_of(config.page_size)
        };
        match prefill.into_iter().find(|row| is_ragged(row)) {
            Some(row) => Err(Failure::Rule(format!("a chunk ends inside a page: {row:?}"))),
            None => Ok(()),
        }
    }

    /// Notes whom an error has to end: of those that are still there.
    pub(crate) fn strike(&mut self, seeds: &[u64], is_lost: bool, error: Option<&StepError>) {
        let rows: Vec<usize> = match error {
            _ if is_lost => return,
            None => return,
            Some(StepError::Rows(failures)) => {
                failures.iter().map(|failure| failure.row as usize).collect()
            }
            Some(_) => {
                self.launched.iter_mut().for_each(|step| step.is_lost = true);
                (0..seeds.len()).collect()
            }
        };
        let live: HashSet<u64> = self
            .tracked
            .values()
            .filter(|tracked| tracked.finished.is_none())
            .map(|tracked| tracked.sampling.seed)
            .collect();
        let struck = rows.into_iter().filter_map(|row| seeds.get(row));
        self.struck.extend(struck.filter(|seed| live.contains(seed)));
    }

    /// Passes events on and checks what must hold at every moment.
    pub(crate) fn after_change(&mut self) -> Result<(), Failure> {
        let Self { scheduler, tracked, cached_tokens, admitted, .. } = self;
        for event in scheduler.events() {
            notice(event, tracked, cached_tokens, admitted)?;
        }
        self.scheduler.clear_events();
        self.check_windows()?;
        self.scheduler.check().map_err(broken)
    }

    /// Windowed pages in use are bounded by the window and the chunk, not by anybody's length: each
    /// sequence has its window and the pages that it fills, and two steps fill a chunk each.
    fn check_windows(&self) -> Result<(), Failure> {
        let config = self.scheduler.config();
        let Some(group) = config.windowed else { return Ok(()) };
        let pages = |tokens: usize| tokens.div_ceil(config.page_size);
        let drafted = config.speculation.map_or(0, |s| usize::from(s.max_draft));
        let each = pages(group.window - 1) + 2 + pages(drafted);
        let running = self.scheduler.stats().running;
        let most = running * each + 2 * (pages(config.chunk()) + running);
        let used = self.scheduler.windowed_pages().in_use();
        if used > most {
            return Err(Failure::Rule(format!("{used} windowed pages are in use, not {most}")));
        }
        Ok(())
    }

    pub(crate) fn check_end(self, case: &Case) -> Result<Report, Failure> {
        let rule = |what: String| Err(Failure::Rule(what));
        if !self.scheduler.is_idle() {
            return rule("idle is not idle".into());
        }
        for pages in [self.scheduler.pages(), self.scheduler.windowed_pages()] {
            if pages.in_use() != 0 {
                return rule(format!("at idle something is owned or locked: {pages:?}"));
            }
            if !case.config.cache && pages.free != pages.capacity {
                return rule(format!("without a cache pages are kept: {pages:?}"));
            }
        }
        let (mut prompt, mut generated) = (0, 0);
        for (&id, tracked) in &self.tracked {
            generated += tracked.tokens.len() as u64;
            if tracked.was_admitted {
                prompt += tracked.prompt.len() as u64;
            }
            tracked.check(id, case, self.struck.contains(&tracked.sampling.seed))?;
        }
        let stats = self.scheduler.stats();
        let counted = (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens);
        let expected = (prompt, self.cached_tokens, generated);
        if counted != expected || (stats.running, stats.waiting) != (0, 0) {
            return rule(format!("prompt, cached and generated are {expected:?}, but {stats:?}"));
        }
        Ok(Report {
            stats,
            log: self.log,
            recorded: self.recorded.map_or(Vec::new(), |mut log| std::mem::take(log.get_mut())),
            strikes: self.executor.strikes(),
            admitted: self.admitted,
        })
    }
}

fn notice(
    event: Event<'_>,
    tracked: &mut HashMap<SequenceId, Tracked>,
    cached: &mut u64,
    admitted: &mut Vec<SequenceId>,
) -> Result<(), Failure> {
    let rule = |what: &str, id: SequenceId| Err(Failure::Rule(format!("{what}: {id:?}")));
    match event {
        Event::Admitted { id, cached_tokens } => {
            *cached += u64::from(cached_tokens);
            admitted.push(id);
            match tracked.get_mut(&id) {
                None => rule("unknown", id),
                Some(tracked) if tracked.was_admitted => rule("admitted twice", id),
                Some(tracked) => {
                    tracked.was_admitted = true;
                    Ok(())
                }
            }
        }
        Event::Token { id, token, logprob, top } => {
            let Some(tracked) = tracked.get_mut(&id) else { return rule("unknown", id) };
            if tracked.finished.is_some() {
                return rule("a token after its end", id);
            }
            let wanted = tracked.sampling.logprobs;
            if logprob.is_some() != wanted.is_some()
                || top.len() > wanted.unwrap_or(0).into()
                || (top.is_empty() && wanted.is_some_and(|count| count > 0))
            {
                return rule("other log probabilities than were asked for", id);
            }
            tracked.tokens.push(token);
            Ok(())
        }
        Event::Finished { id, reason } => {
            let Some(tracked) = tracked.get_mut(&id) else { return rule("unknown", id) };
            match tracked.finished.replace(reason.clone()) {
                None => Ok(()),
                Some(_) => rule("finished twice", id),
            }
        }
        _ => Ok(()),
    }
}

impl Tracked {
    /// Compares the whole with what the sequence generates alone.
    fn check(&self, id: SequenceId, case: &Case, is_struck: bool) -> Result<(), Failure> {
        let Tracked { prompt, sampling, max_tokens, stop_tokens, .. } = self;
        let allowed = |known: &[Token], token| !self.constrained || may_follow(known, token);
        let mut expected = model::continue_under(
            prompt,
            sampling,
            case.vocab_size,
            *max_tokens,
            stop_tokens,
            allowed,
        );
        let alone = match expected.last() {
            Some(last) if stop_tokens.contains(last) => FinishReason::Stop,
            _ => FinishReason::Length,
        };
        let is_whole = match &self.finished {
            None => return Err(Failure::Rule(format!("{id:?} never ended"))),
            Some(FinishReason::Error(_)) if is_struck => false,
            Some(reason) if is_struck => {
                return Err(Failure::Rule(format!("{id:?} was struck, but ended by {reason:?}")));
            }
            Some(reason) if Some(reason) == self.asked.as_ref() => {
                // It may have ended by itself before.
                *reason == alone && self.tokens.len() == expected.len()
            }
            Some(reason) if *reason == alone => true,
            Some(reason) => {
                return Err(Failure::Rule(format!("{id:?} ended by {reason:?}, not {alone:?}")));
            }
        };
        if !is_whole {
            expected.truncate(self.tokens.len());
        }
        if self.tokens != expected {
            return Err(Failure::Tokens { id, expected, found: self.tokens.clone() });
        }
        Ok(())
    }
}
