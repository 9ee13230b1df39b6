//! Loops and branches.

use super::{Function, Type, Value, list, names, types};

impl Function {
    /// Repeats `body` while `condition` holds. Both get the loop's values; `body` returns the next
    /// ones.
    pub(crate) fn while_loop(
        &mut self,
        start: &[&Value],
        condition: impl FnOnce(&mut Self, &[Value]) -> Value,
        body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let inner: Vec<Value> = start
            .iter()
            .map(|value| Value { name: self.fresh(), kind: value.kind.clone() })
            .collect();
        let bindings = inner.iter().zip(start).map(|(inner, start)| {
            let (inner, start) = (&inner.name, &start.name);
            format!("{inner} = {start}")
        });
        let name = self.fresh();
        let count = start.len();
        let defined = if count == 1 { name.clone() } else { format!("{name}:{count}") };
        let header = format!("{defined} = stablehlo.while({}) : {}", list(bindings), types(start));
        self.line(&header);
        self.line("cond {");
        self.depth += 1;
        let goes_on = condition(self, &inner);
        self.line(&format!("stablehlo.return {} : {}", goes_on.name, goes_on.kind));
        self.depth -= 1;
        self.line("} do {");
        self.depth += 1;
        let next = body(self, &inner);
        let next: Vec<&Value> = next.iter().collect();
        self.line(&format!("stablehlo.return {} : {}", names(&next), types(&next)));
        self.depth -= 1;
        self.line("}");
        self.results(&name, start.iter().map(|value| value.kind.clone()).collect())
    }

    /// Runs one of two branches by a scalar condition. Both return values of the same types.
    pub(crate) fn if_else(
        &mut self,
        condition: &Value,
        yes: impl FnOnce(&mut Self) -> Value,
        no: impl FnOnce(&mut Self) -> Value,
    ) -> Value {
        let name = self.fresh();
        self.line(&format!("{name} = \"stablehlo.if\"({}) ({{", condition.name));
        self.depth += 1;
        let value = yes(self);
        self.line(&format!("stablehlo.return {} : {}", value.name, value.kind));
        self.depth -= 1;
        self.line("}, {");
        self.depth += 1;
        let other = no(self);
        self.line(&format!("stablehlo.return {} : {}", other.name, other.kind));
        self.depth -= 1;
        self.line(&format!("}}) : ({}) -> {}", condition.kind, value.kind));
        Value { name, kind: value.kind }
    }

    /// The results of an operation that has several: `%n#0, %n#1, ..`, or `%n` if it is one.
    pub(super) fn results(&self, name: &str, kinds: Vec<Type>) -> Vec<Value> {
        let single = kinds.len() == 1;
        let numbered = |(index, kind)| Value {
            name: if single { name.to_owned() } else { format!("{name}#{index}") },
            kind,
        };
        kinds.into_iter().enumerate().map(numbered).collect()
    }
}
