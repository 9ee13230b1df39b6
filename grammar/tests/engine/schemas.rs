//! Random schemas: what is generated under them validates.

use engine_core::request::Request;
use grammar::{GrammarCompiler, GrammarOptions, GrammarSpec};
use serde_json::{Map, Value, json};

use crate::support::*;

/// Draws schemas that allow finitely many documents, so that every answer ends.
struct Schemas(u64);

impl Schemas {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn document(&mut self) -> Value {
        let mut schema = self.schema(3);
        if self.below(3) == 0 {
            let shared = self.schema(1);
            schema = json!({
                "$defs": {"shared/~": shared},
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/shared~1~0"}, "right": schema},
                "required": ["left"],
                "additionalProperties": false,
            });
        }
        schema
    }

    fn schema(&mut self, depth: u64) -> Value {
        let kinds = if depth == 0 { 9 } else { 14 };
        match self.below(kinds) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "null"}),
            2 => {
                let least = self.below(2000) as i64 - 1000;
                json!({"type": "integer", "minimum": least, "maximum": least + self.below(300) as i64})
            }
            3 => {
                json!({"type": "number", "minimum": -2, "exclusiveMaximum": 3, "multipleOf": 0.25})
            }
            4 => json!({"type": "string", "maxLength": self.below(12)}),
            5 => {
                let patterns = ["^[a-z]{2,5}$", "^(foo|ba+r)$", "^\\d{3}-\\d{4}$", "^[^\"x]{0,4}$"];
                json!({"type": "string", "pattern": patterns[self.below(4) as usize], "maxLength": 8})
            }
            6 => {
                let formats = ["date", "uuid", "ipv4"];
                json!({"type": "string", "format": formats[self.below(3) as usize]})
            }
            7 => json!({"enum": ["red", "gr\u{fc}n", 3, 4.5, null, true, ["a", 1], {"b": "c"}]}),
            8 => json!({"const": ["fixed", self.below(9), {"key": "value with spaces"}]}),
            9 | 10 => self.object(depth),
            11 => {
                let least = self.below(3);
                let items = self.schema(depth - 1);
                json!({
                    "type": "array", "items": items, "minItems": least,
                    "maxItems": least + self.below(3),
                })
            }
            12 => {
                let items = [self.schema(depth - 1), self.schema(depth - 1)];
                json!({"type": "array", "prefixItems": items, "items": false, "minItems": 1})
            }
            _ => {
                let (a, b) = (self.schema(depth - 1), self.schema(depth - 1));
                match self.below(2) {
                    0 => json!({"anyOf": [a, b]}),
                    _ => {
                        // Alternatives that a property tells apart.
                        let tagged = |kind: &str, inner: Value| {
                            json!({
                                "type": "object", "additionalProperties": false,
                                "properties": {"kind": {"const": kind}, "inner": inner},
                                "required": ["kind", "inner"],
                            })
                        };
                        json!({"oneOf": [tagged("a", a), tagged("b", b)]})
                    }
                }
            }
        }
    }

    fn object(&mut self, depth: u64) -> Value {
        let names = ["name", "an other", "quo\"te", "\u{fc}", "n\u{1f600}", "id"];
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for name in names {
            if self.below(2) == 0 {
                properties.insert(name.to_owned(), self.schema(depth - 1));
                if self.below(2) == 0 {
                    required.push(name);
                }
            }
        }
        json!({
            "type": "object", "properties": properties, "required": required,
            "additionalProperties": false, "title": "of no consequence",
        })
    }
}

#[test]
fn what_200_random_schemas_let_through_parses_and_validates() {
    let engine = engine(options());
    let compiler = compiler(&engine);
    let mut schemas = Schemas(7);
    let mut running = Vec::new();
    for number in 0..200 {
        let schema = schemas.document();
        let compiled = compiler.compile(&GrammarSpec::JsonSchema(schema.clone()));
        let constraint = compiled.unwrap_or_else(|error| panic!("{error}: {schema}")).constraint();
        let request = Request::new("x").sampling(sampling(number)).constraint(Box::new(constraint));
        running.push((schema, engine.submit(request).unwrap()));
    }
    for (schema, generation) in running {
        let text = text(generation.wait().unwrap().remove(0));
        let document: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text} under {schema}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        if let Err(error) = validator.validate(&document) {
            panic!("{error}: {text} under {schema}");
        }
    }
}

#[test]
fn white_space_is_bounded_and_can_be_none() {
    let engine = engine(options());
    let schema =
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3});
    let spec = GrammarSpec::JsonSchema(schema);
    for (most, seeds) in [(0, 5), (2, 20)] {
        let options = GrammarOptions::default().json_white_space(most);
        let compiler = GrammarCompiler::new(engine.tokenizer().unwrap(), options).unwrap();
        let mut widest = 0;
        for seed in 0..seeds {
            let constraint = compiler.compile(&spec).unwrap().constraint();
            let request =
                Request::new("x").sampling(sampling(seed)).constraint(Box::new(constraint));
            let text = text(engine.generate(request).unwrap().remove(0));
            let runs = text.split(|c: char| !c.is_ascii_whitespace()).map(str::len);
            widest = widest.max(runs.max().unwrap());
        }
        assert_eq!(widest, most);
    }
}
