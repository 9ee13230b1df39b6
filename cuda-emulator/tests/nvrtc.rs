//! With NVRTC, which is fetched once: the fixtures are what it makes of the kernels.

use std::path::Path;

use cuda_emulator::nvrtc::{CompileOptions, Nvrtc, NvrtcError};

const KERNELS: [(&str, &str); 9] = [
    ("bugs", "compute_80"),
    ("decode", "compute_80"),
    ("functions", "compute_80"),
    ("hopper", "compute_90a"),
    ("language", "compute_80"),
    ("matvec", "compute_80"),
    ("norm", "compute_80"),
    ("prefill", "compute_80"),
    ("sample", "compute_80"),
];

/// NVRTC writes whole paths of source files; the fixtures hold their names.
fn without_directories(ptx: &str) -> String {
    let mut text = String::new();
    for line in ptx.lines() {
        match line.trim_start().strip_prefix(".file").and_then(|rest| rest.split_once('"')) {
            Some((number, path)) => {
                let name = path.rsplit('/').next().unwrap_or(path);
                text += &format!("\t.file{number}\"{name}\n");
            }
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

#[test]
fn fixtures_are_what_nvrtc_makes_of_the_kernels() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let nvrtc = Nvrtc::find().expect("NVRTC");
    assert_eq!(nvrtc.version().expect("a version"), (12, 9));
    for (kernel, architecture) in KERNELS {
        let options = CompileOptions {
            architecture: architecture.to_owned(),
            include: vec![root.join("kernels")],
            ..CompileOptions::default()
        };
        let source =
            std::fs::read_to_string(root.join(format!("kernels/{kernel}.cu"))).expect("a source");
        let compiled =
            nvrtc.compile(&source, &format!("{kernel}.cu"), &options).expect("it compiles");
        let path = root.join(format!("fixtures/{kernel}.ptx"));
        let ptx = without_directories(&compiled.ptx);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &ptx).expect("the fixture can be written");
        }
        let fixture = std::fs::read_to_string(&path).expect("the fixture");
        // Trailing blank lines are of no interest.
        assert!(
            fixture.trim_end() == ptx.trim_end(),
            "{} is out of date: run with UPDATE=1",
            path.display()
        );
    }
}

#[test]
fn errors_of_the_source_are_told_with_their_line() {
    let nvrtc = Nvrtc::find().expect("NVRTC");
    let source = "extern \"C\" __global__ void k(int* out) {\n    *out = missing;\n}\n";
    let error = nvrtc.compile(source, "wrong.cu", &CompileOptions::default()).unwrap_err();
    let NvrtcError::Compile { name, log } = error else { panic!("{error}") };
    assert_eq!(name, "wrong.cu");
    assert!(log.contains("wrong.cu(2): error: identifier \"missing\" is undefined"), "{log}");
}

#[test]
fn a_library_that_is_not_there_is_an_error() {
    let error = Nvrtc::open(Path::new("/no/such/libnvrtc.so")).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot load NVRTC from /no/such/libnvrtc.so"),
        "{error}"
    );
}

/// Everything that is fetched, into a cache that holds nothing: the hashes are checked.
#[test]
fn packages_are_fetched_into_an_empty_cache() {
    let cache = tempfile::tempdir().expect("a folder");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cuda-emulator"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/norm.cu"))
        .arg("--json")
        .env("UNDERSTORY_CACHE", cache.path())
        .env_remove("CUDA_EMULATOR_NVRTC")
        .env_remove("CUDA_EMULATOR_PTXAS")
        .output()
        .expect("the command starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(json[0]["ptxas"]["sm_80"]["registers"].as_u64() > Some(0), "{json}: {said}");
    let fetched = |path: &str| cache.path().join("pypi").join(path).is_file();
    assert!(fetched("nvidia-cuda-nvrtc-cu12-12.9.86/libnvrtc.so.12"));
    assert!(fetched("nvidia-cuda-nvcc-cu12-12.9.86/ptxas"));
}

/// A cache that can't be written, and a proxy that isn't there: an error that says what failed.
#[test]
fn a_package_that_cannot_be_fetched_is_an_error() {
    let run = |cache: &Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_cuda-emulator"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/norm.cu"))
            .env("UNDERSTORY_CACHE", cache)
            .env("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
            .env("PIP_RETRIES", "0")
            .env_remove("CUDA_EMULATOR_NVRTC")
            .output()
            .expect("the command starts")
    };
    let cache = tempfile::tempdir().expect("a folder");
    let output = run(cache.path());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot fetch nvidia-cuda-nvrtc-cu12==12.9.86 through pip"), "{said}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    assert_eq!(run(&file.path().join("inside")).status.code(), Some(2));
}
