//! A JSON schema as far as a grammar can enforce it.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::error::GrammarError;

/// Keywords whose value is a schema.
const ONE: [&str; 3] = ["additionalProperties", "additionalItems", "items"];
/// Keywords whose value is a list of schemas.
const LIST: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords whose value names schemas.
const NAMED: [&str; 2] = ["properties", "patternProperties"];
/// Keywords that a grammar can't enforce, where they restrict anything.
const UNSUPPORTED: [&str; 16] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];
/// Formats that are enforced. Others are annotations, as the standard has it.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// The schema in a form that the compiler enforces exactly, or what stands in the way.
pub(crate) fn enforceable(schema: &Value) -> Result<Value, GrammarError> {
    let mut walk = Walk { root: schema, targets: Vec::new(), open: Vec::new(), walked: 0 };
    let mut result = walk.schema(schema, &mut String::from("#"))?;
    let mut definitions = Map::new();
    // What references lead to leads to more.
    while let Some(target) = walk.targets.get(definitions.len()).cloned() {
        let schema = schema.pointer(&target).ok_or_else(|| {
            GrammarError::invalid(format!("nothing is at #{target}, where a $ref leads"))
        })?;
        let definition = walk.schema(schema, &mut format!("#{target}"))?;
        definitions.insert(definitions.len().to_string(), definition);
    }
    if let (Value::Object(fields), false) = (&mut result, definitions.is_empty()) {
        fields.insert("$defs".to_owned(), Value::Object(definitions));
    }
    Ok(result)
}

struct Walk<'a> {
    root: &'a Value,
    /// Where references lead, as JSON pointers. The schema that is at the first becomes the
    /// definition 0.
    targets: Vec<String>,
    /// The schemas that are being put in the place of a reference, outermost first.
    open: Vec<*const Value>,
    /// Schemas walked so far; one that is put in several places counts each time.
    walked: usize,
}

/// Schemas that are walked: references in alternatives can double a schema at every step.
const MOST_SCHEMAS: usize = 20_000;
/// How deep schemas that were put in the place of references may nest in each other.
const MOST_OPEN: usize = 32;

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &Value, pointer: &mut String) -> Result<Value, GrammarError> {
        self.walked += 1;
        if self.walked > MOST_SCHEMAS {
            let reason =
                format!("more than {MOST_SCHEMAS} schemas, those behind references counted");
            return Err(GrammarError::TooComplex { reason });
        }
        let Value::Object(fields) = schema else {
            return match schema {
                Value::Bool(_) => Ok(schema.clone()),
                _ => Err(GrammarError::invalid(format!(
                    "at {pointer}: a schema is an object or a boolean"
                ))),
            };
        };
        // A name that comes twice counts once, and a grammar doesn't see that it came before.
        let least = fields.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
        let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        if least > required.max(1) as u64 {
            return Err(within(pointer, "minProperties", |pointer| {
                let detail = " beyond 1 and the number of required properties";
                unsupported(pointer, "minProperties", detail)
            }));
        }
        let mut result = Map::new();
        for (keyword, value) in fields {
            let at = pointer.len();
            push(pointer, keyword);
            if let Some(value) = self.keyword(keyword, value, pointer)? {
                result.insert(keyword.clone(), value);
            }
            pointer.truncate(at);
        }
        Ok(Value::Object(result))
    }

    /// What a keyword of a schema becomes; nothing, if it restricts nothing.
    fn keyword(
        &mut self,
        keyword: &str,
        value: &Value,
        pointer: &mut String,
    ) -> Result<Option<Value>, GrammarError> {
        let value = match (keyword, value) {
            (_, Value::Array(schemas)) if LIST.contains(&keyword) || keyword == "items" => {
                let schemas = schemas.iter().enumerate().map(|(index, schema)| {
                    within(pointer, &index.to_string(), |pointer| match keyword {
                        "oneOf" => self.alternative(schema, pointer),
                        _ => self.schema(schema, pointer),
                    })
                });
                Value::Array(schemas.collect::<Result<_, _>>()?)
            }
            (_, Value::Object(named)) if NAMED.contains(&keyword) => {
                let named = named.iter().map(|(name, schema)| {
                    let schema = within(pointer, name, |pointer| self.schema(schema, pointer))?;
                    Ok((name.clone(), schema))
                });
                Value::Object(named.collect::<Result<_, GrammarError>>()?)
            }
            (_, schema) if ONE.contains(&keyword) => self.schema(schema, pointer)?,
            ("format", Value::String(format)) if !FORMATS.contains(&&**format) => return Ok(None),
            ("$ref", Value::String(reference)) => match reference.strip_prefix('#') {
                None => {
                    return Err(unsupported(pointer, "a $ref to another document", ": only # is"));
                }
                Some(target) if !target.is_empty() && !target.starts_with('/') => {
                    return Err(unsupported(pointer, "a $ref to an anchor", ": only #/ is"));
                }
                // The whole schema.
                Some("") => value.clone(),
                Some(target) => {
                    let target = without_percents(target);
                    let known = self.targets.iter().position(|known| *known == target);
                    let number = known.unwrap_or_else(|| {
                        self.targets.push(target);
                        self.targets.len() - 1
                    });
                    json!(format!("#/$defs/{number}"))
                }
            },
            ("$defs" | "definitions", _) => return Ok(None),
            ("uniqueItems", Value::Bool(false)) => return Ok(None),
            _ if UNSUPPORTED.contains(&keyword) => return Err(unsupported(pointer, keyword, "")),
            _ => value.clone(),
        };
        Ok(Some(value))
    }

    /// One of several that exclude each other: whether they do is seen on schemas, not on references to them.
    fn alternative(&mut self, schema: &Value, pointer: &mut String) -> Result<Value, GrammarError> {
        let target = self.resolved(schema);
        // A schema within itself stays a reference, or there would be no end.
        if std::ptr::eq(target, schema) || self.open.contains(&std::ptr::from_ref(target)) {
            return self.schema(schema, pointer);
        }
        if self.open.len() >= MOST_OPEN {
            return Err(GrammarError::TooDeep { depth: MOST_OPEN + 1, limit: MOST_OPEN });
        }
        self.open.push(target);
        let walked = self.schema(target, pointer);
        self.open.pop();
        walked
    }

    /// The schema that a bare reference leads to, or the schema itself.
    fn resolved<'b>(&self, schema: &'b Value) -> &'b Value
    where
        'a: 'b,
    {
        let mut seen = HashSet::new();
        let mut schema = schema;
        while let Some(reference) = bare_reference(schema)
            && seen.insert(reference)
            && let Some(target) = reference.strip_prefix('#')
            && let Some(next) = self.root.pointer(&without_percents(target))
        {
            schema = next;
        }
        schema
    }
}

/// The target of a schema that is a reference and nothing else that restricts.
fn bare_reference(schema: &Value) -> Option<&str> {
    let fields = schema.as_object()?;
    let is_note = |key: &String| ["$ref", "title", "description", "default"].contains(&&**key);
    fields.keys().all(is_note).then(|| fields.get("$ref")?.as_str()).flatten()
}

/// A fragment of a reference is written as in addresses.
fn without_percents(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..2).filter(|_| first == b'%').map(str::from_utf8);
        let byte = digits.and_then(Result::ok).and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = behind.get(if byte.is_some() { 2.. } else { 0.. }).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unsupported(pointer: &str, keyword: &str, detail: &str) -> GrammarError {
    GrammarError::Unsupported {
        pointer: pointer.to_owned(),
        keyword: keyword.to_owned(),
        detail: detail.to_owned(),
    }
}

/// Goes on below a part of the pointer.
fn within<T>(pointer: &mut String, part: &str, below: impl FnOnce(&mut String) -> T) -> T {
    let at = pointer.len();
    push(pointer, part);
    let result = below(pointer);
    pointer.truncate(at);
    result
}

fn push(pointer: &mut String, part: &str) {
    pointer.push('/');
    pointer.push_str(&part.replace('~', "~0").replace('/', "~1"));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_names_the_keyword_and_where_it_stands() {
        let schema = json!({"properties": {"a/b": {"items": {"not": {}}}}});
        let error = enforceable(&schema).unwrap_err();
        assert_eq!(error.to_string(), "at #/properties/a~1b/items/not: not is not supported");
    }

    #[test]
    fn a_property_may_be_named_like_an_unsupported_keyword() {
        let schema = json!({"properties": {"not": {"type": "string"}}, "required": ["not"]});
        assert_eq!(enforceable(&schema), Ok(schema));
    }

    #[test]
    fn what_restricts_nothing_is_left_out() {
        let schema = json!({"uniqueItems": false, "format": "password"});
        assert_eq!(enforceable(&schema), Ok(json!({})));
    }

    #[test]
    fn alternatives_behind_references_are_put_in_their_place() {
        let (cat, dog) = (json!({"const": "cat"}), json!({"const": "dog"}));
        let schema = json!({
            "$defs": {"Cat": cat, "Dog": {"$ref": "#/$defs/Hound"}, "Hound": dog},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        });
        assert_eq!(enforceable(&schema).unwrap()["oneOf"], json!([cat, dog]));
        let circle =
            json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "oneOf": [{"$ref": "#/$defs/a"}]});
        assert_eq!(enforceable(&circle).unwrap()["oneOf"], json!([{"$ref": "#/$defs/0"}]));
        // A schema that has itself among its alternatives ends.
        let own = json!({"oneOf": [{"$ref": "#"}, {"type": "null"}]});
        assert!(enforceable(&own).is_ok());
        let tree = json!({
            "$defs": {
                "Node": {"properties": {"left": {"oneOf": [{"$ref": "#/$defs/Node"}, {"$ref": "#/$defs/Leaf"}]}}},
                "Leaf": {"type": "null"},
            },
            "$ref": "#/$defs/Node",
        });
        assert!(enforceable(&tree).is_ok());
        let nowhere = enforceable(&json!({"$ref": "#/$defs/c"})).unwrap_err();
        assert_eq!(nowhere.to_string(), "nothing is at #/$defs/c, where a $ref leads");
    }

    #[test]
    fn alternatives_that_double_at_every_step_are_refused() {
        let chain = |steps: usize| {
            let both = |n: usize| json!([{"$ref": format!("#/$defs/{n}")}, {"$ref": format!("#/$defs/{n}")}]);
            let mut named = Map::new();
            for step in 0..steps {
                named.insert(step.to_string(), json!({ "items": { "oneOf": both(step + 1) } }));
            }
            named.insert(steps.to_string(), json!({"type": "null"}));
            json!({"$defs": named, "oneOf": both(0)})
        };
        assert!(enforceable(&chain(5)).is_ok());
        let error = enforceable(&chain(25)).unwrap_err();
        assert!(matches!(error, GrammarError::TooComplex { .. }), "{error}");
        let error = enforceable(&chain(400)).unwrap_err();
        assert!(matches!(error, GrammarError::TooDeep { .. }), "{error}");
    }
}
