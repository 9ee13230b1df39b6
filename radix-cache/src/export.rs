//! The tree as pictures: Graphviz and JSON, with runs of tokens collapsed.

use std::fmt::Write;

use crate::tree::{Node, NodeIndex, Tree};
use crate::types::Namespace;
use crate::windowed::WindowedGroup;

/// Tokens shown at each end of a run; what is between them is counted.
const SHOWN: usize = 4;

/// One box a node.
pub(crate) fn to_dot(tree: &Tree, group: Option<&WindowedGroup>) -> String {
    let mut dot = String::from("digraph radix_cache {\n  node [shape=box];\n");
    for (index, node) in tree.iter() {
        let name = index.index();
        let bold = if node.pins > 0 { ", style=bold" } else { "" };
        let label = if tree.is_root(index) {
            format!("namespace {}", tree.namespace_of(index))
        } else {
            let pages = node.run.pages;
            let windowed = match group {
                Some(group) => format!(", {} windowed", group.pages_in(tree, index).count()),
                None => String::new(),
            };
            format!("{}\\n{pages} pages{windowed}, {} pins", collapsed(tree, node), node.pins)
        };
        // Writing to a string can't fail.
        let _ = writeln!(dot, "  n{name} [label=\"{label}\"{bold}];");
        if !tree.is_root(index) {
            let _ = writeln!(dot, "  n{} -> n{name};", node.parent.index());
        }
    }
    dot.push_str("}\n");
    dot
}

/// A list of nodes, parents first.
pub(crate) fn to_json(tree: &Tree, group: Option<&WindowedGroup>) -> String {
    let nodes: Vec<String> =
        tree.parents_first().into_iter().map(|index| node_json(tree, group, index)).collect();
    format!("{{\"page_size\":{},\"nodes\":[{}]}}", tree.page_size(), nodes.join(","))
}

fn node_json(tree: &Tree, group: Option<&WindowedGroup>, index: NodeIndex) -> String {
    let node = tree.node(index);
    let parent = match tree.is_root(node.parent) {
        true => "null".to_owned(),
        false => node.parent.index().to_string(),
    };
    let Namespace { tenant, salt } = tree.namespace_of(index);
    let page_size = tree.page_size();
    let windowed = group.map_or(0, |group| group.pages_in(tree, index).count());
    let pages = node.run.pages as usize;
    format!(
        "{{\"id\":{},\"parent\":{parent},\"tenant\":{tenant},\"salt\":{salt},\
             \"tokens\":{{\"start\":{},\"length\":{},\"shown\":\"{}\"}},\
             \"pages\":{pages},\"windowed\":{},\"pins\":{},\"children\":{},\"used\":{}}}",
        index.index(),
        (node.end as usize - pages) * page_size,
        pages * page_size,
        collapsed(tree, node),
        windowed,
        node.pins,
        node.children,
        node.record.used,
    )
}

/// A run's tokens, with the middle left out.
fn collapsed(tree: &Tree, node: &Node) -> String {
    let tokens: Vec<String> = tree
        .store()
        .extents_of(node.run)
        .flat_map(|(tokens, _)| tokens)
        .map(ToString::to_string)
        .collect();
    match tokens.len() {
        0..=9 => tokens.join(" "),
        length => format!(
            "{} … {} … {}",
            tokens[..SHOWN].join(" "),
            length - 2 * SHOWN,
            tokens[length - SHOWN..].join(" ")
        ),
    }
}
