//! What a PJRT plugin offers: its version, its devices, their memory.
//!
//! ```text
//! cargo run --features xla --example xla_devices -- --cpu-devices 4
//! cargo run --features xla --example xla_devices -- --topology v6e:2x2
//! cargo run --features xla --example xla_devices -- PLUGIN.so
//! ```
//!
//! With `--topology` the devices are described and not opened, so none need be there.

#[path = "support/bars.rs"]
mod bars;
#[path = "support/program.rs"]
mod program;

use std::process::ExitCode;

use bars::Bars;
use clap::Parser;
use program::Outcome;
use understory::one_line;
use understory::source::{FetchOptions, PluginSource};
use understory::xla::pjrt::{Client, Plugin, Topology, Value, disable_tpu_metadata_query};

/// Lists what a PJRT plugin offers.
#[derive(Parser)]
struct Arguments {
    /// The plugin: `cpu` or `tpu`, which are fetched, or a shared library. Default: `tpu` with
    /// --topology, else `cpu`.
    plugin: Option<PluginSource>,
    /// How many virtual devices XLA's CPU plugin makes.
    #[arg(long)]
    cpu_devices: Option<i64>,
    /// Describe these devices instead of opening those of this machine.
    #[arg(long)]
    topology: Option<String>,
    /// Fetch nothing: take only what is on this machine.
    #[arg(long)]
    offline: bool,
}

fn main() -> ExitCode {
    // SAFETY: no thread has been started yet.
    unsafe { disable_tpu_metadata_query() };
    let arguments = Arguments::parse();
    program::run(|| run(arguments))
}

fn run(arguments: Arguments) -> Outcome<()> {
    let plugin = arguments.plugin.unwrap_or(match arguments.topology {
        Some(_) => PluginSource::Tpu,
        None => PluginSource::Cpu,
    });
    let fetch = FetchOptions::default().offline(arguments.offline);
    let plugin = Plugin::load(&plugin.resolve(&fetch, &mut Bars::default())?)?;
    let (major, minor) = plugin.api_version();
    println!("{}: PJRT C API {major}.{minor}", plugin.path().display());
    for (name, value) in plugin.attributes()? {
        println!("  {name} = {value}");
    }
    if let Some(name) = &arguments.topology {
        let topology = Topology::new(&plugin, name, &[])?;
        let (platform, version) = topology.platform()?;
        println!("topology {name}: {platform}, {}", first_line(&version));
        for device in topology.devices()? {
            print_device(device.id, &device.kind, &device.attributes);
        }
        return Ok(());
    }
    let options: Vec<_> = arguments
        .cpu_devices
        .map(|count| ("cpu_device_count", Value::Int(count)))
        .into_iter()
        .collect();
    let client = Client::new(&plugin, &options)?;
    println!("client: {}, {}", client.platform(), first_line(client.platform_version()));
    for (index, device) in client.devices().iter().enumerate() {
        let description = device.description();
        print_device(description.id, &description.kind, &description.attributes);
        match client.memory_stats(index) {
            Ok(stats) => println!("    memory: {} bytes in use of {:?}", stats.in_use, stats.limit),
            Err(error) => println!("    memory: not reported ({})", one_line(&error)),
        }
    }
    Ok(())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn print_device(id: i32, kind: &str, attributes: &[(String, Value)]) {
    println!("  device {id}: {kind}");
    for (name, value) in attributes {
        println!("    {name} = {value}");
    }
}
