//! The table of formats in docs/model-files.md, against the code.

use backend_api::weights::{Format, Levels};

use super::gguf::has_type;

/// The line of a format: its block, bits a weight, where files have it, how each backend keeps it.
fn line(format: Format) -> String {
    let (elements, bytes) = (format.block_elements(), format.block_bytes());
    let in_files = match (has_type(format), format.is_quantized()) {
        (true, false) => "GGUF, safetensors",
        (true, true) => "GGUF",
        (false, _) => "safetensors",
    };
    let cpu = if format.is_quantized() { "in blocks" } else { "as stored" };
    let fields = format.fields(&vec![0; bytes]);
    let xla = match fields.as_ref().map(|fields| fields.levels) {
        Some(Levels::Less(_) | Levels::Signed | Levels::Integers(_)) => {
            let has_minima = fields.is_some_and(|fields| fields.minimum_of(0).is_some());
            let floats = if has_minima { 2.0 } else { 1.0 };
            let bits = 8.0 + 32.0 * floats / format.group_elements() as f64;
            format!("bytes and scales, {bits} bits")
        }
        _ => "expands".to_owned(),
    };
    let bits = 8.0 * bytes as f64 / elements as f64;
    format!("| {format} | {elements} | {bits} | {in_files} | {cpu} | {xla} |")
}

#[test]
fn the_documented_formats_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/model-files.md");
    let text = std::fs::read_to_string(path).expect("the page is there");
    let start = text.find("| format | elements of a block |").expect("the table is there");
    let table = text[start..].lines().skip(2).take_while(|line| line.starts_with('|'));
    let expected: Vec<String> = Format::ALL.into_iter().map(line).collect();
    assert_eq!(table.collect::<Vec<_>>(), expected);
}

#[test]
fn a_refused_type_says_what_is_supported() {
    let error = backend_api::weights::WeightsError::UnsupportedType {
        name: "blk.0.attn_q.weight".into(),
        kind: "IQ2_XXS".into(),
    };
    let message = error.to_string();
    for format in Format::ALL.into_iter().filter(|&format| has_type(format)) {
        assert!(message.contains(&format.to_string()), "{message} lacks {format}");
    }
    assert!(message.contains("IQ2_XXS") && !message.contains('\n'));
}
