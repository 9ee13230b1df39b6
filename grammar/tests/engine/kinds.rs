//! One test a kind of grammar, and what is refused.

use engine_core::error::{GenerateError, GenerationError};
use engine_core::request::{FinishReason, Request};
use grammar::{GrammarError, GrammarSpec};
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn a_json_object_is_one() {
    let engine = engine(options());
    let mut complete = 0;
    for seed in 0..8 {
        let constraint = compiler(&engine).compile(&GrammarSpec::JsonObject).unwrap().constraint();
        let request = Request::new("x").sampling(sampling(seed)).constraint(Box::new(constraint));
        let output = engine.generate(request).unwrap().remove(0);
        assert!(output.text.starts_with('{'));
        // Any object may be longer than the answer's limit.
        if output.reason == FinishReason::Stop {
            assert!(serde_json::from_str::<Value>(&output.text).unwrap().is_object());
            complete += 1;
        }
    }
    assert!(complete > 0);
}

#[test]
fn a_regular_expression_matches_the_whole_answer() {
    let engine = engine(options());
    for seed in 0..8 {
        let spec = GrammarSpec::Regex("^(ab|cd){2}/[0-9]{1,3}$".to_owned());
        let text = answer(&engine, &spec, seed).unwrap();
        let (letters, digits) = text.split_once('/').unwrap();
        assert!(["abab", "abcd", "cdab", "cdcd"].contains(&letters), "{text}");
        assert!((1..=3).contains(&digits.len()) && digits.parse::<u16>().is_ok(), "{text}");
    }
}

#[test]
fn a_choice_is_one_of_its_texts_even_where_one_begins_another() {
    let engine = engine(options());
    let choices = ["a+b", "a+bc", "(", "\u{e9}t\u{e9}"].map(str::to_owned);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let spec = GrammarSpec::Choice(choices.to_vec());
        let constraint = compiler(&engine).compile(&spec).unwrap().constraint();
        let sampling = sampling(seed).temperature(6.0);
        let request = Request::new("x").sampling(sampling).constraint(Box::new(constraint));
        let text = text(engine.generate(request).unwrap().remove(0));
        assert!(choices.contains(&text), "{text}");
        seen.insert(text);
    }
    assert!(seen.len() > 2, "{seen:?}");
}

#[test]
fn ebnf_and_lark_are_told_apart_and_enforced() {
    let engine = engine(options());
    let ebnf = r#"
        root  ::= "[" ws (pair (", " pair){0,2})? ws "]"   # a list
        pair  ::= ("x" | 'y'-free) "=" [0-9]+ root?
        'y'-free ::= "z"
    "#;
    // A name has no quotes.
    assert!(matches!(
        answer(&engine, &GrammarSpec::ebnf_or_lark(ebnf), 0),
        Err(GrammarError::Invalid { .. })
    ));
    let ebnf = r#"
        root ::= "[" ws (pair (", " pair){0,2})? ws "]"   # a list
        pair ::= ("x" | other-one) "=" [0-9]{1,2} root?
        other-one ::= "z\n"
        ws ::= [ \t]{0,2}
    "#;
    let lark = "start: \"<\" A \">\"\nA: /[ab]{1,4}/";
    for seed in 0..10 {
        let text = answer(&engine, &GrammarSpec::ebnf_or_lark(ebnf), seed).unwrap();
        assert!(text.starts_with('[') && text.ends_with(']'), "{text}");
        let (open, close) = (text.matches('[').count(), text.matches(']').count());
        assert_eq!(open, close, "{text}");
        let text = answer(&engine, &GrammarSpec::ebnf_or_lark(lark), seed).unwrap();
        let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap();
        assert!((1..=4).contains(&inner.len()) && inner.chars().all(|c| "ab".contains(c)));
    }
}

#[test]
fn what_can_not_be_enforced_is_refused_by_name() {
    let engine = engine(options());
    let compile = |spec: GrammarSpec| compiler(&engine).compile(&spec).unwrap_err().to_string();
    let schema = |schema: Value| compile(GrammarSpec::JsonSchema(schema));
    for (error, part) in [
        (schema(json!({"properties": {"a": {"not": {}}}})), "#/properties/a/not: not is not"),
        (schema(json!({"uniqueItems": true})), "uniqueItems is not supported"),
        (schema(json!({"$ref": "other.json#/a"})), "another document"),
        (schema(json!({"type": "strin"})), "strin"),
        (schema(json!({"type": "integer", "minimum": 5, "maximum": 2})), "nsatisfiable"),
        (schema(json!({"oneOf": [{"type": "integer"}, {"minimum": 1}]})), "oneOf"),
        (schema(json!({"type": "string", "pattern": "(?=a)b"})), "look"),
        (schema(json!(false)), "nsatisfiable"),
        (schema(json!(3)), "an object or a boolean"),
        (compile(GrammarSpec::Regex("(a".to_owned())), "(a"),
        (compile(GrammarSpec::Regex("a\\b".to_owned())), "look"),
        (compile(GrammarSpec::Lark("start: a".to_owned())), "a"),
        (compile(GrammarSpec::Lark("start[stop=\"x\"]: /.*/".to_owned())), "stop"),
        (compile(GrammarSpec::Choice(Vec::new())), "nothing to choose"),
    ] {
        assert!(error.contains(part), "{error:?} without {part:?}");
        assert!(!error.contains("backtrace") && !error.contains("<state>"), "{error}");
    }
}

#[test]
fn an_end_token_is_allowed_when_the_grammar_is_complete_and_not_before() {
    let engine = engine(options());
    let constraint = compiler(&engine).compile(&GrammarSpec::Regex("ab".into())).unwrap();
    // What would go on behind the end has nothing to say but the end.
    let mut sampling = sampling(1);
    (sampling.ignore_eos, sampling.max_tokens) = (true, Some(12));
    let request = Request::new("x").sampling(sampling);
    let output = engine.generate(request.constraint(Box::new(constraint.constraint()))).unwrap();
    assert_eq!((&*output[0].text, output[0].tokens.len()), ("ab", 12));
    let eos = &engine.tokenizer().unwrap().special_tokens().eos;
    assert!(output[0].tokens.iter().rev().take(10).all(|token| eos.contains(token)));
}

#[test]
fn a_mask_that_costs_too_much_ends_its_own_sample_with_the_reason() {
    let engine = engine(options());
    let mut costly = grammar::GrammarOptions::default();
    costly.max_states = 14;
    let compiler = grammar::GrammarCompiler::new(engine.tokenizer().unwrap(), costly).unwrap();
    // Each character of the answer needs another state.
    let spec = GrammarSpec::Regex("(a|b)*a(a|b){9}c".to_owned());
    let refused = match compiler.compile(&spec) {
        Err(error) => error.to_string(),
        Ok(grammar) => {
            let request = Request::new("x").sampling(sampling(3));
            let request = request.constraint(Box::new(grammar.constraint()));
            match engine.generate(request).unwrap_err() {
                GenerateError::Generation(error @ GenerationError::Constraint { .. }) => {
                    error.to_string()
                }
                other => panic!("{other}"),
            }
        }
    };
    assert!(refused.contains("too complex"), "{refused}");
    // The engine lives.
    assert_eq!(answer(&engine, &GrammarSpec::Regex("ab".into()), 1).unwrap(), "ab");
}
