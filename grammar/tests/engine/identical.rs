//! The tokens of an answer depend on the grammar and the seed, and on nothing else.

use engine_core::Token;
use engine_core::engine::{Engine, EngineOptions};
use engine_core::request::{Request, TokenConstraint};
use engine_core::schedule::Speculation;
use grammar::{GrammarConstraint, GrammarSpec};
use serde_json::json;

use crate::support::*;

/// Grammars with long stretches without a choice, and short ones, within and behind free text.
fn specs() -> Vec<GrammarSpec> {
    let schema = json!({
        "type": "object",
        "properties": {
            "a name that is long enough": {"type": "string", "maxLength": 6},
            "kind": {"enum": ["first of all", "second of all"]},
            "list": {
                "type": "array", "minItems": 2, "maxItems": 5,
                "items": {
                    "type": "object", "additionalProperties": false,
                    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
                    "required": ["count"],
                },
            },
        },
        "required": ["a name that is long enough", "kind", "list"],
        "additionalProperties": false,
    });
    vec![
        GrammarSpec::JsonSchema(schema),
        GrammarSpec::Regex("(the same words again and again, |or other words, ){4,8}".into()),
        GrammarSpec::Ebnf("root ::= \"begin \" [a-c]{0,3} (root | \"middle\") \" end\"".into()),
        GrammarSpec::Choice(vec!["yes, of course".into(), "yes, but no".into(), "no".into()]),
    ]
}

/// The tokens of all specs, at once, beside free requests.
fn tokens(engine: &Engine, change: impl Fn(&mut Request), forces: bool) -> Vec<Vec<Token>> {
    let compiler = compiler(engine);
    let mut running = Vec::new();
    for (number, spec) in (0..).zip(specs()) {
        for seed in 0..3 {
            let constraint = compiler.compile(&spec).unwrap().constraint().forcing(forces);
            let mut sampling = sampling(seed * 10 + number);
            // Copies of the prompt are proposed; a repetitive answer has many taken.
            sampling.temperature = if seed == 0 { 0.0 } else { 0.6 };
            let prompt = "the same words again and again, the same words again";
            let mut request = Request::new(prompt).sampling(sampling);
            change(&mut request);
            running.push(engine.submit(request.constraint(Box::new(constraint))).unwrap());
            let free =
                Request::new("free").sampling(engine_core::request::SamplingParams::greedy(40));
            engine.submit(free).unwrap().wait().unwrap();
        }
    }
    running.into_iter().map(|generation| generation.wait().unwrap().remove(0).tokens).collect()
}

#[test]
fn tokens_are_the_same_with_and_without_overlap_speculation_forcing_and_retraction() {
    let plain = |change: &dyn Fn(&mut EngineOptions), forces| {
        let mut options = options();
        options.overlap = false;
        change(&mut options);
        tokens(&engine(options), |_| {}, forces)
    };
    let expected = plain(&|_| {}, false);
    assert!(expected.iter().any(|tokens| tokens.len() > 20));
    for overlap in [false, true] {
        for speculates in [false, true] {
            for retract_every in [None, Some(5)] {
                for forces in [false, true] {
                    let change = |options: &mut EngineOptions| {
                        (options.overlap, options.retract_every) = (overlap, retract_every);
                        if speculates {
                            options.speculation = Some(Speculation::default());
                        }
                    };
                    let found = plain(&change, forces);
                    let setting = (overlap, speculates, retract_every, forces);
                    assert_eq!(found, expected, "{setting:?}");
                }
            }
        }
    }
}

#[test]
fn penalties_keep_tokens_from_being_forced_and_change_nothing_else_about_the_grammar() {
    let engine = engine(options());
    let texts = |penalty: f32| {
        let tokens = tokens(&engine, |request| request.sampling.frequency_penalty = penalty, true);
        tokens
            .iter()
            .map(|tokens| engine.tokenizer().unwrap().decode(tokens, true))
            .collect::<Vec<_>>()
    };
    for text in texts(0.3).iter().take(3) {
        assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
    }
}

#[test]
fn forced_tokens_save_steps() {
    let steps = |forces| {
        // One at a time: how many share a step depends on when each arrives.
        let mut options = options();
        options.max_running_requests = Some(1);
        let engine = engine(options);
        tokens(&engine, |_| {}, forces);
        engine.snapshot().steps
    };
    let (sampled, forced) = (steps(false), steps(true));
    assert!(forced < sampled, "{forced} of {sampled}");
}

#[test]
fn rolling_back_leads_to_the_masks_there_were() {
    let engine = engine(options());
    let size = engine.model().vocab_size as usize;
    for spec in specs() {
        let grammar = compiler(&engine).compile(&spec).unwrap();
        let mask = |constraint: &mut GrammarConstraint| {
            let mut allowed = vec![0; size.div_ceil(32)];
            constraint.allow(&mut allowed);
            allowed
        };
        let any = |mask: &[u32], choice: usize| -> Token {
            let set: Vec<Token> = (0..size as Token)
                .filter(|token| mask[*token as usize / 32] >> (token % 32) & 1 == 1)
                .collect();
            set[choice % set.len()]
        };
        let mut constraint = grammar.constraint();
        let mut masks = Vec::new();
        for step in 0..60 {
            masks.push(mask(&mut constraint));
            let token = any(&masks[step], step * 7);
            constraint.advance(token);
            // There and back, over an end too.
            for back in 1..=(step + 1).min(5) {
                let ahead = any(&mask(&mut constraint), back);
                constraint.advance(ahead);
                constraint.rollback(1);
                let mut copy = constraint.duplicate();
                copy.rollback(back);
                let mut found = vec![0; size.div_ceil(32)];
                copy.allow(&mut found);
                assert_eq!(found, masks[step + 1 - back], "{back} of {step}");
            }
        }
        assert_eq!(constraint.problem(), None);
    }
}
