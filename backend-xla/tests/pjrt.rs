//! The PJRT client against XLA's CPU plugin.

mod common;

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use backend_xla::pjrt::{
    Argument, Buffer, Client, CompileOptions, ElementType, ErrorCode, LoadedExecutable, PjrtError,
    Topology, Value,
};
use common::{client, deadline, plugin, put_f32, read_f32};

/// Adds a row into a matrix in place.
const UPDATE: &str = "func.func public @main(
    %cache: tensor<4x2xf32> {tf.aliasing_output = 0 : i32}, %row: tensor<1x2xf32>,
    %index: tensor<i32>) -> tensor<4x2xf32> {
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %new = stablehlo.dynamic_update_slice %cache, %row, %index, %zero
    : (tensor<4x2xf32>, tensor<1x2xf32>, tensor<i32>, tensor<i32>) -> tensor<4x2xf32>
  return %new : tensor<4x2xf32>
}";

/// A product whose contracted dimension is split over two devices.
const SPLIT_PRODUCT: &str = r#"
module @m attributes {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} {
  sdy.mesh @mesh = <["tp"=2]>
  func.func public @main(
      %x: tensor<1x4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {"tp"}]>},
      %w: tensor<4x2xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"tp"}, {}]>})
      -> (tensor<1x2xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {}]>}) {
    %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
      : (tensor<1x4xf32>, tensor<4x2xf32>) -> tensor<1x2xf32>
    return %y : tensor<1x2xf32>
  }
}"#;

/// A chain of products that takes the CPU long enough to be caught running.
fn slow_program() -> String {
    let size = 1024;
    let kind = format!("tensor<{size}x{size}xf32>");
    let mut body = String::new();
    let mut last = "%x".to_owned();
    for step in 0..4 {
        body += &format!(
            "%y{step} = stablehlo.dot_general {last}, %x, contracting_dims = [1] x [0] : ({kind}, \
             {kind}) -> {kind}\n"
        );
        last = format!("%y{step}");
    }
    format!("func.func public @main(%x: {kind}) -> {kind} {{ {body} return {last} : {kind} }}")
}

fn update_arguments(client: &Client) -> (Buffer, Buffer, Buffer) {
    let cache = put_f32(client, 0, &[4, 2], &[0.0; 8]);
    let row = put_f32(client, 0, &[1, 2], &[7.0, 8.0]);
    let index = client.to_device(0, ElementType::I32, &[], &2i32.to_le_bytes()).unwrap();
    (cache, row, index)
}

fn compile(client: &Client, text: &str) -> LoadedExecutable {
    client.compile(text, &CompileOptions::single_device()).expect("the program compiles")
}

#[test]
fn a_client_has_as_many_devices_as_asked_for() {
    for count in [1, 2, 8] {
        let client = client(count);
        assert_eq!(client.devices().len(), count as usize);
        assert_eq!(client.platform(), "cpu");
        assert!(!client.devices()[0].description().kind.is_empty());
    }
}

#[test]
fn a_client_without_devices_is_an_error() {
    let error = Client::new(&plugin(), &[("cpu_device_count", Value::Int(0))]).unwrap_err();
    assert!(matches!(error, PjrtError::NoDevices { .. }), "{error}");
}

#[test]
fn the_plugin_says_what_it_speaks() {
    let attributes = plugin().attributes().unwrap();
    let stablehlo = attributes.iter().find(|(name, _)| name == "stablehlo_current_version");
    assert!(matches!(stablehlo, Some((_, Value::Ints(version))) if version.len() == 3));
}

#[test]
fn an_unknown_option_value_is_an_error() {
    let error = Client::new(&plugin(), &[("cpu_device_count", Value::Text("two".into()))]);
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
}

#[test]
fn a_donated_buffer_is_updated_in_place() {
    let client = client(1);
    let update = compile(&client, UPDATE);
    let memory = update.executable().memory().unwrap();
    assert_eq!(memory.aliased, 32, "the whole matrix is aliased");

    let (cache, row, index) = update_arguments(&client);
    let arguments =
        vec![vec![Argument::Donate(cache), Argument::Borrow(&row), Argument::Borrow(&index)]];
    let execution = update.execute(arguments).unwrap();
    assert_eq!(read_f32(&execution.outputs[0][0]), [0., 0., 0., 0., 7., 8., 0., 0.]);
}

#[test]
fn a_borrowed_buffer_survives_a_program_that_would_alias_it() {
    let client = client(1);
    let update = compile(&client, UPDATE);
    let (cache, row, index) = update_arguments(&client);
    let arguments =
        vec![vec![Argument::Borrow(&cache), Argument::Borrow(&row), Argument::Borrow(&index)]];
    let execution = update.execute(arguments).unwrap();
    assert_eq!(read_f32(&execution.outputs[0][0])[4..6], [7., 8.]);
    assert_eq!(read_f32(&cache), [0.0; 8]);
}

#[test]
fn shardy_partitions_a_program_over_two_devices() {
    let client = client(2);
    let product = client.compile(SPLIT_PRODUCT, &CompileOptions::partitioned(2)).unwrap();
    let x = [1., 2., 3., 4.];
    let w = [1., 10., 2., 20., 3., 30., 4., 40.];
    let shards: Vec<(Buffer, Buffer)> = (0..2)
        .map(|device| {
            let x = put_f32(&client, device, &[1, 2], &x[device * 2..][..2]);
            (x, put_f32(&client, device, &[2, 2], &w[device * 4..][..4]))
        })
        .collect();
    let arguments =
        shards.iter().map(|(x, w)| vec![Argument::Borrow(x), Argument::Borrow(w)]).collect();
    let execution = product.execute(arguments).unwrap();
    for device in &execution.outputs {
        assert_eq!(device[0].dims().unwrap(), [1, 2]);
        assert_eq!(read_f32(&device[0]), [30., 300.]);
    }
    let optimized = product.executable().optimized_program().unwrap();
    let name = b"all-reduce";
    assert!(optimized.bytes.windows(name.len()).any(|window| window == name));
}

#[test]
fn execution_returns_before_the_device_is_done() {
    let client = client(1);
    let slow = compile(&client, &slow_program());
    let x = put_f32(&client, 0, &[1024, 1024], &vec![0.001; 1024 * 1024]);
    let execution = slow.execute(vec![vec![Argument::Borrow(&x)]]).unwrap();
    // Chained on an output that does not exist yet, and read back without waiting.
    let chained = slow.execute(vec![vec![Argument::Borrow(&execution.outputs[0][0])]]).unwrap();
    let copy = chained.outputs[0][0].to_host().unwrap();
    let event = chained.done.into_iter().next().unwrap();
    assert!(!event.is_ready().unwrap(), "eight large products were done at once");
    assert!(!copy.is_ready());

    let (sender, receiver) = mpsc::channel();
    event.on_ready(move |outcome| sender.send(outcome.is_ok()).unwrap()).unwrap();
    assert!(receiver.recv_timeout(Duration::from_secs(300)).unwrap());
    assert_eq!(copy.wait(deadline()).unwrap().len(), 4 * 1024 * 1024);
}

#[test]
fn a_missed_deadline_is_a_timeout_and_harms_nothing() {
    let client = client(1);
    let slow = compile(&client, &slow_program());
    let x = put_f32(&client, 0, &[1024, 1024], &vec![0.001; 1024 * 1024]);
    let execution = slow.execute(vec![vec![Argument::Borrow(&x)]]).unwrap();
    let copy = execution.outputs[0][0].to_host().unwrap();
    let error = copy.wait(Some(Instant::now())).unwrap_err();
    assert!(matches!(error, PjrtError::Timeout { .. }), "{error}");
    // The copy goes on without its reader, and the buffer can still be read.
    assert_eq!(read_f32(&execution.outputs[0][0]).len(), 1024 * 1024);
}

#[test]
fn serialized_executables_load_again() {
    let client = client(1);
    let options = CompileOptions::single_device();
    let bytes = compile(&client, UPDATE).executable().serialize().unwrap();
    let update = client.deserialize(&bytes, &options).unwrap();
    let (cache, row, index) = update_arguments(&client);
    let arguments =
        vec![vec![Argument::Donate(cache), Argument::Borrow(&row), Argument::Borrow(&index)]];
    let execution = update.execute(arguments).unwrap();
    assert_eq!(read_f32(&execution.outputs[0][0])[4..6], [7., 8.]);
}

#[test]
fn wrong_programs_are_errors() {
    let client = client(1);
    for text in ["nonsense", "func.func public @main() -> tensor<f32> { return %x : tensor<f32> }"]
    {
        let error = client.compile(text, &CompileOptions::single_device()).unwrap_err();
        assert!(matches!(error, PjrtError::Call { .. }), "{error}");
    }
    let error = client.compile(SPLIT_PRODUCT, &CompileOptions::partitioned(2)).unwrap_err();
    assert!(matches!(error, PjrtError::NoSuchDevice { index: 1, count: 1 }), "{error}");
}

#[test]
fn wrong_arguments_are_errors() {
    let client = client(1);
    let update = compile(&client, UPDATE);
    let row = put_f32(&client, 0, &[1, 2], &[0.0; 2]);
    let error = update.execute(vec![vec![Argument::Borrow(&row)]]).unwrap_err();
    assert!(matches!(error, PjrtError::Call { .. }), "{error}");
    let error = update.execute(vec![]).unwrap_err();
    assert!(matches!(error, PjrtError::Arguments { devices: 1, list: 0 }), "{error}");

    let error = client.to_device(0, ElementType::F32, &[2, 2], &[0; 15]).unwrap_err();
    assert!(matches!(error, PjrtError::HostSize { expected: 16, found: 15, .. }), "{error}");
    let error = client.to_device(1, ElementType::F32, &[], &[0; 4]).unwrap_err();
    assert!(matches!(error, PjrtError::NoSuchDevice { index: 1, count: 1 }), "{error}");
}

#[test]
fn the_cpu_plugin_has_no_topology_of_that_name() {
    let error = Topology::new(&plugin(), "v6e:2x2", &[]).unwrap_err();
    assert!(matches!(error, PjrtError::Call { .. } | PjrtError::Missing { .. }), "{error}");
}
