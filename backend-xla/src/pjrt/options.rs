//! Named values, and the compile options as a protocol buffer.

use std::fmt;

use super::{plugin, sys};

/// An option or attribute of a plugin, a device or an executable.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A string.
    Text(String),
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
    /// A truth value.
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(value) => formatter.write_str(value),
            Self::Int(value) => write!(formatter, "{value}"),
            Self::Ints(value) => write!(formatter, "{value:?}"),
            Self::Float(value) => write!(formatter, "{value}"),
            Self::Bool(value) => write!(formatter, "{value}"),
        }
    }
}

/// The C form of named values. They borrow from `values`.
pub(super) fn named_values(values: &[(&str, Value)]) -> Vec<sys::PJRT_NamedValue> {
    let named = |(name, value): &(&str, Value)| {
        let (type_, inner, value_size) = match value {
            Value::Text(text) => (
                sys::PJRT_NamedValue_kString,
                sys::PJRT_NamedValue__bindgen_ty_1 { string_value: text.as_ptr().cast() },
                text.len(),
            ),
            Value::Int(value) => (
                sys::PJRT_NamedValue_kInt64,
                sys::PJRT_NamedValue__bindgen_ty_1 { int64_value: *value },
                1,
            ),
            Value::Ints(values) => (
                sys::PJRT_NamedValue_kInt64List,
                sys::PJRT_NamedValue__bindgen_ty_1 { int64_array_value: values.as_ptr() },
                values.len(),
            ),
            Value::Float(value) => (
                sys::PJRT_NamedValue_kFloat,
                sys::PJRT_NamedValue__bindgen_ty_1 { float_value: *value },
                1,
            ),
            Value::Bool(value) => (
                sys::PJRT_NamedValue_kBool,
                sys::PJRT_NamedValue__bindgen_ty_1 { bool_value: *value },
                1,
            ),
        };
        sys::PJRT_NamedValue {
            struct_size: size_of::<sys::PJRT_NamedValue>(),
            name: name.as_ptr().cast(),
            name_size: name.len(),
            type_,
            __bindgen_anon_1: inner,
            value_size,
            ..Default::default()
        }
    };
    values.iter().map(named).collect()
}

/// Copies the plugin's named values. Values of a kind that a later version added are left out.
///
/// # Safety
///
/// `start` points to `count` named values that the plugin filled in, unless `count` is zero.
pub(super) unsafe fn read_values(
    start: *const sys::PJRT_NamedValue,
    count: usize,
) -> Vec<(String, Value)> {
    if count == 0 || start.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller vouches for the array; the kind says which field of the union is set, and
    // the size how long the string or list is.
    unsafe {
        let values = std::slice::from_raw_parts(start, count);
        let read = |named: &sys::PJRT_NamedValue| {
            let inner = &named.__bindgen_anon_1;
            let value = match named.type_ {
                sys::PJRT_NamedValue_kString => {
                    Value::Text(plugin::read_string(inner.string_value, named.value_size))
                }
                sys::PJRT_NamedValue_kInt64 => Value::Int(inner.int64_value),
                sys::PJRT_NamedValue_kInt64List if named.value_size == 0 => Value::Ints(Vec::new()),
                sys::PJRT_NamedValue_kInt64List => Value::Ints(
                    std::slice::from_raw_parts(inner.int64_array_value, named.value_size).to_vec(),
                ),
                sys::PJRT_NamedValue_kFloat => Value::Float(inner.float_value),
                sys::PJRT_NamedValue_kBool => Value::Bool(inner.bool_value),
                _ => return None,
            };
            Some((plugin::read_string(named.name, named.name_size), value))
        };
        values.iter().filter_map(read).collect()
    }
}

/// How a program is compiled: over how many devices, and with which XLA flags.
///
/// A program is one SPMD module over `partitions` devices, numbered from zero; Shardy partitions
/// it by its `sdy.sharding` annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileOptions {
    partitions: usize,
    overrides: Vec<(String, String)>,
}

impl CompileOptions {
    /// One device, no partitioner.
    pub fn single_device() -> Self {
        Self::partitioned(1)
    }

    /// One program over `partitions` devices, partitioned by Shardy. One partition is one device.
    pub fn partitioned(partitions: usize) -> Self {
        Self { partitions: partitions.max(1), overrides: Vec::new() }
    }

    /// Sets a flag of XLA's debug options or of the plugin, such as
    /// `xla_tpu_scoped_vmem_limit_kib`. The value is read as true, false, an integer, or text.
    pub fn with_override(mut self, name: &str, value: &str) -> Self {
        self.overrides.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The devices that the program runs on.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// The options as a serialized `xla.CompileOptionsProto`. The field numbers are those of
    /// `xla/pjrt/proto/compile_options.proto` and `xla/xla_data.proto`.
    pub fn to_proto(&self) -> Vec<u8> {
        let partitions = self.partitions as i64;
        let mut assignment = Message::default();
        assignment.int(1, 1); // replica_count
        assignment.int(2, partitions); // computation_count
        for partition in 0..partitions {
            let mut ids = Message::default();
            ids.packed(1, &[partition]); // replica_device_ids
            assignment.message(3, &ids); // computation_devices
        }
        let mut build = Message::default();
        build.int(1, -1); // device_ordinal: not one device
        build.int(4, 1); // num_replicas
        build.int(5, partitions); // num_partitions
        if self.partitions > 1 {
            build.int(6, 1); // use_spmd_partitioning
        }
        build.message(9, &assignment); // device_assignment
        if self.partitions > 1 {
            build.int(19, 1); // use_shardy_partitioner
        }
        let mut options = Message::default();
        options.message(3, &build); // executable_build_options
        for (name, value) in &self.overrides {
            let mut inner = Message::default(); // OptionOverrideProto
            match (value.as_str(), value.parse::<i64>()) {
                ("true", _) => inner.int(2, 1),
                ("false", _) => inner.int(2, 0),
                (_, Ok(number)) => inner.int(3, number),
                (text, Err(_)) => inner.bytes(1, text.as_bytes()),
            }
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, &inner);
            options.message(7, &entry); // env_option_overrides
        }
        options.0
    }
}

/// A protocol buffer being written: the two wire types that the options need.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const LENGTH_DELIMITED: u64 = 2;

    fn int(&mut self, field: u64, value: i64) {
        self.varint(field << 3 | Self::VARINT);
        self.varint(value as u64);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | Self::LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    fn packed(&mut self, field: u64, values: &[i64]) {
        let mut inner = Message::default();
        for &value in values {
            inner.varint(value as u64);
        }
        self.message(field, &inner);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn one_device_encodes_to_the_bytes_that_plugins_take() {
        assert_eq!(
            hex(&CompileOptions::single_device().to_proto()),
            "1a1a08ffffffffffffffffff01200128014a09080110011a030a0100"
        );
    }

    #[test]
    fn four_partitions_encode_to_the_bytes_that_plugins_take() {
        assert_eq!(
            hex(&CompileOptions::partitioned(4).to_proto()),
            "1a2e08ffffffffffffffffff01200128043001\
             4a18080110041a030a01001a030a01011a030a01021a030a0103980101"
        );
    }

    #[test]
    fn overrides_keep_their_type() {
        let options = CompileOptions::single_device()
            .with_override("a", "true")
            .with_override("b", "7")
            .with_override("c", "text");
        let hex = hex(&options.to_proto());
        assert!(
            hex.ends_with(
                "3a070a016112021001 3a070a016212021807 3a0b0a016312060a0474657874"
                    .replace(' ', "")
                    .as_str()
            )
        );
    }

    #[test]
    fn values_survive_the_c_form() {
        let values = [
            ("text", Value::Text("two words".into())),
            ("int", Value::Int(-3)),
            ("ints", Value::Ints(vec![1, 2, 3])),
            ("none", Value::Ints(vec![])),
            ("float", Value::Float(0.5)),
            ("bool", Value::Bool(true)),
        ];
        let named = named_values(&values);
        // SAFETY: `named` borrows from `values`, which is alive.
        let read = unsafe { read_values(named.as_ptr(), named.len()) };
        let expected: Vec<_> = values.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(read, expected);
    }
}
