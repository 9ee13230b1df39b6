//! With NVRTC, which is fetched once: the fixtures are what it makes of the kernels.

use std::path::Path;

use cuda_emulator::nvrtc::{CompileOptions, Nvrtc, NvrtcError};

const KERNELS: [(&str, &str); 8] = [
    ("bugs", "compute_80"),
    ("decode", "compute_80"),
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
