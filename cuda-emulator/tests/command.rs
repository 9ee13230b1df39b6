//! The command.

use std::process::{Command, Output};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-emulator"));
    let file = format!("{FIXTURES}/{}", arguments[0]);
    command.arg(file).args(&arguments[1..]).output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn kernels_are_listed_with_what_they_take() {
    let output = run(&["norm.ptx"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = text(&output.stdout);
    assert!(listed.starts_with("rms_norm\n  parameters of [8, 8, 8, 8, 4, 4] bytes"), "{listed}");
    assert!(listed.contains("128 bytes of shared memory"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_slice(&run(&["norm.ptx", "--json"]).stdout).expect("JSON");
    assert_eq!(json[0]["kernel"], "rms_norm");
    assert_eq!(json[0]["static_shared"], 128);
}

#[test]
fn a_clean_run_shows_counts_and_results() {
    let output = run(&[
        "bugs.ptx",
        "--kernel",
        "touch",
        "--grid",
        "2",
        "--block",
        "32",
        "--arg",
        "i32[64]=iota",
        "--show",
        "3",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("0 errors"), "{shown}");
    assert!(shown.contains("buffer 0: [1.0, 2.0, 3.0]"), "{shown}");
    assert!(shown.contains("256 bytes loaded in 8 sectors"), "{shown}");
}

#[test]
fn what_is_wrong_ends_the_command_with_1() {
    let wrong =
        ["bugs.ptx", "--kernel", "touch", "--grid", "3", "--block", "32", "--arg", "i32[64]=zero"];
    let output = run(&wrong);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.contains("fault: touch: load of 4 bytes"), "{shown}");
    assert!(shown.contains("bugs.cu:6"), "{shown}");
    let race = ["bugs.ptx", "--kernel", "shared_race", "--block", "64", "--arg", "i32[64]"];
    assert_eq!(run(&race).status.code(), Some(1));
    let mut off = race.to_vec();
    off.extend(["--without", "shared-races,uninitialized-shared"]);
    assert_eq!(run(&off).status.code(), Some(0));
    let mut json = race.to_vec();
    json.push("--json");
    let report: serde_json::Value = serde_json::from_slice(&run(&json).stdout).expect("JSON");
    assert_eq!(report["reports"][0]["severity"], "error");
    assert_eq!(report["counts"]["blocks"], 1);
}

#[test]
fn what_cannot_be_run_ends_the_command_with_2() {
    for (arguments, reason) in [
        (vec!["bugs.ptx", "--kernel", "nothing"], "no kernel \"nothing\"; there are: touch"),
        (vec!["bugs.ptx", "--kernel", "touch"], "touch takes 1 arguments, 0 are given"),
        (
            vec!["bugs.ptx", "--kernel", "touch", "--arg", "i32[1]", "--sanitize", "some"],
            "no check \"some\"",
        ),
        (vec!["missing.ptx"], "No such file"),
        (
            vec!["bugs.ptx", "--kernel", "touch", "--arg", "i32[1]", "--block", "2000"],
            "a block of [2000, 1, 1]",
        ),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(reason), "{said}");
    }
}
