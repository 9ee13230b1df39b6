//! Small modules that keep what is resident on the devices up to date.

use backend_api::{GroupId, program::Program};

use super::{
    Geometry, Module, Placed,
    sampler::counts_type,
    step::{kv_sharding, replicated},
};
use crate::stablehlo::{Element, Function, Input, Output, Sharding, Type};

/// Page table entries that one launch of [`set_pages`] writes.
pub(crate) const PAGES_AT_ONCE: usize = 256;

/// Makes what a program keeps, empty: the KV arrays, the page tables (of padding pages only), the
/// next tokens. No arguments.
pub(crate) fn fresh(placed: &Placed) -> Module {
    let Placed { program, placement, geometry, .. } = placed;
    let mut f = Function::new();
    let mut outputs = Vec::new();
    for kind in geometry.kv_types(program, placement) {
        let value = f.splat(kind.element, &kind.dims, 0.0);
        outputs.push(Output { value, sharding: kv_sharding(placement) });
    }
    for (group, kind) in geometry.table_types().into_iter().enumerate() {
        let value = f.splat(kind.element, &kind.dims, geometry.padding_page(group) as f64);
        outputs.push(Output { value, sharding: Sharding::REPLICATED });
    }
    let kind = geometry.next_tokens_type();
    let value = f.splat(kind.element, &kind.dims, 0.0);
    outputs.push(Output { value, sharding: Sharding::REPLICATED });
    Module::finish(f, &[], &outputs, placement.devices)
}

/// Makes the counts of all slots, empty. No arguments.
pub(crate) fn fresh_counts(slots: usize, vocab_size: usize, partitions: usize) -> Module {
    let mut f = Function::new();
    let kind = counts_type(slots, vocab_size);
    let value = f.splat(kind.element, &kind.dims, 0.0);
    let outputs = [Output { value, sharding: Sharding::REPLICATED }];
    Module::finish(f, &[], &outputs, partitions)
}

/// Writes entries of a page table.
///
/// Arguments: the table, which is donated; `[2, PAGES_AT_ONCE]`: flat indices, out of range for
/// padding, and pages. Result: the table.
pub(crate) fn set_pages(geometry: &Geometry, partitions: usize) -> Module {
    let table = Type::new(Element::I32, &[geometry.slots + 1, geometry.table_len]);
    let changes = Type::new(Element::I32, &[2, PAGES_AT_ONCE]);
    let inputs = [donated(table, Sharding::REPLICATED, 0), replicated(changes)];
    let mut f = Function::new();
    let (table, changes) = (f.argument(0, &inputs[0]), f.argument(1, &inputs[1]));
    let row = |f: &mut Function, index: usize| {
        let row = f.slice(&changes, 0, index, 1);
        f.reshape(&row, &[PAGES_AT_ONCE])
    };
    let (indices, pages) = (row(&mut f, 0), row(&mut f, 1));
    let dims = table.dims().to_vec();
    let flat = f.reshape(&table, &[dims[0] * dims[1]]);
    let flat = f.put(&flat, &indices, &pages);
    let table = f.reshape(&flat, &dims);
    let outputs = [Output { value: table, sharding: Sharding::REPLICATED }];
    Module::finish(f, &inputs, &outputs, partitions)
}

/// Copies a page of one of the program's groups, in all its layers.
///
/// Arguments: the group's KV arrays, which are donated; `[2]`: the page to read and the page to
/// write. Results: the KV arrays.
pub(crate) fn copy_page(placed: &Placed, group: GroupId) -> Module {
    let Placed { program, placement, geometry, .. } = placed;
    let sharding = kv_sharding(placement);
    let kinds = geometry.kv_types(program, placement);
    let range = group_arrays(program, group);
    let mut inputs: Vec<Input> = kinds[range]
        .iter()
        .enumerate()
        .map(|(index, kind)| donated(kind.clone(), sharding, index))
        .collect();
    let arrays = inputs.len();
    inputs.push(replicated(Type::new(Element::I32, &[2])));
    let mut f = Function::new();
    let pages = f.argument(arrays, &inputs[arrays]);
    let page = |f: &mut Function, index: usize| {
        let page = f.slice(&pages, 0, index, 1);
        f.scalar(&page)
    };
    let (from, to) = (page(&mut f, 0), page(&mut f, 1));
    let mut outputs = Vec::new();
    for (index, input) in inputs[..arrays].iter().enumerate() {
        let kv = f.argument(index, input);
        let page = f.dynamic_slice(&kv, 0, &from, 1);
        let value = f.dynamic_update(&kv, &page, 0, &to);
        outputs.push(Output { value, sharding });
    }
    Module::finish(f, &inputs, &outputs, placement.devices)
}

/// Replaces a slot's counts of tokens.
///
/// Arguments: the counts, which are donated; the slot's new counts, `[1, vocab_size]`; the slot.
/// Result: the counts.
pub(crate) fn set_counts(slots: usize, vocab_size: usize, partitions: usize) -> Module {
    let inputs = [
        donated(counts_type(slots, vocab_size), Sharding::REPLICATED, 0),
        replicated(Type::new(Element::I32, &[1, vocab_size])),
        replicated(Type::new(Element::I32, &[])),
    ];
    let mut f = Function::new();
    let [counts, row, slot] = std::array::from_fn(|index| f.argument(index, &inputs[index]));
    let counts = f.dynamic_update(&counts, &row, 0, &slot);
    let outputs = [Output { value: counts, sharding: Sharding::REPLICATED }];
    Module::finish(f, &inputs, &outputs, partitions)
}

/// Where a group's KV arrays are among all.
pub(crate) fn group_arrays(program: &Program, group: GroupId) -> std::ops::Range<usize> {
    let layers = |index: usize| program.groups()[index].layers as usize;
    let group = usize::from(group.0);
    let start = (0..group).map(layers).sum::<usize>();
    start..start + layers(group)
}

fn donated(kind: Type, sharding: Sharding, output: usize) -> Input {
    Input { kind, sharding, aliased_output: Some(output) }
}
