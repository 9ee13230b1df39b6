//! A function being written: arguments, results, and the lines between.

use std::fmt::Write;

use super::{AXIS, Sharding, Type, Value, list, names, types};

/// The body of a module's main function, written operation by operation.
#[derive(Debug, Default)]
pub(crate) struct Function {
    pub(super) lines: String,
    pub(super) depth: usize,
    next: usize,
    /// Functions that the body calls, as text.
    functions: String,
}

/// An argument of the module.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) kind: Type,
    pub(crate) sharding: Sharding,
    /// The result that takes over the argument's memory, if it is donated.
    pub(crate) aliased_output: Option<usize>,
}

/// A result of the module.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) value: Value,
    pub(crate) sharding: Sharding,
}

impl Function {
    /// A function whose arguments are [`Function::argument`] 0, 1, ..
    pub(crate) fn new() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    /// Argument `index`.
    pub(crate) fn argument(&self, index: usize, input: &Input) -> Value {
        Value { name: format!("%arg{index}"), kind: input.kind.clone() }
    }

    /// Finishes the function as a module over `partitions` devices.
    pub(crate) fn finish(self, inputs: &[Input], outputs: &[Output], partitions: usize) -> String {
        let mut text = String::with_capacity(self.lines.len() + 4096);
        let sharded = partitions > 1;
        let _ = writeln!(
            text,
            "module @understory attributes {{mhlo.num_partitions = {partitions} : i32, \
             mhlo.num_replicas = 1 : i32}} {{"
        );
        if sharded {
            let _ = writeln!(text, "sdy.mesh @mesh = <[\"{AXIS}\"={partitions}]>");
        }
        text.push_str("func.func public @main(");
        for (index, input) in inputs.iter().enumerate() {
            let mut attributes = Vec::new();
            if let Some(output) = input.aliased_output {
                attributes.push(format!("tf.aliasing_output = {output} : i32"));
            }
            if sharded {
                attributes.push(input.sharding.attribute(input.kind.dims.len()));
            }
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}\n    %arg{index}: {}", input.kind);
            if !attributes.is_empty() {
                let _ = write!(text, " {{{}}}", list(attributes));
            }
        }
        let results = outputs.iter().map(|output| match sharded {
            true => {
                let sharding = output.sharding.attribute(output.value.dims().len());
                format!("{} {{{sharding}}}", output.value.kind)
            }
            false => output.value.kind.to_string(),
        });
        let _ = writeln!(text, ") -> ({}) {{", list(results));
        text.push_str(&self.lines);
        let names = list(outputs.iter().map(|output| &output.value.name));
        let kinds = list(outputs.iter().map(|output| &output.value.kind));
        let _ = writeln!(text, "  return {names} : {kinds}\n}}");
        text.push_str(&self.functions);
        text.push_str("}\n");
        text
    }

    /// Adds functions to the module, as text that ends a line.
    pub(crate) fn add_functions(&mut self, text: &str) {
        self.functions.push_str(text);
    }

    /// Calls a function of the module, whose name starts with `@`.
    pub(crate) fn call(&mut self, name: &str, operands: &[&Value], kind: Type) -> Value {
        let text =
            format!("func.call {name}({}) : ({}) -> {kind}", names(operands), types(operands));
        self.define(kind, &text)
    }

    /// What has been written so far.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.lines
    }

    /// Writes `%n = text` and returns `%n`.
    pub(super) fn define(&mut self, kind: Type, text: &str) -> Value {
        let name = self.fresh();
        self.line(&format!("{name} = {text}"));
        Value { name, kind }
    }

    pub(super) fn fresh(&mut self) -> String {
        self.next += 1;
        format!("%{}", self.next - 1)
    }

    pub(super) fn line(&mut self, text: &str) {
        for _ in 0..self.depth {
            self.lines.push_str("  ");
        }
        self.lines.push_str(text);
        self.lines.push('\n');
    }
}
