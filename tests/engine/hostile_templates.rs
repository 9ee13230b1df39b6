//! A chat template that does its worst to one request, while others are answered.

use std::thread;

use engine_core::engine::Engine;
use engine_core::error::{GenerateError, SubmitError};
use engine_core::request::Request;
use engine_core::text::{ChatMessage, ChatTemplate, SpecialTokens, TextError};
use testkit::shadow::ShadowBackend;

use crate::support::*;

/// What the template does, by the message's content.
const TEMPLATE: &str = "\
{%- set ns = namespace(x=[1]) -%}
{%- set said = messages[0].content -%}
{%- if said == 'deep' -%}
    {%- for i in range(100000) -%}{%- set ns.x = [ns.x] -%}{%- endfor -%}{{ ns.x }}
{%- elif said == 'double' -%}
    {%- for i in range(60) -%}{%- set ns.x = [ns.x, ns.x] -%}{%- endfor -%}{{ ns.x ~ '' }}
{%- elif said == 'cycle' -%}
    {%- set ns.x = ns -%}{{ ns | tojson }}
{%- elif said == 'text' -%}
    {%- set ns.x = 'x' -%}{%- for i in range(80) -%}{%- set ns.x = ns.x ~ ns.x -%}{%- endfor -%}
{%- elif said == 'wide' -%}
    {{ [1] | tojson(indent=10000000000) }}
{%- elif said == 'large' -%}
    {{ (['x' * 100000] * 100000) | join }}
{%- elif said == 'long' -%}
    {%- for i in range(100000) -%}{%- for j in range(100000) -%}{%- endfor -%}{%- endfor -%}
{%- else -%}
    {{ said }}
{%- endif -%}";

#[test]
fn hostile_template_ends_its_own_request_and_no_other() {
    let backend = ShadowBackend::new();
    let template = ChatTemplate::new(TEMPLATE, &SpecialTokens::default()).unwrap();
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
    thread::scope(|scope| {
        for kind in ["deep", "double", "cycle", "text", "wide", "large", "long"] {
            let ask = &ask;
            scope.spawn(move || {
                let error = ask(kind).unwrap_err();
                let limit = matches!(
                    error,
                    GenerateError::Submit(SubmitError::Text(TextError::TemplateLimit { .. }))
                );
                assert!(limit, "{kind}: {error}");
            });
        }
        for _ in 0..20 {
            assert_eq!(ask("hello").unwrap().remove(0).tokens, answer);
        }
    });
    assert_eq!(ask("hello").unwrap().remove(0).tokens, answer);
}
