//! Requests whose tokens a grammar restricts, beside free ones.

use engine_core::Token;
use engine_core::error::GenerationError;
use engine_core::request::TokenConstraint;

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
        assert!(matches!(error, Some(GenerationError::Failed { sample: 0, .. })), "{error:?}");
        assert_eq!(free.wait().unwrap()[0].tokens, foretold(&prompt(2, 15), 30));
    }
}
