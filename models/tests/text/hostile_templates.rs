//! A chat template is somebody else's program: whatever it does ends in an error of its kind.
//!
//! Most kinds here took the process down once, so they run in a child process. What dies there is
//! a failed test, and not the end of all tests.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use models::text::{ChatMessage, ChatOptions, ChatTemplate, SpecialTokens, TextError};

/// Tells the child that it is one.
const CHILD: &str = "UNDERSTORY_HOSTILE_TEMPLATES";

/// Far above what any kind takes with optimizations, which the tests lack.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that the child may have touched at its end.
const MEMORY: u64 = 1 << 30;

/// Links of a chain: too many for any stack that recurses over them.
const LINKS: usize = 25_000;

/// A value in a namespace, made from itself `times` times over, and then used.
fn grown(first: &str, times: usize, step: &str, uses: &str) -> String {
    format!(
        "{{% set ns = namespace(x={first}) %}}{{% for i in range({times}) %}}\
         {{% set ns.x = {step} %}}{{% endfor %}}{uses}"
    )
}

/// Ways to walk through a value.
const USES: [&str; 10] = [
    "{{ ns.x }}",
    "{{ ns.x | tojson }}",
    "{{ ns.x ~ '' }}",
    "{{ ns.x | string | length }}",
    "{{ ns.x == ns.x }}",
    "{{ ns.x in [ns.x] }}",
    "{{ [ns.x, ns.x] | sort | length }}",
    "{{ {ns.x: 1} }}",
    "{{ '%s' | format(ns.x) }}",
    "",
];

/// Sources that are refused before they are compiled, or by the compiler.
fn refused_sources() -> Vec<String> {
    let chain = |first: &str, link: &str, last: &str| {
        format!("{{{{ {first}{}{last} }}}}", link.repeat(LINKS))
    };
    let blocks = |open: &str, close: &str| format!("{}{}", open.repeat(LINKS), close.repeat(LINKS));
    vec![
        chain("", "not ", "x"),
        chain("", "-", "1"),
        chain("x", "|string", ""),
        chain("x", ".a", ""),
        chain("x", "[0]", ""),
        chain("x", "()", ""),
        chain("x", "[0:]", ""),
        chain("x", "+x", ""),
        chain("x", "~x", ""),
        chain("x", "**x", ""),
        chain("x", " and x", ""),
        chain("x", " < x", ""),
        chain("x", " is defined", ""),
        chain("", "x if x else ", "x"),
        chain("", "(", "x"),
        format!("{{{{ {}{} }}}}", "(".repeat(LINKS), ")".repeat(LINKS)),
        format!("{{{{ {}{} }}}}", "[".repeat(LINKS), "]".repeat(LINKS)),
        format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(10_000)),
        blocks("{%if x%}", "{%endif%}"),
        format!("{{{{ '{}", "x".repeat(1000)),
        "x".repeat(300_000),
        "{".repeat(200_000) + "{{",
    ]
}

/// Templates that do too much, and are stopped.
fn stopped() -> Vec<String> {
    let mut all = Vec::new();
    for uses in USES {
        all.push(grown("[]", 100_000, "[ns.x]", uses));
        all.push(grown("{}", 100_000, "{'a': ns.x}", uses));
        all.push(grown("[1]", 60, "[ns.x, ns.x]", uses));
        all.push(grown("[1]", 60, "ns.x + ns.x", uses));
        all.push(format!("{{% set ns = namespace() %}}{{% set ns.x = ns %}}{uses}"));
        all.push(format!("{{% set ns = namespace() %}}{{% set ns.x = [{{'a': ns}}] %}}{uses}"));
    }
    let doubling = [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x * 2",
        "ns.x.replace('a', 'aa')",
        "ns.x | replace('a', 'aa')",
        "[ns.x, ns.x] | join",
        "''.join([ns.x, ns.x])",
        "'%s%s' | format(ns.x, ns.x)",
        "'{}{}'.format(ns.x, ns.x)",
    ];
    all.extend(doubling.map(|step| grown("'a'", 80, step, "{{ ns.x | length }}")));
    let expressions = [
        "'x' | indent(10000000000)",
        "[1] | tojson(indent=10000000000)",
        "[1] | tojson(indent=65536)",
        "'%10000000000d' | format(1)",
        "'{:10000000000}'.format(1)",
        "'{:.10000000000}'.format(1.5)",
        "'{:{}}'.format(1, 10000000000)",
        "[0] * 100000000",
        "'x' * 10000000000",
        "('x' * 100000) | replace('x', 'y' * 100000)",
        "('x' * 100000).replace('x', 'y' * 100000)",
        "(['x' * 100000] * 100000) | join",
        "''.join(['x' * 100000] * 100000)",
        "(['x' * 100000] * 100000) ~ ''",
        "range(100000) | map(attribute='x', default='x' * 1000000) | list",
        "[1] | batch(100000, 'x' * 1000000) | string",
        "[['x' * 1000000] * 3000] | string",
        "('\n' * 400000000).split('\n')",
        "([[0] * 1000] * 1000) | tojson",
        "strftime_now('%Y' * 100000)",
    ];
    all.extend(expressions.map(|expression| format!("{{{{ {expression} }}}}")));
    // Doubled from block to block, which no namespace is needed for.
    for (open, close, uses) in
        [("with", "endwith", "{{ a60 }}"), ("for", "endfor", "{{ a60 ~ '' }}")]
    {
        let mut nested = "{% set a0 = 1 %}".to_owned();
        for level in 0..60 {
            let next = level + 1;
            let _ = match open {
                "with" => write!(nested, "{{% with a{next} = [a{level}, a{level}] %}}"),
                _ => write!(nested, "{{% for a{next} in [[a{level}, a{level}]] %}}"),
            };
        }
        all.push(format!("{nested}{uses}{}", format!("{{% {close} %}}").repeat(60)));
    }
    // Work that no instruction of the template shows.
    let large = grown("[1]", 15, "[ns.x, ns.x]", "");
    for step in ["ns.x == [ns.x, 1]", "ns.x in [ns.x, 1]", "ns.x is eq(ns.x)", "{}[ns.x]"] {
        all.push(format!(
            "{large}{{% for i in range(100000) %}}{{% if {step} %}}{{% endif %}}{{% endfor %}}"
        ));
    }
    all.extend(
        [
            "{% macro m(x, n) %}{{ m(x ~ x, n - 1) if n else x }}{% endmacro %}{{ m('a' * 9999, 20) }}",
            "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(22) }}",
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
            "{% set y %}{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}{% endset %}",
        ]
        .map(str::to_owned),
    );
    all
}

/// Templates that fail, or that do what they do, which is harmless.
fn harmless() -> Vec<String> {
    let lazy = |step: &str| grown("[1, 2]", 20_000, step, "{{ ns.x | list | length }}");
    let mut all = vec![
        lazy("ns.x[0:]"),
        lazy("ns.x | reverse"),
        lazy("ns.x | map('string')"),
        "{{ 'x'[::9223372036854775807] }}{{ [1][::-9223372036854775807] }}".to_owned(),
        "{{ [][::-1] }}{{ ''[::-1] }}{{ 1 | round(9223372036854775807) }}".to_owned(),
    ];
    let failing = [
        "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}",
        "{% include 'default' %}",
        "{% extends 'default' %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ m() }}{% endcall %}",
        "{{ [1] | batch(9223372036854775807, 1) | list }}",
        "{{ [1] | slice(9223372036854775807) | list }}",
        "{{ 2 ** 10000000000 }}{{ 10 ** 10 ** 10 }}",
        "{{ debug() }}",
    ];
    all.extend(failing.map(str::to_owned));
    all
}

fn outcome(source: &str) -> Result<String, TextError> {
    let template = ChatTemplate::new(source, &SpecialTokens::default())?;
    template.render(&[ChatMessage::new("user", "x")], &ChatOptions::default())
}

/// What the child process runs. In its parent it does nothing.
#[test]
fn victim() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let check =
        |kind: &str, source: &str, is_right: &dyn Fn(&Result<String, TextError>) -> bool| {
            // The beginning says which one it is; the parent shows the last line of a child that died.
            println!("{kind}: {}", source.chars().take(120).collect::<String>().escape_debug());
            let start = Instant::now();
            let outcome = outcome(source);
            let took = start.elapsed();
            let shown: String = format!("{outcome:?}").chars().take(300).collect();
            assert!(is_right(&outcome), "{kind}: {shown}");
            assert!(took < PATIENCE, "{kind} took {took:?}");
            // One of the same kind is no danger to what comes after it.
            assert_eq!(self::outcome("{{ messages[0].content }}").unwrap(), "x");
        };
    for source in refused_sources() {
        check("refused", &source, &|outcome| {
            let is_refused = matches!(
                outcome,
                Err(TextError::TemplateTooLarge { .. } | TextError::TemplateSyntax { .. })
            );
            is_refused && !format!("{outcome:?}").contains("panic")
        });
    }
    for source in stopped() {
        check("stopped", &source, &|outcome| {
            matches!(outcome, Err(TextError::TemplateLimit { .. }))
        });
    }
    for source in harmless() {
        check("harmless", &source, &|outcome| !format!("{outcome:?}").contains("panic"));
    }
    if let Some(peak) = peak_memory() {
        assert!(peak < MEMORY, "{peak} bytes");
    }
    println!("all done");
}

/// The most memory that this process had, where Linux says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[test]
fn hostile_templates_end_in_errors_and_the_process_lives() {
    let test = std::env::current_exe().unwrap();
    let child = Command::new(test)
        .args(["hostile_templates::victim", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let complained = String::from_utf8_lossy(&child.stderr);
    let last = said.lines().rev().take(3).collect::<Vec<_>>();
    assert!(child.status.success(), "{}: {last:?}\n{complained}", child.status);
    assert!(said.contains("all done"), "{said}");
}

#[test]
fn honest_template_with_a_long_conversation_is_within_limits() {
    let source = "\
{%- set ns = namespace(last=none, tools=[]) -%}
{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- set ns.last = message.role -%}
    {%- set ns.tools = ns.tools + [loop.index] -%}
    {%- set content = message.content.split('</think>')[-1].strip() | trim -%}
    {{- '<' ~ message.role ~ '>' + content + message | tojson + '\\n' -}}
{%- endfor -%}{{ system }}{{ ns.last }}";
    // 2,000 messages with 2 MB in all.
    let messages: Vec<ChatMessage> =
        (0..2000).map(|_| ChatMessage::new("user", "word ".repeat(200))).collect();
    let template = ChatTemplate::new(source, &SpecialTokens::default()).unwrap();
    let text = template.render(&messages, &ChatOptions::default()).unwrap();
    assert!(text.len() > 4_000_000 && text.ends_with("user"));
}
