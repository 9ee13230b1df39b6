//! The tiny model of each family on one device and on two, against transformers.

use engine_core::backend::Backend;
use engine_core::model::open_model;

use crate::comparison::check_model;
use crate::fixtures::{self, Expected};
use crate::support::{open, xla};

const FAMILIES: [&str; 12] = [
    "gemma2",
    "gemma3",
    "gemma3-wrapped",
    "glm4",
    "granite",
    "mistral",
    "mistral-small-3",
    "olmo2",
    "olmo3",
    "phi3",
    "phi4-mini",
    "smollm3",
];

#[test]
fn each_family_equals_transformers_on_1_and_2_devices() {
    let backends: Vec<Box<dyn Backend>> = [1, 2].map(|devices| open(&xla(devices))).into();
    for name in FAMILIES {
        let model = open_model(&fixtures::path(&format!("tiny/{name}"))).unwrap();
        let mut expected: Expected = fixtures::read(&format!("tiny/{name}/expected.json"));
        // The longest prompt, beyond the windows: each shape takes seconds to compile.
        expected.prompts.retain(|prompt| prompt.name == "ninety");
        assert_eq!(expected.prompts.len(), 1, "{name}");
        check_model(&backends, name, &model, &expected);
    }
}
