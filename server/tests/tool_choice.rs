//! What a request says of tools, through an engine: a tiny model with random weights must call.

use std::path::Path;

use grammar::{GrammarCompiler, GrammarOptions};
use serde_json::{Value, json};
use understory::prelude::*;
use understory::request::FinishReason;
use understory_server::tools::{
    CallIds, Message, Tool, ToolChoice, ToolFormat, Tools, tool_grammar,
};

fn engine() -> Engine {
    let backend = BackendChoice::Cpu { threads: Some(1) };
    let backend = backend.open(&FetchOptions::default(), &mut ()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied");
    Engine::builder().load(path, backend.as_ref(), &mut ()).unwrap()
}

fn tools(choice: ToolChoice) -> Tools {
    let weather = json!({
        "type": "object",
        "$defs": {"Unit": {"enum": ["C", "F"]}},
        "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"$ref": "#/$defs/Unit"}},
        "required": ["city", "unit"],
        "additionalProperties": false,
    });
    let rows = json!({
        "properties": {"rows": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["rows"],
        "additionalProperties": false,
    });
    let offered = vec![
        Tool { name: "get_weather".into(), parameters: weather },
        Tool { name: "count".into(), parameters: rows },
    ];
    Tools { offered, choice, parallel: false }
}

#[test]
fn a_required_or_named_call_is_made_and_its_arguments_fit_their_schema() {
    let engine = engine();
    let compiler = GrammarCompiler::new(engine.tokenizer().unwrap(), GrammarOptions::default());
    let compiler = compiler.unwrap();
    for choice in [ToolChoice::Required, ToolChoice::Named("count".into())] {
        let tools = tools(choice);
        let grammar = compiler.compile(&tool_grammar(&tools).unwrap()).unwrap();
        for seed in 0..10 {
            let mut sampling = SamplingParams::default();
            (sampling.seed, sampling.temperature) = (Some(seed), 1.0);
            sampling.max_tokens = Some(300);
            let request = Request::new("x").sampling(sampling);
            let request = request.constraint(Box::new(grammar.constraint()));
            let output = engine.generate(request).unwrap().remove(0);
            assert_eq!(output.reason, FinishReason::Stop, "{}", output.text);
            let mut parser = tools.parser(ToolFormat::Hermes, CallIds::new(seed)).unwrap();
            let message = Message::parse(&mut *parser, &output.text);
            assert_eq!(message.content, None, "{}", output.text);
            let [call] = &message.calls[..] else { panic!("{}", output.text) };
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            match &*call.name {
                "get_weather" => {
                    assert!(arguments["city"].as_str().unwrap().chars().count() <= 5);
                    assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()));
                }
                "count" => assert!((1..=9).contains(&arguments["rows"].as_u64().unwrap())),
                other => panic!("{other}"),
            }
        }
    }
}
