//! A safe client of the PJRT C API: the door to every XLA device that comes as a plugin.
//!
//! A plugin is a shared library chosen at run time ([`Plugin::load`]): libtpu, XLA's CPU plugin,
//! XLA's CUDA plugin. Building this crate needs none of them, and no C++, protoc or libclang: the
//! raw bindings are checked in (`scripts/pjrt_bindings.py` makes them) and the two protocol
//! buffers that the API takes are encoded by hand ([`CompileOptions`]).
//!
//! What it decides:
//!
//! - **A donated buffer is moved.** [`LoadedExecutable::execute`] takes each argument as
//!   [`Argument::Borrow`] or [`Argument::Donate`]. A donated [`Buffer`] is gone after the call,
//!   whether the call succeeds or not; a borrowed one is never donated, whatever the program says.
//! - **Everything is destroyed**, in an order that the plugin accepts: what came from a client
//!   keeps the client alive, and what came from a plugin keeps the plugin's table alive. The
//!   shared library itself stays mapped for ever: plugins leave threads behind.
//! - **Nothing blocks unless asked.** `execute` and [`Buffer::to_host`] return at once; a
//!   [`Completion`] is waited for with a deadline.
//! - **Errors are typed** ([`PjrtError`]), with the plugin's code and message as fields.
//!
//! ```no_run
//! use backend_xla::pjrt::{Client, CompileOptions, Plugin, Value};
//!
//! # fn main() -> Result<(), backend_xla::pjrt::PjrtError> {
//! let plugin = Plugin::load("/opt/plugins/pjrt_c_api_cpu_plugin.so".as_ref())?;
//! let client = Client::new(&plugin, &[("cpu_device_count", Value::Int(2))])?;
//! let text = "func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
//!               return %x : tensor<2xf32> }";
//! let identity = client.compile(text, &CompileOptions::single_device())?;
//! # drop(identity);
//! # Ok(())
//! # }
//! ```

mod buffer;
mod client;
mod error;
mod event;
mod executable;
mod execute;
mod options;
mod plugin;
mod sys;
mod topology;

pub use buffer::{Buffer, ElementType, HostCopy};
pub use client::{Client, Device, MemoryStats};
pub use error::{ErrorCode, PjrtError};
pub use event::{Completion, Event};
pub use executable::{CompiledMemory, Executable, LoadedExecutable, OptimizedProgram};
pub use execute::{Argument, Execution};
pub use options::{CompileOptions, Value};
pub use plugin::{OLDEST_API, Plugin, disable_tpu_metadata_query};
pub use topology::{DeviceDescription, Topology};
