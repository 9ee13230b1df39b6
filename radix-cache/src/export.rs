//! The tree as pictures: Graphviz and JSON, with runs of tokens collapsed.

use std::fmt::Write;

use crate::cache::RadixCache;
use crate::node::{Node, NodeIndex};
use crate::types::Namespace;

/// Tokens shown at each end of a run; what is between them is counted.
const SHOWN: usize = 4;

impl RadixCache {
    /// The tree in Graphviz's language, one box a node: its tokens with the middle left out, its
    /// pages, its locks. Locked nodes are drawn bold.
    ///
    /// ```sh
    /// dot -Tsvg tree.dot -o tree.svg
    /// ```
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph radix_cache {\n  node [shape=box];\n");
        for (index, node) in self.tree.iter() {
            let name = index.index();
            let bold = if node.pins > 0 { ", style=bold" } else { "" };
            let label = if self.tree.is_root(index) {
                format!("namespace {}", self.tree.namespace_of(index))
            } else {
                let pages = node.run.pages;
                let windowed = match &self.windowed {
                    Some(_) => format!(", {} windowed", self.windowed_in(index).count()),
                    None => String::new(),
                };
                format!("{}\\n{pages} pages{windowed}, {} pins", self.collapsed(node), node.pins)
            };
            // Writing to a string can't fail.
            let _ = writeln!(dot, "  n{name} [label=\"{label}\"{bold}];");
            if !self.tree.is_root(index) {
                let _ = writeln!(dot, "  n{} -> n{name};", node.parent.index());
            }
        }
        dot.push_str("}\n");
        dot
    }

    /// The tree as JSON: a list of nodes, parents first, each with its `id`, its `parent`'s id
    /// (`null` below a namespace's root), `tenant` and `salt`, `tokens` (`start`, `length`, and `shown`,
    /// a text with the middle left out), `pages`, how many of them have `windowed` pages, `pins`,
    /// `children`, and when it was last `used`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let nodes: Vec<String> =
            self.tree.parents_first().into_iter().map(|index| self.node_json(index)).collect();
        format!("{{\"page_size\":{},\"nodes\":[{}]}}", self.page_size(), nodes.join(","))
    }

    fn node_json(&self, index: NodeIndex) -> String {
        let node = self.tree.node(index);
        let parent = match self.tree.is_root(node.parent) {
            true => "null".to_owned(),
            false => node.parent.index().to_string(),
        };
        let Namespace { tenant, salt } = self.tree.namespace_of(index);
        let page_size = self.page_size();
        let pages = node.run.pages as usize;
        format!(
            "{{\"id\":{},\"parent\":{parent},\"tenant\":{tenant},\"salt\":{salt},\
             \"tokens\":{{\"start\":{},\"length\":{},\"shown\":\"{}\"}},\
             \"pages\":{pages},\"windowed\":{},\"pins\":{},\"children\":{},\"used\":{}}}",
            index.index(),
            (node.end as usize - pages) * page_size,
            pages * page_size,
            self.collapsed(node),
            self.windowed_in(index).count(),
            node.pins,
            node.children,
            node.used,
        )
    }

    /// A run's tokens, with the middle left out.
    fn collapsed(&self, node: &Node) -> String {
        let tokens: Vec<String> = self
            .tree
            .store
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
}
