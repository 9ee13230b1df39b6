//! Requests whose tokens a grammar restricts, beside free ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine_core::Token;
use engine_core::backend::SlotSampling;
use engine_core::error::GenerationError;
use engine_core::request::{StopMatch, TokenConstraint};
use engine_core::schedule::Speculation;
use testkit::shadow::model::continue_under;

use crate::support::*;

/// Allows only tokens that are a multiple of a number that grows by one with each token.
#[derive(Clone, Debug)]
struct Multiples {
    of: Token,
}

impl TokenConstraint for Multiples {
    fn allow(&mut self, allowed: &mut [u32]) {
        for token in (0..VOCABULARY).step_by(self.of as usize) {
            allowed[token as usize / 32] |= 1 << (token % 32);
        }
    }

    fn advance(&mut self, token: Token) {
        assert_eq!(token % self.of, 0, "advanced by a token that was not allowed");
        self.of += 1;
    }

    fn rollback(&mut self, tokens: usize) {
        self.of -= tokens as Token;
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[test]
fn constrained_and_free_requests_share_steps() {
    for overlap in [true, false] {
        let mut options = small();
        options.overlap = overlap;
        // Retracted requests keep their place in the grammar.
        options.retract_every = Some(5);
        let engine = Shadowed::new(options);
        let generations: Vec<_> = (0..8)
            .map(|number| {
                let mut request = request(&prompt(number, 15), 20);
                if number % 2 == 0 {
                    request = request.constraint(Box::new(Multiples { of: 2 }));
                }
                engine.submit(request).unwrap()
            })
            .collect();
        for (number, generation) in (0..).zip(generations) {
            let tokens = generation.wait().unwrap().remove(0).tokens;
            assert_eq!(tokens.len(), 20);
            if number % 2 == 0 {
                for (token, of) in tokens.iter().zip(2..) {
                    assert_eq!(token % of, 0, "{tokens:?}");
                }
            } else {
                assert_eq!(tokens, foretold(&prompt(number, 15), 20));
            }
        }
    }
}

#[test]
fn each_sample_has_a_constraint_of_its_own() {
    let engine = Shadowed::new(small());
    let mut request = request(&prompt(1, 15), 12).constraint(Box::new(Multiples { of: 2 }));
    (request.sampling.n, request.sampling.temperature) = (3, 1.0);
    for output in engine.generate(request).unwrap() {
        assert!(output.tokens.iter().zip(2..).all(|(token, of)| token % of == 0));
    }
}

/// Panics, or allows nothing, after some tokens.
#[derive(Clone, Debug)]
struct Breaks {
    after: u32,
    by_panic: bool,
}

impl TokenConstraint for Breaks {
    fn allow(&mut self, allowed: &mut [u32]) {
        match self.after {
            0 if self.by_panic => panic!("on purpose"),
            0 => {}
            _ => allowed.fill(!0),
        }
    }

    fn advance(&mut self, _token: Token) {
        self.after -= 1;
    }

    fn rollback(&mut self, tokens: usize) {
        self.after += tokens as u32;
    }

    fn problem(&self) -> Option<String> {
        Some("has nothing more to say".to_owned())
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[test]
fn a_constraint_that_panics_or_allows_nothing_ends_its_own_request() {
    for by_panic in [true, false] {
        let engine = Shadowed::new(small());
        let free = engine.submit(request(&prompt(2, 15), 30)).unwrap();
        let broken =
            request(&prompt(1, 15), 12).constraint(Box::new(Breaks { after: 3, by_panic }));
        let (events, error) = read_all(engine.submit(broken).unwrap());
        assert_eq!(tokens_of(&events), foretold(&prompt(1, 15), 3));
        let Some(error @ GenerationError::Constraint { sample: 0, .. }) = error else {
            panic!("{error:?}");
        };
        let reason = if by_panic { "on purpose" } else { "has nothing more to say" };
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(free.wait().unwrap()[0].tokens, foretold(&prompt(2, 15), 30));
    }
}

/// Says a text of tokens, in which stretches are free: any token will do there.
#[derive(Clone, Debug)]
struct Script {
    text: Vec<Option<Token>>,
    at: usize,
    /// Says what is forced, rather than allowing it alone.
    forces: bool,
}

impl Script {
    /// Stretches of both kinds, of all short lengths, and a period that a proposer finds.
    fn new(forces: bool) -> Self {
        let mut text = Vec::new();
        for length in 1..7 {
            text.extend((0..length).map(|index| Some(100 + index)));
            text.extend((0..length % 3 + 1).map(|_| None));
        }
        text.extend((0..40).map(|index| Some(200 + index % 5)));
        Self { text, at: 0, forces }
    }
}

impl TokenConstraint for Script {
    fn allow(&mut self, allowed: &mut [u32]) {
        match self.text.get(self.at).copied().flatten() {
            Some(token) => allowed[token as usize / 32] |= 1 << (token % 32),
            None => allowed.fill(!0),
        }
    }

    fn advance(&mut self, token: Token) {
        let expected = self.text.get(self.at).copied().flatten();
        assert!(expected.is_none_or(|expected| expected == token), "at {}: {token}", self.at);
        self.at += 1;
    }

    fn rollback(&mut self, tokens: usize) {
        self.at -= tokens;
    }

    fn forced(&mut self, tokens: &mut Vec<Token>) {
        if self.forces {
            let rest = self.text.get(self.at..).unwrap_or_default();
            tokens.extend(rest.iter().map_while(|token| *token));
        }
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

/// What the shadow generates under a script.
fn scripted(prompt: &[Token], max_tokens: usize) -> Vec<Token> {
    let text = Script::new(false).text;
    let greedy = SlotSampling::greedy();
    continue_under(prompt, &greedy, VOCABULARY, max_tokens, &[], |known, token| {
        let expected = text.get(known.len() - prompt.len()).copied().flatten();
        expected.is_none_or(|expected| expected == token)
    })
}

#[test]
fn tokens_without_a_choice_are_appended_and_nothing_else_changes() {
    for (overlap, retract_every) in [(true, None), (false, None), (true, Some(4)), (false, Some(3))]
    {
        let steps = [false, true].map(|forces| {
            let mut options = small();
            (options.overlap, options.retract_every) = (overlap, retract_every);
            let engine = Shadowed::new(options);
            let generations: Vec<_> = (0..6)
                .map(|number| {
                    let constraint = Box::new(Script::new(forces));
                    let free = request(&prompt(number, 15), 30);
                    let scripted = request(&prompt(number, 15), 20 + number * 9);
                    [engine.submit(free), engine.submit(scripted.constraint(constraint))]
                })
                .collect();
            for (number, [free, constrained]) in (0..).zip(generations) {
                let prompt = prompt(number, 15);
                assert_eq!(free.unwrap().wait().unwrap()[0].tokens, foretold(&prompt, 30));
                let length = 20 + number as usize * 9;
                let tokens = &constrained.unwrap().wait().unwrap()[0].tokens;
                assert_eq!(*tokens, scripted(&prompt, length), "forces: {forces}");
            }
            engine.snapshot().steps
        });
        if retract_every.is_none() {
            assert!(steps[1] < steps[0], "{steps:?}");
        }
    }
}

#[test]
fn a_forced_token_ends_its_sample_where_it_would_if_it_were_sampled() {
    for forces in [false, true] {
        let engine = Shadowed::new(small());
        let mut stopped = request(&prompt(3, 15), 50).constraint(Box::new(Script::new(forces)));
        stopped.sampling.stop_token_ids = vec![203];
        let output = engine.generate(stopped).unwrap().remove(0);
        let whole = scripted(&prompt(3, 15), 50);
        let end = whole.iter().position(|&token| token == 203).unwrap();
        assert_eq!(output.tokens, whole[..=end]);
        assert_eq!(output.matched, Some(StopMatch::Token(203)));
        let limited = request(&prompt(3, 15), 3).constraint(Box::new(Script::new(forces)));
        assert_eq!(engine.generate(limited).unwrap()[0].tokens, whole[..3]);
    }
}

#[test]
fn penalties_count_tokens_without_a_choice_like_any_other() {
    let tokens = [false, true].map(|forces| {
        let engine = Shadowed::new(small());
        let mut penalized = request(&prompt(3, 15), 50).constraint(Box::new(Script::new(forces)));
        penalized.sampling.frequency_penalty = 2.0;
        engine.generate(penalized).unwrap().remove(0).tokens
    });
    assert_eq!(tokens[0], tokens[1]);
}

#[test]
fn speculation_changes_no_constrained_token() {
    for overlap in [true, false] {
        let mut options = small().speculation(Speculation::default());
        options.overlap = overlap;
        let engine = Shadowed::new(options);
        let generations: Vec<_> = (0..4)
            .map(|number| {
                let constraint = Box::new(Script::new(false));
                engine.submit(request(&prompt(number, 15), 65).constraint(constraint)).unwrap()
            })
            .collect();
        for (number, generation) in (0..).zip(generations) {
            let tokens = generation.wait().unwrap().remove(0).tokens;
            assert_eq!(tokens, scripted(&prompt(number, 15), 65));
        }
        assert!(engine.snapshot().scheduler.accepted_tokens > 50, "{:?}", engine.snapshot());

        let off = request(&prompt(9, 15), 65).constraint(Box::new(Script::new(false)));
        let proposed = engine.snapshot().scheduler.proposed_tokens;
        engine.generate(off.speculation(false)).unwrap();
        assert_eq!(engine.snapshot().scheduler.proposed_tokens, proposed);
    }
}

/// Forces a token that the model doesn't have.
#[derive(Clone, Debug)]
struct ForcesNonsense;

impl TokenConstraint for ForcesNonsense {
    fn allow(&mut self, allowed: &mut [u32]) {
        allowed.fill(!0);
    }

    fn advance(&mut self, _token: Token) {}

    fn rollback(&mut self, _tokens: usize) {}

    fn forced(&mut self, tokens: &mut Vec<Token>) {
        tokens.extend([1, VOCABULARY]);
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[test]
fn forcing_a_token_that_the_model_does_not_have_ends_the_sample() {
    let engine = Shadowed::new(small());
    let request = request(&prompt(1, 15), 12).constraint(Box::new(ForcesNonsense));
    let (_, error) = read_all(engine.submit(request).unwrap());
    let Some(GenerationError::Constraint { problem, .. }) = error else { panic!("{error:?}") };
    assert!(problem.contains("384"), "{problem}");
}

/// Looks for another one of its kind that computes its mask at the same time.
#[derive(Clone, Debug, Default)]
struct Meets {
    inside: Arc<AtomicUsize>,
    has_met: Arc<AtomicBool>,
}

impl TokenConstraint for Meets {
    fn allow(&mut self, allowed: &mut [u32]) {
        allowed.fill(!0);
        self.inside.fetch_add(1, Ordering::SeqCst);
        for _ in 0..1000 {
            if self.inside.load(Ordering::SeqCst) > 1 {
                self.has_met.store(true, Ordering::SeqCst);
            }
            if self.has_met.load(Ordering::SeqCst) {
                break;
            }
            std::thread::yield_now();
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn advance(&mut self, _token: Token) {}

    fn rollback(&mut self, _tokens: usize) {}

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[test]
fn masks_of_many_samples_are_computed_side_by_side() {
    let engine = Shadowed::new(small());
    let meets = Meets::default();
    let mut samples = request(&prompt(1, 15), 100).constraint(Box::new(meets.clone()));
    samples.sampling.n = 4;
    for output in engine.generate(samples).unwrap() {
        assert_eq!(output.tokens, foretold(&prompt(1, 15), 100));
    }
    assert!(meets.has_met.load(Ordering::SeqCst));
}
