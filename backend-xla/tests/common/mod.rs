//! What the tests share: XLA's CPU plugin, and clients on it.

#![allow(dead_code)] // Each test binary uses a part.

pub(crate) mod driver;
mod plugin_path;
pub(crate) mod table;

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use backend_xla::pjrt::{Buffer, Client, ElementType, Plugin, Value};

/// The CPU plugin: what `UNDERSTORY_PJRT_CPU_PLUGIN` names, else fetched, pinned by hash.
pub(crate) fn plugin() -> Plugin {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    PLUGIN
        .get_or_init(|| {
            Plugin::load(&plugin_path::plugin_path("cpu")).expect("the CPU plugin loads")
        })
        .clone()
}

/// A client with `devices` virtual CPU devices.
pub(crate) fn client(devices: i64) -> Client {
    Client::new(&plugin(), &[("cpu_device_count", Value::Int(devices))]).expect("a client")
}

/// A deadline that only a hang can miss.
pub(crate) fn deadline() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(300))
}

/// Reads an `f32` array back.
pub(crate) fn read_f32(buffer: &Buffer) -> Vec<f32> {
    let bytes = buffer.to_host().and_then(|copy| copy.wait(deadline())).expect("a copy");
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// Puts an `f32` array on device `index`.
pub(crate) fn put_f32(client: &Client, index: usize, dims: &[i64], values: &[f32]) -> Buffer {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    client.to_device(index, ElementType::F32, dims, &bytes).expect("room on the device")
}
