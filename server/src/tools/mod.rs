//! Functions that a model may call: what a request offers, how models write calls, and the grammar
//! that makes a model call.
//!
//! ```
//! use understory_server::tools::{CallIds, Message, ToolFormat};
//!
//! let names = ["weather".to_owned()];
//! let mut parser = ToolFormat::Hermes.parser(names, CallIds::new(7));
//! let text = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
//! let message = Message::parse(&mut *parser, text);
//! assert_eq!(message.content.as_deref(), Some("Let me see."));
//! assert_eq!(message.calls[0].arguments, "{\"city\": \"Bern\"}");
//! ```

mod call;
mod choice;
mod delta;
mod format;
mod harmony;
mod json;
mod named;
mod parser;
mod python;
mod pythonic;

pub use choice::{Tool, ToolChoice, Tools, tool_grammar};
pub(crate) use delta::Deltas;
pub use delta::{CallIds, Delta, Message, Parser, ToolCall};
pub use format::ToolFormat;
pub(crate) use harmony::HarmonyParser;
pub use named::NamedParser;
