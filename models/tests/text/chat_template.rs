use models::text::{ChatMessage, ChatOptions, ChatTemplate, SpecialTokens, TextError};
use serde_json::{Value, json};

fn special_tokens() -> SpecialTokens {
    let mut special = SpecialTokens::default();
    special.named.insert("bos_token".to_owned(), "<s>".to_owned());
    special.named.insert("eos_token".to_owned(), "</s>".to_owned());
    special
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &special_tokens()).unwrap()
}

fn render(source: &str, messages: &Value, options: &ChatOptions) -> Result<String, TextError> {
    let messages: Vec<ChatMessage> = serde_json::from_value(messages.clone()).unwrap();
    template(source).render(&messages, options)
}

/// Renders a template that looks at no message.
fn expression(source: &str) -> String {
    render(source, &json!([]), &ChatOptions::default()).unwrap()
}

fn failure(source: &str) -> TextError {
    render(source, &json!([]), &ChatOptions::default()).unwrap_err()
}

fn options_with(variables: Value) -> ChatOptions {
    let mut options = ChatOptions::default();
    options.variables = serde_json::from_value(variables).unwrap();
    options
}

const TURNS: &str = "\
{{ bos_token }}
{% for message in messages %}
    {% if message.role == 'system' and not loop.first %}
        {{ raise_exception('system comes first') }}
    {% endif %}
[{{ message['role'] }}] {{ message.content | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
[assistant]
{%- endif %}";

#[test]
fn conversation_is_rendered_with_blocks_trimmed_as_python_does() {
    let messages =
        [ChatMessage::new("user", " 1 < 2 & \"3\" "), ChatMessage::new("assistant", "é")];
    let text = template(TURNS).render(&messages, &ChatOptions::default()).unwrap();
    assert_eq!(text, "<s>\n[user] 1 < 2 & \"3\"</s>\n[assistant] é</s>\n[assistant]");
    let mut options = ChatOptions::default();
    options.add_generation_prompt = false;
    let text = template(TURNS).render(&messages, &options).unwrap();
    assert_eq!(text, "<s>\n[user] 1 < 2 & \"3\"</s>\n[assistant] é</s>\n");
}

#[test]
fn template_refuses_a_conversation_in_its_own_words() {
    let messages = json!([
        { "role": "user", "content": "a" }, { "role": "system", "content": "b" },
    ]);
    let error = render(TURNS, &messages, &ChatOptions::default()).unwrap_err();
    assert!(
        matches!(&error, TextError::TemplateRefused { message } if message == "system comes first"),
        "{error}"
    );
}

#[test]
fn further_fields_of_a_message_reach_the_template() {
    let messages = json!([{
        "role": "assistant", "content": null,
        "tool_calls": [{ "function": { "name": "f", "arguments": { "b": 1, "a": [2.5] } } }],
    }]);
    let source = "{% for call in messages[0].tool_calls %}{{ call.function.name }} \
                  {{ call.function.arguments | tojson }}{% endfor %} \
                  {{ messages[0].content is defined }} {{ messages[0].name is defined }}";
    let text = render(source, &messages, &ChatOptions::default()).unwrap();
    assert_eq!(text, r#"f {"b": 1, "a": [2.5]} False False"#, "null counts as absent");
}

#[test]
fn message_keeps_its_fields_through_json() {
    let json = json!({ "role": "tool", "content": [{ "type": "text" }], "name": "f" });
    let message: ChatMessage = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(message.role, "tool");
    assert_eq!(serde_json::to_value(&message).unwrap(), json);
}

#[test]
fn to_json_writes_what_python_writes() {
    let options = options_with(json!({ "x": { "b": ["é", "<'>"], "a": 1e-7 } }));
    let to_json = |arguments: &str| {
        render(&format!("{{{{ x | tojson{arguments} }}}}"), &json!([]), &options).unwrap()
    };
    assert_eq!(to_json(""), r#"{"b": ["é", "<'>"], "a": 1e-07}"#);
    assert_eq!(to_json("(sort_keys=true)"), r#"{"a": 1e-07, "b": ["é", "<'>"]}"#);
    assert_eq!(to_json("(separators=(',', ':'))"), r#"{"b":["é","<'>"],"a":1e-07}"#);
    assert_eq!(to_json("(ensure_ascii=true)"), r#"{"b": ["\u00e9", "<'>"], "a": 1e-07}"#);
    assert_eq!(to_json("(indent=1)"), "{\n \"b\": [\n  \"é\",\n  \"<'>\"\n ],\n \"a\": 1e-07\n}");
}

#[test]
fn methods_loops_and_namespaces_work_as_in_python() {
    assert_eq!(expression("{{ 'a-b'.split('-')[-1].upper() }}"), "B");
    assert_eq!(expression("{{ ' x '.strip().startswith('x') }}"), "True");
    assert_eq!(
        expression(
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}\
                    {% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "013"
    );
    assert_eq!(
        expression(
            "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}\
                    {% endfor %}{{ ns.n }}"
        ),
        "3"
    );
    assert_eq!(
        expression("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}{{ undefined_name }}"),
        "a1"
    );
    assert_eq!(expression("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}"), "<a>");
}

#[test]
fn date_is_formatted_and_what_is_no_format_is_left() {
    let year = expression("{{ strftime_now('%Y') }}");
    assert!(year.len() == 4 && year.parse::<u32>().unwrap() > 2000, "{year}");
    assert_eq!(expression("{{ strftime_now(format='%!') }}"), "%!", "as Python leaves it");
}

#[test]
fn generation_marks_are_read_over_and_lines_are_kept() {
    let source = "{% for m in [1] %}\na {%- generation %}b\n{%- endgeneration -%} c{% endfor %}\n\
                  {{ 'generation' }}\n{{ raise_line_four() }}";
    let error = failure(source);
    assert!(matches!(error, TextError::TemplateRender { line: Some(5), .. }), "{error:?}");
    let source = source.replace("{{ raise_line_four() }}", "");
    assert_eq!(expression(&source), "abcgeneration");
}

#[test]
fn variables_of_the_caller_reach_the_template_and_go_before_special_tokens() {
    let options = options_with(json!({ "enable_thinking": false, "bos_token": "!" }));
    let source = "{{ bos_token }}{% if enable_thinking is false %}no{% endif %}";
    assert_eq!(render(source, &json!([]), &options).unwrap(), "!no");
    assert_eq!(expression("{{ tools is none }} {{ documents is none }}"), "True True");
}

#[test]
fn named_templates_are_chosen_by_tools_and_by_name() {
    let sources = [("default", "plain"), ("tool_use", "{{ tools | length }} tools"), ("rag", "r")];
    let template = ChatTemplate::from_named(sources, &special_tokens()).unwrap();
    let mut options = ChatOptions::default();
    assert_eq!(template.render(&[], &options).unwrap(), "plain");
    options.tools = Some(vec![json!({ "name": "f" })]);
    assert_eq!(template.render(&[], &options).unwrap(), "1 tools");
    options.template = Some("rag".to_owned());
    assert_eq!(template.render(&[], &options).unwrap(), "r");
    options.template = Some("none".to_owned());
    let error = template.render(&[], &options).unwrap_err();
    assert!(
        matches!(&error, TextError::UnknownTemplate { name, available }
            if name == "none" && available == "default, rag, tool_use"),
        "{error}"
    );
}

#[test]
fn broken_template_is_an_error_that_names_the_line() {
    let error = ChatTemplate::new("a\nb\n{% if %}", &special_tokens()).unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax { line: Some(3), .. }), "{error:?}");
    let error = failure("a\n{{ none.field.more }}");
    assert!(matches!(error, TextError::TemplateRender { line: Some(2), .. }), "{error:?}");
    for source in
        ["{{ 1 | nofilter }}", "{% include 'x' %}", "{{ nothing() }}", "{{ [] | tojson(x=1) }}"]
    {
        let error = failure(source);
        assert!(matches!(error, TextError::TemplateRender { .. }), "{source}: {error:?}");
    }
}

#[test]
fn template_that_would_not_end_is_stopped() {
    let endless =
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    assert!(matches!(failure(endless), TextError::TemplateLimit { .. }));
    let long = "{% set s = 'abcdefgh' * 1000 %}{% for i in range(100000) %}{{ s }}{% endfor %}";
    assert!(matches!(failure(long), TextError::TemplateLimit { .. }));
}

#[test]
fn endless_recursion_is_an_error_on_a_small_stack() {
    let source = "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}";
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    let error = thread.spawn(move || failure(source)).unwrap().join().unwrap();
    assert!(matches!(error, TextError::TemplateRender { .. }), "{error:?}");
    let nested = format!("{}{}", "{% if true %}".repeat(5_000), "{% endif %}".repeat(5_000));
    let error = ChatTemplate::new(&nested, &special_tokens()).unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax { .. }), "{error:?}");
}

#[test]
fn any_prefix_of_a_template_is_an_error_or_renders() {
    for length in (0..TURNS.len()).filter(|length| TURNS.is_char_boundary(*length)) {
        if let Ok(template) = ChatTemplate::new(&TURNS[..length], &special_tokens()) {
            let text = template.render(&[ChatMessage::new("user", "x")], &ChatOptions::default());
            assert!(text.is_ok_and(|text| text.len() < 100), "{length}");
        }
    }
}

#[test]
fn directory_holds_the_template_in_any_of_three_places() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let load = || ChatTemplate::from_directory(path, &special_tokens());
    let text = || load().unwrap().unwrap().render(&[], &ChatOptions::default()).unwrap();
    let write_config = |value: Value| {
        let config = json!({ "chat_template": value }).to_string();
        std::fs::write(path.join("tokenizer_config.json"), config).unwrap();
    };
    assert!(load().unwrap().is_none());
    write_config(json!("one"));
    assert_eq!(text(), "one");
    write_config(json!([{ "name": "default", "template": "list" }]));
    assert_eq!(text(), "list");
    write_config(json!([{ "name": "default" }]));
    assert!(matches!(load().unwrap_err(), TextError::Malformed { .. }));
    write_config(json!(7));
    assert!(matches!(load().unwrap_err(), TextError::Malformed { .. }));
    std::fs::write(path.join("chat_template.jinja"), "file").unwrap();
    assert_eq!(text(), "file");
}

/// What Python's Jinja makes of each construct, with `m` the first message.
#[test]
fn constructs_of_real_templates_mean_what_they_mean_in_python() {
    let messages = json!([{
        "role": "tool", "content": "20 C", "kind": ["string", "null"],
        "map": { "a": true, "b": null, "c": "it's" }, "nothing": null,
    }]);
    for (construct, expected) in [
        ("{% for m in messages[1:][::-1] %}x{% endfor %}{{ ''[::-1] }}.", "."),
        ("{{ 'T' if tools is iterable and tools|length > 0 else 'F' }}", "F"),
        ("{{ 'T' if m.content is iterable and m.map is iterable else 'F' }}", "T"),
        ("{{ m.absent|length }}{{ m.absent|first }}{{ m.absent|last }}", "0"),
        ("{{ m.content|int }} {{ m.content|float }} {{ 'x'|int(7) }} {{ ' 3 '|int }}", "0 0.0 7 3"),
        (
            "{{ m.kind }} {{ 'x' ~ m.kind }} {{ m.map|string }}",
            "['string', 'null'] x['string', 'null'] {'a': True, 'b': None, 'c': \"it's\"}",
        ),
        ("{{ 'nothing' in m }} {{ m.nothing }}|{{ '<x>' in m.nothing }}", "False |False"),
        ("a\r\n{% if true %}\r\nb\rc\r\n{% endif %}\r\nd", "a\nb\nc\nd"),
        (
            "{{ m.map|tojson(indent='  ') }}",
            "{\n  \"a\": true,\n  \"b\": null,\n  \"c\": \"it's\"\n}",
        ),
        ("{{ ['é']|tojson(true) }} {{ ['é']|tojson(indent=none) }}", "[\"\\u00e9\"] [\"é\"]"),
        ("{{ (m.content + '!')|trim ~ [1] ~ ['x'] }}", "20 C![1]['x']"),
        (
            "{{ [1] + [2] * 2 }} {{ (1, 2)[0] + 3 * -2 }} {{ {'a': 1}.items()|list }}",
            "[1, 2, 2] -5 [('a', 1)]",
        ),
        (
            "{% set a, b = 1, [m.role] %}{{ a }}{{ b }}{% set c %}d{{ a }}{% endset %}{{ c }}",
            "1['tool']d1",
        ),
        ("{% with a = [m.role], b = {'c': m.role} %}{{ a[0] }}{{ b.c }}{% endwith %}", "tooltool"),
        (
            "{% for k, v in m.map|dictsort if v is not none and k not in ['c'] %}{{ k }}{% endfor %}",
            "a",
        ),
        (
            "{% macro f(a, b=[1]) %}{{ a }}{{ b }}{% endmacro %}{{ f(*['x']) }}{{ f('y', b=2) }}",
            "x[1]y2",
        ),
        ("{{ 1 if 1 < 2 == true else 3 }}{{ not m.role == 'user' and 1 in [1] }}", "3True"),
        (
            "{{ messages|map(attribute='role')|join(', ') }} {{ '%s-%s'|format(1, 'x') }}",
            "tool 1-x",
        ),
        ("{% raw %}{{ x }}{% set y %}{% endraw %}{# {{ #}.", "{{ x }}{% set y %}."),
    ] {
        let source = format!("{{% set m = messages[0] %}}{construct}");
        let rendered = render(&source, &messages, &ChatOptions::default());
        assert_eq!(rendered.as_deref().ok(), Some(expected), "{construct}: {rendered:?}");
    }
}

#[test]
fn reasoning_has_all_the_names_that_templates_know() {
    for name in ["reasoning", "thinking", "reasoning_content"] {
        let messages = json!([{ "role": "assistant", "content": "4", name: "2+2" }]);
        let source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}";
        assert_eq!(render(source, &messages, &ChatOptions::default()).unwrap(), "2+2 2+2");
    }
}

#[test]
fn messages_of_clients_take_the_shape_that_the_template_takes() {
    let parts = json!([{ "role": "user", "content": [
        { "type": "text", "text": "a" }, { "type": "text", "text": "b" },
    ] }]);
    let text_only = "{{ messages[0].content }}";
    let either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                  {% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}";
    let mut options = ChatOptions::default();
    assert_eq!(render(text_only, &parts, &options).unwrap(), "a\nb");
    assert_eq!(render(either, &parts, &options).unwrap(), "<a><b>");
    options.as_given = true;
    let given = "[{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]";
    assert_eq!(render(text_only, &parts, &options).unwrap(), given);

    let function = json!({ "name": "f", "arguments": "{\"city\": \"Paris\"}" });
    let calls = json!([
        { "role": "user", "content": "?" },
        { "role": "assistant", "content": null, "tool_calls": [{ "function": function }] },
    ]);
    let arguments = "{% for m in messages %}{% for c in m.tool_calls or [] %}\
                     {{ c.function.arguments EACH }}{% endfor %}{% endfor %}";
    let as_json = arguments.replace("EACH", "| tojson");
    let as_text = arguments.replace("EACH", "");
    let mut options = ChatOptions::default();
    assert_eq!(render(&as_json, &calls, &options).unwrap(), r#"{"city": "Paris"}"#);
    assert_eq!(render(&as_text, &calls, &options).unwrap(), r#"{"city": "Paris"}"#);
    options.as_given = true;
    assert_eq!(render(&as_json, &calls, &options).unwrap(), r#""{\"city\": \"Paris\"}""#);
}

#[test]
fn directory_with_additional_templates_has_them_all() {
    let directory = tempfile::tempdir().unwrap();
    let additional = directory.path().join("additional_chat_templates");
    std::fs::create_dir(&additional).unwrap();
    std::fs::write(directory.path().join("chat_template.jinja"), "plain").unwrap();
    std::fs::write(additional.join("tool_use.jinja"), "{{ tools | length }} tools").unwrap();
    std::fs::write(additional.join("README.md"), "{% broken").unwrap();
    let template = ChatTemplate::from_directory(directory.path(), &special_tokens());
    let template = template.unwrap().unwrap();
    let mut options = ChatOptions::default();
    assert_eq!(template.render(&[], &options).unwrap(), "plain");
    options.tools = Some(vec![json!({ "name": "f" })]);
    assert_eq!(template.render(&[], &options).unwrap(), "1 tools");
    options.template = Some("default".to_owned());
    assert_eq!(template.render(&[], &options).unwrap(), "plain");
}
