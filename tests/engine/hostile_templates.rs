//! A chat template that does its worst to one request, or to its own load, while others are answered.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use engine_core::engine::Engine;
use engine_core::error::{GenerateError, SubmitError};
use engine_core::request::Request;
use engine_core::text::{ChatMessage, ChatTemplate, SpecialTokens, TextError};
use testkit::shadow::ShadowBackend;

use crate::support::*;

/// What the template does to a message of this content. `ns.x` is `[1]`.
const WORST: [(&str, &str); 29] = [
    (
        "nested and printed",
        "{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ),
    (
        "nested and compared",
        "{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x == ns.x }}",
    ),
    (
        "nested and serialized",
        "{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    ),
    ("contains itself, printed", "{% set ns.x = [ns] %}{{ ns.x }}"),
    ("contains itself, compared", "{% set ns.x = [ns] %}{{ ns.x == [ns.x] }}{{ ns.x ~ '' }}"),
    ("contains itself, serialized", "{% set ns.x = ns %}{{ ns | tojson }}"),
    (
        "list in list",
        "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x ~ '' }}",
    ),
    (
        "list + list",
        "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x ~ '' }}",
    ),
    ("list * 2", "{% for i in range(60) %}{% set ns.x = (ns.x * 2) | list %}{% endfor %}"),
    (
        "text ~ text",
        "{% set ns.x = 'x' %}{% for i in range(80) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ),
    (
        "text + text",
        "{% set ns.x = 'x' %}{% for i in range(80) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ),
    (
        "text * 2",
        "{% set ns.x = 'x' %}{% for i in range(80) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
    ),
    (
        "replace",
        "{% set ns.x = 'x' %}{% for i in range(80) %}{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
    ),
    (
        "method replace",
        "{% set ns.x = 'x' %}{% for i in range(80) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    ),
    (
        "join",
        "{% set ns.x = 'x' %}{% for i in range(80) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    ),
    ("join of many", "{{ (['x' * 100000] * 100000) | join }}"),
    (
        "macro of twice as much",
        "{% macro m(x, n) %}{{ m(x ~ x, n - 1) if n else x }}{% endmacro %}{{ m('a' * 9999, 20) }}",
    ),
    (
        "macro of twice as many calls",
        "{% macro c(n) %}{% if n %}{{ c(n - 1) }}{{ c(n - 1) }}{% endif %}{% endmacro %}{{ c(22) }}",
    ),
    ("indent", "{{ 'x' | indent(10000000000) }}"),
    ("indent of tojson", "{{ [1] | tojson(indent=10000000000) }}"),
    ("indent of tojson just too wide", "{{ [1] | tojson(indent=65536) }}"),
    ("batch", "{{ [1] | batch(100000, 'x' * 1000000) | string }}"),
    ("slice", "{{ [1] | slice(100000, 'x' * 1000000) | string }}"),
    ("format", "{{ '%10000000000d' | format(1) }}"),
    ("method format", "{{ '{:10000000000}'.format(1) }}"),
    ("range", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
    ("long list", "{{ ([0] * 100000000) | length }}"),
    ("long text", "{{ ('x' * 10000000000) | length }}"),
    ("output", "{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}"),
];

/// A link of a chain, by what is before and behind the chain.
const CHAINS: [(&str, &str, &str); 10] = [
    ("{{ ", "not ", "x }}"),
    ("{{ ", "-", "1 }}"),
    ("{{ x", "|string", " }}"),
    ("{{ x", ".a", " }}"),
    ("{{ x", "+x", " }}"),
    ("{{ ", "x if x else ", "x }}"),
    ("{% if x %}", "{% elif x %}", "{% endif %}"),
    ("{{ ", "[", " }}"),
    ("{{ ", "(", " }}"),
    ("", "{% if x %}", ""),
];

#[test]
fn hostile_template_ends_its_own_request_and_no_other() {
    let backend = ShadowBackend::new();
    let template = ChatTemplate::new(&template(), &SpecialTokens::default()).unwrap();
    let engine = Engine::builder()
        .options(small())
        .chat_template(template)
        .load(model(), &backend, &mut ())
        .unwrap();
    let ask = |content: &str| {
        let messages = vec![ChatMessage::new("user", content)];
        engine.generate(Request::new(messages).sampling(greedy(4)))
    };
    let answer = ask("hello").unwrap().remove(0).tokens;
    for (kind, _) in WORST {
        meanwhile(
            || assert_eq!(ask("hello").unwrap().remove(0).tokens, answer),
            || {
                let error = ask(kind).unwrap_err();
                let limit = matches!(
                    error,
                    GenerateError::Submit(SubmitError::Text(TextError::TemplateLimit { .. }))
                );
                assert!(limit, "{kind}: {error}");
            },
        );
    }
}

#[test]
fn hostile_template_ends_its_own_load_and_no_request() {
    let backend = ShadowBackend::new();
    let engine = Engine::builder()
        .options(small())
        .chat_template(ChatTemplate::new(&template(), &SpecialTokens::default()).unwrap())
        .load(model(), &backend, &mut ())
        .unwrap();
    let ask = || {
        let messages = vec![ChatMessage::new("user", "hello")];
        engine.generate(Request::new(messages).sampling(greedy(4))).unwrap().remove(0).tokens
    };
    let answer = ask();
    for (before, link, behind) in CHAINS {
        meanwhile(
            || assert_eq!(ask(), answer),
            || {
                let source = format!("{before}{}{behind}", link.repeat(25_000));
                let error = ChatTemplate::new(&source, &SpecialTokens::default()).unwrap_err();
                let is_refused = matches!(
                    error,
                    TextError::TemplateTooLarge { .. } | TextError::TemplateSyntax { .. }
                );
                assert!(is_refused && !error.to_string().contains("panic"), "{link}: {error}");
            },
        );
    }
}

/// Does `worst` once, and `usual` again and again until `worst` is over, and once after it.
fn meanwhile(usual: impl Fn(), worst: impl FnOnce() + Send) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let worst = scope.spawn(|| {
            worst();
            is_over.store(true, Ordering::Release);
        });
        while !is_over.load(Ordering::Acquire) && !worst.is_finished() {
            usual();
        }
    });
    usual();
}

/// One that does what the message says, and else says what the message says.
fn template() -> String {
    let mut source =
        "{% set ns = namespace(x=[1]) %}{% set said = messages[0].content %}".to_owned();
    for (index, (kind, body)) in WORST.iter().enumerate() {
        let word = if index == 0 { "if" } else { "elif" };
        let _ = write!(source, "{{% {word} said == '{kind}' %}}{body}");
    }
    source + "{% else %}{{ said }}{% endif %}"
}
