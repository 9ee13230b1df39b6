//! Functions that a model may call: what a request offers, how models write calls, and the grammar
//! that makes a model call.
//!
//! ```
//! use understory_server::tools::{CallIds, Message, ToolFormat, ToolParser};
//!
//! let names = ["weather".to_owned()];
//! let mut parser = ToolParser::new(ToolFormat::Hermes, names, CallIds::new(7));
//! let text = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
//! let message = Message::parse(&mut parser, text);
//! assert_eq!(message.content.as_deref(), Some("Let me see."));
//! assert_eq!(message.calls[0].arguments, "{\"city\": \"Bern\"}");
//! ```

mod call;
mod choice;
mod delta;
mod format;
mod json;
mod named;
mod parser;

pub use choice::{Tool, ToolChoice, Tools, tool_grammar};
pub(crate) use delta::Deltas;
pub use delta::{CallIds, Delta, Message, Parser, ToolCall};
pub use format::ToolFormat;
pub use named::NamedParser;
pub use parser::ToolParser;
