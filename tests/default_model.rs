//! Fetches the default model as the examples do.

use understory::source::{FetchOptions, ModelSource};

#[test]
fn default_model_is_fetched_and_then_found_without_a_network() {
    let path = ModelSource::Default.resolve(&FetchOptions::default(), &mut ()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 98_362_432);
    let mut options = FetchOptions::default();
    options.offline = true;
    assert_eq!(ModelSource::Default.resolve(&options, &mut ()).unwrap(), path);
}

#[test]
fn path_that_is_not_there_is_an_error() {
    let source: ModelSource = "./no/such/model.gguf".parse().unwrap();
    let error = source.resolve(&FetchOptions::default(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}
