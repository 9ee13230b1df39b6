//! Grammars that were written to hurt are refused, or cost little.

use std::time::{Duration, Instant};

use engine_core::request::{Request, TokenConstraint};
use grammar::{GrammarCompiler, GrammarError, GrammarOptions, GrammarSpec};
use serde_json::{Value, json};

use crate::support::*;

/// Longest time of one call, on a slow core, in a build without all optimizations.
const LONGEST_COMPILE: Duration = Duration::from_secs(20);
const LONGEST_CALL: Duration = Duration::from_secs(1);

fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(json!({"type": "null"}), |inner, _| wrap(inner))
}

fn specs() -> Vec<(&'static str, GrammarSpec)> {
    let lark = |text: String| GrammarSpec::Lark(text);
    let chain = |rule: &dyn Fn(usize) -> String, last: &str| {
        let rules: Vec<String> = (0..2000).map(rule).collect();
        format!("{}\n{last}", rules.join("\n"))
    };
    let properties: serde_json::Map<String, Value> = (0..1500)
        .map(|n| (format!("p{n}"), json!({"type": "string", "pattern": "^a.*b.*c$"})))
        .collect();
    let fan: serde_json::Map<String, Value> = (0..24)
        .map(|n| {
            let next = json!({"$ref": format!("#/$defs/d{}", (n + 1) % 24)});
            (format!("d{n}"), json!({"anyOf": [next, {"type": "array", "items": next}]}))
        })
        .collect();
    vec![
        (
            "deep schema",
            GrammarSpec::JsonSchema(nested(100_000, |inner| Value::Array(vec![inner]))),
        ),
        ("deep items", GrammarSpec::JsonSchema(nested(30, |inner| json!({"items": inner})))),
        ("deep allOf", GrammarSpec::JsonSchema(nested(10, |i| json!({"allOf": [i.clone(), i]})))),
        ("circle", GrammarSpec::JsonSchema(json!({"$ref": "#"}))),
        ("circles", GrammarSpec::JsonSchema(json!({"$defs": fan, "$ref": "#/$defs/d0"}))),
        ("wide", GrammarSpec::JsonSchema(json!({"properties": properties}))),
        (
            "many optional",
            GrammarSpec::JsonSchema(json!({
                "properties": (0..800).map(|n| (format!("k{n}"), json!(true))).collect::<serde_json::Map<_, _>>(),
                "additionalProperties": {"type": "integer"}, "maxProperties": 400,
            })),
        ),
        (
            "many items",
            GrammarSpec::JsonSchema(json!({"items": {}, "minItems": 4_000_000_000_u64})),
        ),
        ("long string", GrammarSpec::JsonSchema(json!({"minLength": 1_000_000, "type": "string"}))),
        ("exponential", GrammarSpec::Regex("(a|b)*a(a|b){400}".into())),
        ("nested repeats", GrammarSpec::Regex("((((a{1,50}){1,50}){1,50}){1,50}){1,50}".into())),
        ("long run", GrammarSpec::Regex("a{1000000}".into())),
        ("long word", GrammarSpec::Choice(vec!["word ".repeat(13_000)])),
        ("brackets", GrammarSpec::Regex("(".repeat(30_000) + &")".repeat(30_000))),
        ("lark brackets", lark("start: ".to_owned() + &"(".repeat(30_000))),
        ("lark chain", lark(chain(&|n| format!("r{n}: r{}", n + 1), "r2000: \"a\"\nstart: r0"))),
        (
            "lark terminals",
            lark(chain(&|n| format!("T{n}: T{} T{}", n + 1, n + 1), "T2000: \"a\"\nstart: T0")),
        ),
        ("ambiguous", lark("start: s\ns: s s | \"a\" | \"a\" s | s \"a\" |".to_owned())),
        ("left recursion", lark("start: start start | start | \"x\"".to_owned())),
        ("nested grammars", lark(format!("start: {}", "%lark { start: ".repeat(60)))),
        ("json in lark", lark(format!("start: %json {}", "{\"items\":".repeat(60)))),
        ("ebnf brackets", GrammarSpec::Ebnf(format!("root ::= {}", "(".repeat(60_000)))),
        ("ebnf stars", GrammarSpec::Ebnf(format!("root ::= \"a\"{}", "*".repeat(60_000)))),
        (
            "ebnf chain",
            GrammarSpec::Ebnf(
                (0..3000).fold("root ::= a0\n".to_owned(), |text, n| {
                    format!("{text}a{n} ::= a{} a{}\n", n + 1, n + 1)
                }) + "a3000 ::= \"a\"",
            ),
        ),
        (
            "itself among its alternatives",
            GrammarSpec::JsonSchema(json!({"oneOf": [{"$ref": "#"}, {"type": "null"}]})),
        ),
        ("long to lower", long_to_lower()),
        ("too large", GrammarSpec::Choice(vec!["x".repeat(200_000)])),
    ]
}

#[test]
fn a_hostile_grammar_is_refused_or_answered_in_bounded_time() {
    let engine = engine(options());
    let compiler = compiler(&engine);
    let size = engine.model().vocab_size as usize;
    for (name, spec) in specs() {
        let start = Instant::now();
        let compiled = compiler.compile(&spec);
        let compile = start.elapsed();
        // Deep values are dropped by recursion, which is their owner's business.
        if name == "deep schema" {
            std::mem::forget(spec);
        }
        assert!(compile < LONGEST_COMPILE, "{name}: {compile:?}");
        let grammar = match compiled {
            Ok(grammar) => grammar,
            Err(error) => {
                // By its nesting, not by its length alone.
                let is_nested = ["ebnf brackets", "ebnf stars"].contains(&name);
                assert!(
                    !is_nested || matches!(error, GrammarError::TooDeep { .. }),
                    "{name}: {error}"
                );
                println!(
                    "{name}: {compile:?}, {}",
                    error.to_string().chars().take(90).collect::<String>()
                );
                continue;
            }
        };
        let mut constraint = grammar.constraint();
        let mut longest = Duration::ZERO;
        for step in 0..40 {
            let start = Instant::now();
            let mut forced = Vec::new();
            constraint.forced(&mut forced);
            let mut allowed = vec![0_u32; size.div_ceil(32)];
            constraint.allow(&mut allowed);
            let set: Vec<u32> = (0..size as u32)
                .filter(|t| allowed[*t as usize / 32] >> (t % 32) & 1 == 1)
                .collect();
            let Some(&token) = set.get(step * 31 % set.len().max(1)) else { break };
            constraint.advance(token);
            longest = longest.max(start.elapsed());
        }
        println!("{name}: {compile:?}, then {longest:?} at most; {:?}", constraint.problem());
        assert!(longest < LONGEST_CALL, "{name}: {longest:?}");
    }
    let request = Request::new("x").sampling(sampling(1));
    engine.generate(request).unwrap();
}

/// References that lead to references, from many alternatives: each walks the whole chain. The chain's end is refused.
fn long_to_lower() -> GrammarSpec {
    const LINKS: usize = 900;
    let reference = |n: usize| json!({"$ref": format!("#/$defs/{n}")});
    let mut chain: serde_json::Map<String, Value> =
        (0..LINKS).map(|n| (n.to_string(), reference(n + 1))).collect();
    chain.insert(LINKS.to_string(), json!({"type": "null"}));
    let mut alternatives = vec![reference(0); 1200];
    alternatives.push(json!({"not": {}}));
    GrammarSpec::JsonSchema(json!({"$defs": chain, "oneOf": alternatives}))
}

#[test]
fn lowering_a_grammar_counts_in_the_time_of_compiling() {
    let engine = engine(options());
    let mut hasty = GrammarOptions::default();
    hasty.compile_time = Duration::from_millis(20);
    let compiler = GrammarCompiler::new(engine.tokenizer().unwrap(), hasty).unwrap();
    let late = GrammarError::TooComplex { reason: "not compiled within 20ms".to_owned() };
    assert_eq!(compiler.compile(&long_to_lower()).unwrap_err(), late);
}

#[test]
fn limits_are_errors_that_say_the_limit() {
    let engine = engine(options());
    let compile = |spec| compiler(&engine).compile(&spec).unwrap_err();
    let deep = nested(65, |inner| json!({"items": inner}));
    assert_eq!(
        compile(GrammarSpec::JsonSchema(deep)),
        GrammarError::TooDeep { depth: 65, limit: 64 }
    );
    let large = GrammarSpec::Regex("x".repeat(65_537));
    assert_eq!(compile(large), GrammarError::TooLarge { size: 65_537, limit: 65_536 });
}
