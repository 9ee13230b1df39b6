//! What a GGUF file may hold, and what it may do wrong.

use proptest::prelude::*;

use super::*;
use crate::weights::{Format, Shape, TensorError};

/// The formats that ggml has a type for.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|&format| reader::kind_of(format).is_some())
}

/// Every metadata type, every format.
fn small_file() -> Vec<u8> {
    let mut writer = all_values()
        .into_iter()
        .fold(GgufWriter::new(), |writer, (key, value)| writer.metadata(key, value));
    for format in formats() {
        writer = writer.tensor(&format.to_string(), &ramp(format));
    }
    writer.tensor("vector", &vector()).finish()
}

fn all_values() -> Vec<(&'static str, Value)> {
    vec![
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-30_000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("f32", Value::F32(0.5)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("Ġä".into())),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(-0.25)),
        ("u8s", Value::Array(Array::U8(vec![1, 2]))),
        ("i8s", Value::Array(Array::I8(vec![-1]))),
        ("u16s", Value::Array(Array::U16(vec![1, 2]))),
        ("i16s", Value::Array(Array::I16(vec![-1]))),
        ("u32s", Value::Array(Array::U32(vec![7]))),
        ("i32s", Value::Array(Array::I32(vec![-7, 7]))),
        ("f32s", Value::Array(Array::F32(vec![1.5]))),
        ("bools", Value::Array(Array::Bool(vec![true, false]))),
        ("strings", Value::Array(Array::String(vec![String::new(), "b".into()]))),
        ("nested", Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::Bool(vec![])]))),
        ("u64s", Value::Array(Array::U64(vec![u64::MAX]))),
        ("i64s", Value::Array(Array::I64(vec![i64::MIN]))),
        ("f64s", Value::Array(Array::F64(vec![]))),
    ]
}

fn ramp(format: Format) -> Tensor<'static> {
    let cols = format.block_elements().max(32);
    let values: Vec<f32> = (0..2 * cols).map(|i| i as f32 - 20.0).collect();
    Tensor::from_f32(format, Shape::matrix(2, cols), &values).expect("whole blocks")
}

fn vector() -> Tensor<'static> {
    Tensor::from_f32(Format::F32, Shape::Vector(3), &[1.0, 2.0, 3.0]).expect("valid")
}

/// Reads everything readable in a file that opens.
fn read_all(bytes: Vec<u8>) -> Result<(), WeightFileError> {
    let file = GgufFile::from_bytes(bytes)?;
    for tensor in file.tensor_names().flat_map(|name| file.tensor(name)) {
        tensor.to_f32();
    }
    Ok(())
}

fn fault(bytes: Vec<u8>) -> GgufError {
    match read_all(bytes) {
        Err(WeightFileError::Gguf { source, .. }) => source,
        other => panic!("expected a malformed file, got {other:?}"),
    }
}

/// The file with `old`, which must be in it once, replaced.
fn replaced(file: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let starts: Vec<usize> =
        file.windows(old.len()).enumerate().filter(|(_, w)| *w == old).map(|(i, _)| i).collect();
    assert_eq!(starts.len(), 1, "the pattern must be unique");
    [&file[..starts[0]], new, &file[starts[0] + old.len()..]].concat()
}

#[test]
fn everything_written_reads_back() {
    let file = GgufFile::from_bytes(small_file()).expect("well-formed");
    assert_eq!(file.version(), 3);
    for (key, value) in all_values() {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
    assert_eq!(file.metadata().iter().count(), all_values().len());
    for format in formats() {
        let tensor = file.tensor(&format.to_string()).expect("present");
        assert_eq!(tensor, ramp(format));
        assert!(matches!(tensor.into_data(), std::borrow::Cow::Borrowed(_)));
    }
    assert_eq!(file.tensor("vector").expect("present"), vector());
    assert_eq!(file.tensor_names().count(), formats().count() + 1);
    assert!(matches!(file.tensor("absent"), Err(WeightsError::MissingTensor { .. })));
}

#[test]
fn a_mapped_file_reads_like_one_in_memory() {
    let path = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(path.path(), small_file()).expect("writable");
    let file = GgufFile::open(path.path()).expect("well-formed");
    assert_eq!(file.tensor("vector").expect("present"), vector());
    assert_eq!(file.path(), path.path());
}

#[test]
fn version_2_is_read_and_others_are_refused() {
    let mut file = small_file();
    file[4] = 2;
    assert_eq!(GgufFile::from_bytes(file.clone()).expect("same layout").version(), 2);
    file[4] = 4;
    assert_eq!(fault(file.clone()), GgufError::UnsupportedVersion { version: 4 });
    file[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert_eq!(fault(file), GgufError::UnsupportedVersion { version: 3 << 24 });
}

#[test]
fn every_shorter_file_is_a_typed_error() {
    let file = small_file();
    for length in 0..file.len() {
        let error = fault(file[..length].to_vec());
        let expected =
            matches!(error, GgufError::Truncated { .. } | GgufError::TensorOutOfRange { .. });
        assert!(expected, "{length} bytes: {error}");
    }
}

#[test]
fn lying_counts_end_with_the_file_and_allocate_nothing() {
    let file = small_file();
    for position in [8, 16] {
        for count in [u64::MAX, 1 << 62, 1 << 40] {
            let mut lying = file.clone();
            lying[position..position + 8].copy_from_slice(&count.to_le_bytes());
            // Too many pairs run into the tensors, whose bytes make no sense as pairs.
            let _ = fault(lying);
        }
    }
    // A string, and arrays of every kind, of absurd length.
    for kind in (0..=12).filter(|&kind| kind != 9) {
        for count in [u64::MAX, 1 << 61, 1 << 40] {
            let mut lying = b"GGUF\x03\0\0\0".to_vec();
            lying.extend([0u64, 1, 1].iter().flat_map(|n| n.to_le_bytes()));
            lying.push(b'k');
            lying.extend(9u32.to_le_bytes());
            lying.extend(u32::to_le_bytes(kind));
            lying.extend(u64::to_le_bytes(count));
            lying.extend([0; 16]);
            let error = fault(lying);
            assert!(matches!(error, GgufError::Truncated { .. }), "type {kind}: {error}");
        }
    }
}

#[test]
fn nonsense_in_the_header_is_refused() {
    let mut magic = small_file();
    magic[0] = b'X';
    assert_eq!(fault(magic), GgufError::BadMagic { found: *b"XGUF" });

    let mut utf8 = GgufWriter::new().metadata("key", Value::String("text".into())).finish();
    let last = utf8.len() - 1;
    utf8[last] = 0xff;
    let error = fault(utf8);
    assert!(matches!(error, GgufError::BadUtf8 { what: "a metadata value", .. }), "{error}");

    let mut boolean = GgufWriter::new().metadata("key", Value::Bool(true)).finish();
    *boolean.last_mut().expect("not empty") = 2;
    assert!(matches!(fault(boolean), GgufError::BadBool { found: 2, .. }));

    let number = GgufWriter::new().metadata("key", Value::U8(0)).finish();
    let unknown = replaced(&number, b"key\0\0\0\0", b"key\x0d\0\0\0");
    assert!(matches!(fault(unknown), GgufError::UnknownValueType { kind: 13, .. }));

    let twice =
        GgufWriter::new().metadata("key", Value::U8(0)).metadata("key", Value::U8(1)).finish();
    assert_eq!(fault(twice), GgufError::DuplicateKey { key: "key".into() });

    let mut nested = b"GGUF\x03\0\0\0".to_vec();
    nested.extend([0u64, 1, 1].iter().flat_map(|n| n.to_le_bytes()));
    nested.push(b'k');
    nested.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    assert!(matches!(fault(nested), GgufError::NestedTooDeep { .. }));
}

#[test]
fn an_alignment_is_a_power_of_two() {
    for alignment in [0u64, 3, 48, 1 << 32, u64::MAX] {
        let file = GgufWriter::new().metadata("general.alignment", Value::U64(alignment)).finish();
        assert_eq!(fault(file), GgufError::BadAlignment { alignment });
    }
    let text = Value::String("32".into());
    let file = GgufWriter::new().metadata("general.alignment", text).finish();
    assert!(matches!(fault(file), GgufError::WrongType { .. }));
    // Larger than the file: no room for tensors, but none are there.
    let file = GgufWriter::new().metadata("general.alignment", Value::U32(1 << 31)).finish();
    assert!(read_all(file).is_ok());
}

#[test]
fn lies_about_a_tensor_are_refused() {
    let raw = |dimensions: &[u64], kind| {
        GgufWriter::new().raw_tensor("t", dimensions, kind, &[0; 64]).finish()
    };
    assert!(read_all(raw(&[16], 0)).is_ok());
    assert!(matches!(fault(raw(&[17], 0)), GgufError::TensorOutOfRange { size: 68, .. }));
    assert!(matches!(
        fault(raw(&[33], 8)),
        GgufError::Tensor { source, .. } if matches!(*source, TensorError::RaggedRow { cols: 33, .. })
    ));
    for dimensions in [[u64::MAX, 1], [u64::MAX, u64::MAX], [1 << 33, 1 << 33]] {
        let error = fault(raw(&dimensions, 0));
        let expected = match &error {
            GgufError::Tensor { source, .. } => matches!(**source, TensorError::TooLarge { .. }),
            error => matches!(error, GgufError::TensorOutOfRange { .. }),
        };
        assert!(expected, "{dimensions:?}: {error}");
    }
    assert!(read_all(raw(&[0, u64::MAX], 0)).is_ok(), "rows without elements take no bytes");
    assert!(matches!(
        fault(raw(&[1, 1, 1, 1, 1], 0)),
        GgufError::TooManyDimensions { dimensions: 5, .. }
    ));
    let twice = GgufWriter::new().tensor("t", &vector()).tensor("t", &vector()).finish();
    assert_eq!(fault(twice), GgufError::DuplicateTensor { name: "t".into() });

    // The offset is the eight bytes after the type, which follows the dimension.
    let tensor = raw(&[16], 0);
    let mut start = 16u64.to_le_bytes().to_vec();
    start.extend(0u32.to_le_bytes());
    let at = |offset: u64| {
        let old = [start.as_slice(), &0u64.to_le_bytes()].concat();
        let new = [start.as_slice(), &offset.to_le_bytes()].concat();
        fault(replaced(&tensor, &old, &new))
    };
    assert!(matches!(at(1), GgufError::MisalignedTensor { offset: 1, alignment: 32, .. }));
    assert!(matches!(at(32), GgufError::TensorOutOfRange { offset: 32, available: 64, .. }));
    let far = u64::MAX - 31;
    assert!(matches!(at(far), GgufError::TensorOutOfRange { offset, .. } if offset == far));
}

#[test]
fn tensors_that_share_bytes_are_refused_by_name() {
    let with_kind = |kind: u32| {
        GgufWriter::new()
            .raw_tensor("a", &[16], 0, &[0; 64])
            .raw_tensor("b", &[24], kind, &[0; 96])
            .finish()
    };
    for kind in [0, 16] {
        let file = with_kind(kind);
        assert!(GgufFile::from_bytes(file.clone()).is_ok());
        let mut start = 24u64.to_le_bytes().to_vec();
        start.extend(kind.to_le_bytes());
        for offset in [0u64, 32] {
            let old = [start.as_slice(), &64u64.to_le_bytes()].concat();
            let new = [start.as_slice(), &offset.to_le_bytes()].concat();
            let error = fault(replaced(&file, &old, &new));
            assert!(matches!(error, GgufError::OverlappingTensors { .. }), "{offset}: {error}");
        }
    }
}

#[test]
fn a_name_of_a_megabyte_is_cut_in_messages() {
    let name = "x".repeat(1 << 20);
    let twice = GgufWriter::new().tensor(&name, &vector()).tensor(&name, &vector()).finish();
    assert!(fault(twice).to_string().len() < 1000);
    let file = GgufFile::from_bytes(small_file()).expect("well-formed");
    let error = file.tensor(&name).expect_err("absent");
    assert!(error.to_string().len() < 1000);
}

#[test]
fn what_cannot_be_read_is_named() {
    let file = GgufWriter::new()
        .raw_tensor("quantized", &[256], 16, &[0; 210])
        .raw_tensor("future", &[256], 99, &[0; 210])
        .raw_tensor("hypercube", &[1, 1, 1, 1], 0, &[0; 4])
        .raw_tensor("scalar", &[], 0, &[0; 4])
        .finish();
    let file = GgufFile::from_bytes(file).expect("well-formed");
    for (tensor, expected) in [("quantized", "IQ2_XXS"), ("future", "type 99")] {
        let error = file.tensor(tensor).expect_err("unsupported");
        assert!(
            matches!(&error, WeightsError::UnsupportedType { name, kind } if name == tensor && kind == expected),
            "{error}"
        );
    }
    for (tensor, expected) in [("hypercube", vec![1, 1, 1, 1]), ("scalar", vec![])] {
        let error = file.tensor(tensor).expect_err("unsupported");
        assert!(
            matches!(&error, WeightsError::UnsupportedRank { shape, .. } if *shape == expected),
            "{error}"
        );
    }
}

#[test]
fn a_stack_of_matrices_is_written_and_read_with_its_three_dimensions() {
    let values: Vec<f32> = (0..3 * 2 * 32).map(|i| i as f32).collect();
    let stack = Tensor::from_f32(Format::Q8_0, Shape::stack(3, 2, 32), &values).expect("blocks");
    let file = GgufWriter::new().tensor("experts", &stack).finish();
    let file = GgufFile::from_bytes(file).expect("well-formed");
    assert_eq!(file.tensor("experts").expect("readable"), stack);
}

#[test]
fn metadata_getters_check_types() {
    let file = GgufFile::from_bytes(small_file()).expect("well-formed");
    let metadata = file.metadata();
    assert_eq!(metadata.string("string"), Ok(Some("Ġä")));
    assert_eq!(metadata.bool("bool"), Ok(Some(true)));
    assert_eq!(metadata.unsigned("u16"), Ok(Some(60_000)));
    assert_eq!(metadata.float("f64"), Ok(Some(-0.25)));
    assert_eq!(metadata.integers("i32s"), Ok(Some(vec![-7, 7])));
    assert_eq!(metadata.strings("strings").map(|s| s.map(<[_]>::len)), Ok(Some(2)));
    assert_eq!(metadata.string("absent"), Ok(None));
    assert_eq!(
        metadata.required("absent", Metadata::string),
        Err(GgufError::MissingKey { key: "absent".into() })
    );
    assert_eq!(
        metadata.unsigned("i8"),
        Err(GgufError::WrongType {
            key: "i8".into(),
            expected: "a non-negative integer",
            found: "an i8"
        })
    );
    assert!(metadata.string("u8").is_err());
    assert!(metadata.bool("u8").is_err());
    assert!(metadata.float("u8").is_err());
    assert!(metadata.strings("u8s").is_err());
    assert!(metadata.integers("strings").is_err());
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = small_file();
        for (index, byte) in flips {
            let position = index.index(file.len());
            file[position] = byte;
        }
        // Some flips only change numbers: those files still read.
        let _ = read_all(file);
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(tail);
        let _ = read_all(file);
    }
}

#[test]
fn tensors_without_elements_open_and_cannot_be_read() {
    let shapes = [Shape::stack(1, 1 << 40, 0), Shape::matrix(0, 1 << 40), Shape::Vector(0)];
    let names = ["stack", "matrix", "vector"];
    let writer = names.into_iter().zip(shapes).fold(GgufWriter::new(), |writer, (name, shape)| {
        writer.tensor(name, &Tensor::from_f32(Format::F32, shape, &[]).expect("no elements"))
    });
    let file = GgufFile::from_bytes(writer.finish()).expect("well-formed");
    for (name, shape) in names.into_iter().zip(shapes) {
        assert!(matches!(
            file.tensor(name),
            Err(WeightsError::UnsupportedRank { shape: found, .. }) if found == shape.dims()
        ));
    }
}
