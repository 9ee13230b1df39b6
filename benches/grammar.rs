//! What structured output costs: microseconds a mask, and tokens a second with and without a schema
//! at 16 requests at once, on the default model.
//!
//! ```text
//! cargo bench --features grammar --bench grammar
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understory::grammar::{GrammarCompiler, GrammarOptions, GrammarSpec};
use understory::prelude::*;
use understory::request::TokenConstraint;

/// Requests at once.
const REQUESTS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let options = EngineOptions::default().max_running_requests(REQUESTS as u32);
    let engine = understory::load("default").options(options).start()?;
    let tokenizer = engine.tokenizer().ok_or("the default model has a tokenizer")?;

    let start = Instant::now();
    let compiler = GrammarCompiler::new(tokenizer, GrammarOptions::default())?;
    println!("trie of {} tokens: {:.1?}", tokenizer.vocab_size(), start.elapsed());

    println!("\n{:<22} {:>10} {:>30} {:>30}", "grammar", "compile", "first answer", "next answers");
    for (name, spec, text) in grammars() {
        masks(&engine, &compiler, name, &spec, text)?;
    }

    println!("\n{REQUESTS} requests at once, 150 tokens at most, temperature 0");
    for round in 0..3 {
        for (name, schema, forces) in
            [("free", false, false), ("schema", true, true), ("schema, none forced", true, false)]
        {
            let (tokens, time, steps) = generate(&engine, &compiler, schema, forces)?;
            let rate = tokens as f64 / time.as_secs_f64();
            println!("round {round}: {name:<20} {rate:6.1} tok/s, {tokens} tokens, {steps} steps");
        }
    }
    Ok(())
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"type": "string", "maxLength": 40},
            "address": {
                "type": "object",
                "properties": {
                    "street": {"type": "string", "maxLength": 40},
                    "city": {"type": "string", "maxLength": 40},
                    "country": {"enum": ["Switzerland", "Germany", "France", "Italy"]},
                },
                "required": ["street", "city", "country"],
                "additionalProperties": false,
            },
            "interests": {
                "type": "array", "minItems": 1, "maxItems": 4,
                "items": {"type": "string", "maxLength": 20},
            },
        },
        "required": ["name", "age", "email", "address", "interests"],
        "additionalProperties": false,
    })
}

/// Grammars, and a text that each of them allows.
fn grammars() -> [(&'static str, GrammarSpec, &'static str); 4] {
    let person = "{\"name\": \"Anna Keller\", \"age\": 34, \"email\": \"anna.keller@example.org\", \
        \"address\": {\"street\": \"Lindenweg 7\", \"city\": \"Bern\", \"country\": \"Switzerland\"}, \
        \"interests\": [\"rowing\", \"old maps\", \"chess\"]}";
    let regex = "[A-Z][a-z]+ [A-Z][a-z]+, \\d{4}-\\d{2}-\\d{2}".to_owned();
    let sums = "root ::= term (\" + \" term)*\nterm ::= [0-9]+ | \"(\" root \")\"".to_owned();
    [
        ("schema", GrammarSpec::JsonSchema(schema()), person),
        ("any JSON object", GrammarSpec::JsonObject, person),
        ("regular expression", GrammarSpec::Regex(regex), "Anna Keller, 1991-04-23"),
        ("EBNF, recursive", GrammarSpec::Ebnf(sums), "12 + (3 + (44 + 5) + 678) + 9"),
    ]
}

/// Times the masks along a text.
fn masks(
    engine: &Engine,
    compiler: &GrammarCompiler,
    name: &str,
    spec: &GrammarSpec,
    text: &str,
) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let grammar = compiler.compile(spec)?;
    let compile = start.elapsed();
    let tokens = engine.tokenizer().ok_or("no tokenizer")?.encode_plain(text)?;
    let mut mask = vec![0_u32; (engine.model().vocab_size as usize).div_ceil(32)];
    let mut along = || {
        let mut constraint = grammar.constraint().forcing(false);
        let times = tokens.iter().map(|&token| {
            mask.fill(0);
            let start = Instant::now();
            constraint.allow(&mut mask);
            let time = start.elapsed();
            constraint.advance(token);
            time
        });
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        times
    };
    let first = along();
    let mut next: Vec<Duration> = (0..20).flat_map(|_| along()).collect();
    next.sort_unstable();
    let shown = |times: &[Duration]| {
        let mean = times.iter().sum::<Duration>() / times.len().max(1) as u32;
        let worst = times.last().copied().unwrap_or_default();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        format!("{median:.1?} / {mean:.1?} / {worst:.1?}")
    };
    let (first, next) = (shown(&first), shown(&next));
    println!("{name:<22} {:>10} {first:>30} {next:>30}", format!("{compile:.1?}"));
    Ok(())
}

/// Runs requests at once: their tokens, time and steps.
fn generate(
    engine: &Engine,
    compiler: &GrammarCompiler,
    is_formed: bool,
    forces: bool,
) -> Result<(u64, Duration, u64), Box<dyn Error>> {
    engine.clear_cache()?;
    let before = engine.snapshot().steps;
    let start = Instant::now();
    let mut running = Vec::new();
    for number in 0..REQUESTS {
        let text = format!("Invent person number {number} and describe them as a JSON object.");
        let messages = vec![ChatMessage::new("user", text)];
        let mut request = Request::new(messages).sampling(SamplingParams::greedy(150));
        if is_formed {
            let grammar = compiler.compile(&GrammarSpec::JsonSchema(schema()))?;
            request = request.constraint(Box::new(grammar.constraint().forcing(forces)));
        }
        running.push(engine.submit(request)?);
    }
    let mut tokens = 0;
    for generation in running {
        tokens += u64::from(generation.wait()?.remove(0).usage.completion_tokens);
    }
    Ok((tokens, start.elapsed(), engine.snapshot().steps - before))
}
