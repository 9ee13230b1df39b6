//! Answers taken apart: calls, thoughts, content, however the text is cut.

use std::collections::BTreeSet;

use grammar::GrammarSpec;
use proptest::prelude::*;
use serde_json::{Value, json};
use understory_server::reasoning::{AnswerParser, ReasoningFormat, ReasoningParser};
use understory_server::tools::{
    CallIds, Delta, Message, Parser, Tool, ToolChoice, ToolFormat, Tools, tool_grammar,
};

const FORMATS: [ToolFormat; 5] = [
    ToolFormat::Hermes,
    ToolFormat::Llama3,
    ToolFormat::Mistral,
    ToolFormat::Pythonic,
    ToolFormat::List,
];

fn parser(format: ToolFormat) -> Box<dyn Parser> {
    format.parser(["f", "get_weather"].map(str::to_owned), CallIds::new(3))
}

fn whole(format: ToolFormat, text: &str) -> Message {
    Message::parse(&mut *parser(format), text)
}

/// The calls of a message as names and arguments.
fn calls(message: &Message) -> Vec<(&str, &str)> {
    message.calls.iter().map(|call| (&*call.name, &*call.arguments)).collect()
}

#[test]
fn each_format_has_its_calls_found() {
    for (format, text, content, expected) in [
        (
            ToolFormat::Hermes,
            "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {}]}}\n</tool_call>",
            Some("Let me see."),
            vec![("f", "{\"a\": [1, {}]}")],
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>\n{\"arguments\": {\"x\": \"}</tool_call>\"}, \"name\": \"get_weather\"}</tool_call> Done.",
            Some(" Done."),
            vec![("f", "{}"), ("get_weather", "{\"x\": \"}</tool_call>\"}")],
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"f\"}</tool_call><tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>",
            None,
            vec![("f", "{}"), ("f", "{\"a\": 1}")],
        ),
        (
            ToolFormat::Llama3,
            "<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"q\": null}}; {\"name\": \"f\", \"parameters\": {}}",
            None,
            vec![("f", "{\"q\": null}"), ("f", "{}")],
        ),
        (ToolFormat::Llama3, "\n{\"name\":\"f\",\"parameters\":{}}", None, vec![("f", "{}")]),
        (
            ToolFormat::Mistral,
            "Sure.[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"b\": true}}, {\"name\": \"f\", \"arguments\": {}}]",
            Some("Sure."),
            vec![("f", "{\"b\": true}"), ("f", "{}")],
        ),
        (
            ToolFormat::Mistral,
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Bern\"}[TOOL_CALLS]f{\"x\": 1}",
            None,
            vec![("get_weather", "{\"city\": \"Bern\"}"), ("f", "{\"x\": 1}")],
        ),
        (
            ToolFormat::Pythonic,
            "[f(a=[1, {'b': None}], s='it\\'s'), get_weather( city = \"Bern\" ,)]",
            None,
            vec![
                ("f", "{\"a\": [1, {\"b\": null}], \"s\": \"it's\"}"),
                ("get_weather", "{\"city\": \"Bern\"}"),
            ],
        ),
        (
            ToolFormat::Pythonic,
            "<|python_start|>[\n  f(), f(x=True)\n]<|python_end|>",
            None,
            vec![("f", "{}"), ("f", "{\"x\": true}")],
        ),
        (ToolFormat::Pythonic, "[f(x=1)] Done.", Some(" Done."), vec![("f", "{\"x\": 1}")]),
        (
            ToolFormat::List,
            "[ {\"name\": \"f\", \"arguments\": {\"n\": -1.5e3}} , {\"name\":\"f\",\"arguments\":{}} ]",
            None,
            vec![("f", "{\"n\": -1.5e3}"), ("f", "{}")],
        ),
    ] {
        let message = whole(format, text);
        assert_eq!(calls(&message), expected, "{text}");
        assert_eq!(message.content.as_deref(), content, "{text}");
    }
}

#[test]
fn what_is_no_call_is_content_to_the_last_character() {
    for format in FORMATS {
        for text in [
            "Nothing to call here.\n\n",
            "  ",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "<tool_call>{'name': 'f'}</tool_call> and <tool_call>",
            "a < b, <tool_cal, [TOOL_CALL",
            "{\"name\": \"nobody\", \"parameters\": {}} tail",
            "{\"answer\": 42}",
            "[1, 2, 3]",
            "[TOOL_CALLS] f(x)\n",
            "[TOOL_CALLS]nobody{\"a\": 1}",
            "<|python_tag|>print(1)",
            "{\"name\": \"f\", \"name\": \"f\"}",
            "{\"parameters\": {}, \"name\": 3}",
            "{\"name\": \"f",
            "[f(x) for x in y]",
            "[nobody(x=1)]",
            "[f, get_weather]",
            "[]",
            "<|python_start|>x = 1",
        ] {
            let message = whole(format, text);
            assert_eq!(message.content.as_deref(), Some(text), "{format:?}");
            assert_eq!(message.calls, [], "{format:?}: {text}");
        }
    }
    assert_eq!(whole(ToolFormat::Hermes, ""), Message::default());
}

#[test]
fn a_call_behind_a_broken_one_is_found() {
    let text = "<tool_call>{\"nam<tool_call>{\"name\": <tool_call>{\"name\": \"f\"}</tool_call>!";
    let message = whole(ToolFormat::Hermes, text);
    assert_eq!(calls(&message), [("f", "{}")]);
    assert_eq!(message.content.as_deref(), Some("<tool_call>{\"nam<tool_call>{\"name\":!"));
}

#[test]
fn arguments_that_break_off_or_break_keep_what_there_is() {
    let cut = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b";
    assert_eq!(calls(&whole(ToolFormat::Hermes, cut)), [("f", "{\"a\": \"b")]);
    let oops = whole(ToolFormat::Pythonic, "[f(a=1, b=oops, c)]");
    assert_eq!(calls(&oops), [("f", "{\"a\": 1, \"b\": oops, c)]")]);
    assert_eq!(calls(&whole(ToolFormat::Pythonic, "[f(a=[12")), [("f", "{\"a\": [12")]);
    let broken = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": oops}</tool_call> more";
    let message = whole(ToolFormat::Hermes, broken);
    assert_eq!(calls(&message), [("f", "{\"a\": oops}")]);
    assert_eq!(message.content.as_deref(), Some(" more"));
}

#[test]
fn a_call_is_told_before_its_arguments_and_these_as_they_come() {
    let mut parser = parser(ToolFormat::Hermes);
    let mut deltas = Vec::new();
    parser.push("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"", &mut deltas);
    let Delta::Call { index: 0, id, name } = deltas[0].clone() else { panic!("{deltas:?}") };
    assert_eq!(name, "f");
    assert!(id.strip_prefix("call_").is_some_and(|id| id.len() == 24));
    assert_eq!(deltas[1..], [Delta::Arguments { index: 0, text: "{\"a\"".into() }]);
    deltas.clear();
    parser.push(": 1}}</tool_call>\n<tool_call>{\"name\": \"f\", \"arguments\": {", &mut deltas);
    assert_eq!(deltas[0], Delta::Arguments { index: 0, text: ": 1}".into() });
    assert!(matches!(&deltas[1], Delta::Call { index: 1, id: other, .. } if *other != id));
    assert_eq!(deltas[2..], [Delta::Arguments { index: 1, text: "{".into() }]);
}

#[test]
fn channels_are_thoughts_calls_and_content() {
    let read = |text: &str| Message::parse(&mut *parser(ToolFormat::Harmony), text);
    let (begin, end) = ("<|start|>assistant", "<|end|>");
    let thoughts = "<|channel|>analysis<|message|>Hm < <|x.";
    let call =
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>";
    let behind = format!("{thoughts}{end}{begin}<|channel|>final<|message|>Yes.");
    let said = read(&behind);
    assert_eq!(
        (said.reasoning.as_deref(), said.content.as_deref()),
        (Some("Hm < <|x."), Some("Yes."))
    );
    let called = read(&format!("{thoughts}{end}{begin}{call}"));
    assert_eq!((calls(&called), called.content.clone()), (vec![("f", "{\"a\": 1}")], None));
    let early = format!(
        "{thoughts}{end}{begin} to=functions.get_weather{}",
        "<|channel|>commentary<|message|>{}"
    );
    assert_eq!(calls(&read(&early)), [("get_weather", "{}")]);
    let preamble = "<|channel|>commentary<|message|>Let me see.";
    let two = read(&format!("{preamble}{end}{begin}{call}{begin}{call}"));
    assert_eq!((calls(&two).len(), two.content.as_deref()), (2, Some("Let me see.")));
    let nobody = read("<|channel|>commentary to=functions.nobody<|message|>{}<|call|>");
    assert_eq!((nobody.calls.len(), nobody.content.as_deref()), (0, Some("{}")));
    for plain in ["{\"a\": 1}", "To be", "assets", "to", " "] {
        assert_eq!(read(plain).content.as_deref(), Some(plain));
    }
    for cut in ["<|channel|>ana", "<|channel|>commentary to=functions.f", ""] {
        assert_eq!(read(cut), Message::default(), "{cut}");
    }
    for at in (0..behind.len()).filter(|&at| behind.is_char_boundary(at)) {
        let (mut parser, mut deltas) = (parser(ToolFormat::Harmony), Vec::new());
        parser.push(&behind[..at], &mut deltas);
        parser.push(&behind[at..], &mut deltas);
        parser.finish(&mut deltas);
        assert_eq!(Message::of(deltas), said, "cut at {at}");
    }
}

#[test]
fn thoughts_are_told_from_the_answer() {
    for (format, text, thoughts, content) in [
        (ReasoningFormat::Qwen3, "<think>\nhm\n</think>\n\nyes", Some("\nhm\n"), Some("\n\nyes")),
        (ReasoningFormat::Qwen3, "yes <think>", None, Some("yes <think>")),
        (ReasoningFormat::Qwen3, " <thin", None, Some(" <thin")),
        (ReasoningFormat::DeepSeekR1, "hm </thin </think>yes", Some("hm </thin "), Some("yes")),
        (ReasoningFormat::DeepSeekR1, "<think>hm", Some("hm"), None),
        (ReasoningFormat::DeepSeekR1, "hm</thi", Some("hm</thi"), None),
        (ReasoningFormat::DeepSeekR1, "", None, None),
    ] {
        let message = Message::parse(&mut ReasoningParser::new(format), text);
        assert_eq!(message.reasoning.as_deref(), thoughts, "{text}");
        assert_eq!(message.content.as_deref(), content, "{text}");
    }
}

#[test]
fn calls_are_looked_for_behind_the_thoughts_only() {
    let tools = parser(ToolFormat::Hermes);
    let reasoning = ReasoningParser::new(ReasoningFormat::Qwen3);
    let call = "<tool_call>{\"name\": \"f\"}</tool_call>";
    let text = format!("<think>{call}</think>\n{call}");
    let message = Message::parse(&mut AnswerParser::new(Some(reasoning), Some(tools)), &text);
    assert_eq!(message.reasoning.as_deref(), Some(call));
    assert_eq!((calls(&message), message.content.clone()), (vec![("f", "{}")], None));
    let plain = Message::parse(&mut AnswerParser::default(), &text);
    assert_eq!(plain.content.as_deref(), Some(&*text));
}

fn tools(choice: ToolChoice, parallel: bool) -> Tools {
    let parameters = json!({
        "type": "object",
        "$defs": {"Unit": {"enum": ["C", "F"]}},
        "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/Unit"}},
        "required": ["city"],
        "additionalProperties": false,
    });
    let offered = vec![
        Tool { name: "get_weather".into(), parameters },
        Tool { name: "f".into(), parameters: Value::Null },
    ];
    Tools { offered, choice, parallel }
}

#[test]
fn a_choice_is_a_grammar_and_a_parser() {
    for choice in [ToolChoice::Auto, ToolChoice::None] {
        assert_eq!(tool_grammar(&tools(choice, true)), None);
    }
    let none = tools(ToolChoice::None, true).parser(ToolFormat::Hermes, CallIds::new(0));
    assert!(none.is_none());

    let named = tools(ToolChoice::Named("get_weather".into()), true);
    let Some(GrammarSpec::JsonSchema(schema)) = tool_grammar(&named) else { panic!() };
    assert_eq!(schema, named.offered[0].parameters);
    let mut parser = named.parser(ToolFormat::Hermes, CallIds::new(0)).unwrap();
    let message = Message::parse(&mut *parser, "{\"city\": \"Bern\"}");
    assert_eq!(calls(&message), [("get_weather", "{\"city\": \"Bern\"}")]);

    let required = tools(ToolChoice::Required, false);
    let Some(GrammarSpec::JsonSchema(schema)) = tool_grammar(&required) else { panic!() };
    assert_eq!(schema["maxItems"], 1);
    // References lead where they led.
    let reference = "/items/anyOf/0/properties/arguments/properties/unit/$ref";
    let target = schema.pointer(reference).and_then(Value::as_str).unwrap();
    let target = schema.pointer(target.strip_prefix('#').unwrap());
    assert_eq!(target, Some(&json!({"enum": ["C", "F"]})));
    let mut parser = required.parser(ToolFormat::Hermes, CallIds::new(0)).unwrap();
    let text = "[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}]";
    assert_eq!(calls(&Message::parse(&mut *parser, text)).len(), 1);
}

#[test]
fn calls_have_names_of_their_own() {
    let ids: BTreeSet<String> = (0..50)
        .flat_map(|seed| {
            let text = "<tool_call>{\"name\": \"f\"}</tool_call>".repeat(20);
            let names = ["f".to_owned()];
            let mut parser = ToolFormat::Hermes.parser(names, CallIds::new(seed));
            Message::parse(&mut *parser, &text).calls.into_iter().map(|call| call.id)
        })
        .collect();
    assert_eq!(ids.len(), 1000);
}

/// Pieces of which texts that look like calls are made.
const PIECES: [&str; 36] = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "_call>",
    "</think>",
    "<think>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "{\"name\": \"f\", \"arguments\": {",
    "{\"name\": \"f\", \"parameters\": {\"a\": ",
    "{\"name\": \"nobody\", \"arguments\": {}}",
    "{\"name\": \"f\"}",
    "{\"arguments\": {}, ",
    "\"name\": \"f\"}",
    "get_weather",
    "f",
    "f(",
    "a=",
    "'b'",
    ")",
    "True",
    "[f(a=[1], b={'c': ",
    "{",
    "}",
    "}}",
    "[",
    "]",
    ",",
    ";",
    "\"",
    "\\",
    " ",
    "\n",
    "\u{1f600}\u{e4}",
    "1",
];

fn answer(format: Option<ToolFormat>, reasoning: Option<ReasoningFormat>) -> AnswerParser {
    let tools = format.map(parser);
    AnswerParser::new(reasoning.map(ReasoningParser::new), tools)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn an_answer_is_the_same_however_it_is_cut_and_loses_nothing(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..14),
        cuts in prop::collection::vec(0..200_usize, 0..20),
        format in prop::sample::select(FORMATS.to_vec()),
        reasoning in prop::sample::select(vec![None, Some(ReasoningFormat::Qwen3), Some(ReasoningFormat::DeepSeekR1)]),
    ) {
        let text = pieces.concat();
        let expected = Message::parse(&mut answer(Some(format), reasoning), &text);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let mut parser = answer(Some(format), reasoning);
        let mut deltas = Vec::new();
        for pair in cuts.windows(2) {
            parser.push(&text[pair[0]..pair[1]], &mut deltas);
        }
        parser.finish(&mut deltas);
        // A call begins once, before its arguments, with the next index.
        let mut begun = 0;
        for delta in &deltas {
            match delta {
                Delta::Call { index, .. } => {
                    prop_assert_eq!(*index, begun);
                    begun += 1;
                }
                Delta::Arguments { index, .. } => prop_assert_eq!(*index + 1, begun),
                _ => {}
            }
        }
        prop_assert_eq!(Message::of(deltas), expected.clone());
        if expected.calls.is_empty() && reasoning.is_none() {
            prop_assert_eq!(expected.content.unwrap_or_default(), text);
        } else {
            // Content and thoughts are parts of the text, in order and without overlap.
            let mut rest = text.chars();
            let told = expected.reasoning.iter().chain(&expected.content).flat_map(|text| text.chars());
            for c in told {
                prop_assert!(rest.any(|other| other == c), "{:?} of {:?}", expected, text);
            }
        }
    }

    #[test]
    fn thoughts_and_content_are_the_text_without_the_marks(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..14),
    ) {
        let text = pieces.concat();
        let message = Message::parse(&mut answer(None, Some(ReasoningFormat::DeepSeekR1)), &text);
        let (thoughts, content) = (message.reasoning.unwrap_or_default(), message.content.unwrap_or_default());
        let begun = text.trim_start().strip_prefix("<think>").unwrap_or(&text);
        match begun.split_once("</think>") {
            Some((before, behind)) => prop_assert_eq!((&*thoughts, &*content), (before, behind)),
            None => prop_assert_eq!((&*thoughts, &*content), (begun, "")),
        }
    }
}
