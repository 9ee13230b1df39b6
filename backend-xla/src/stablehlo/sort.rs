//! Sorting.

use super::{Element, Function, Type, Value, names, types};

impl Function {
    /// Sorts a vector of `i32` keys, and a vector of `i32` values alike. Values of equal keys stay
    /// in their order.
    pub(crate) fn sort_by_key(&mut self, keys: &Value, values: &Value) -> [Value; 2] {
        let scalar = Type::new(Element::I32, &[]);
        let name = self.fresh();
        let text = format!(
            "{name}:2 = \"stablehlo.sort\"({}) <{{dimension = 0 : i64, is_stable = true}}> ({{ \
             ^bb0(%left: {scalar}, %right: {scalar}, %of_left: {scalar}, %of_right: {scalar}): \
             %before = stablehlo.compare LT, %left, %right, SIGNED : ({scalar}, {scalar}) -> \
             tensor<i1> stablehlo.return %before : tensor<i1> }}) : ({}) -> ({})",
            names(&[keys, values]),
            types(&[keys, values]),
            types(&[keys, values]),
        );
        self.line(&text);
        [(0, keys), (1, values)].map(|(index, value)| {
            let kind = value.kind.clone();
            Value { name: format!("{name}#{index}"), kind }
        })
    }
}
