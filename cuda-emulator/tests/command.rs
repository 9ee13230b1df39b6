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
fn registers_and_occupancy_come_from_ptxas() {
    let output = run(&["norm.ptx", "--block", "256", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let kernel = &json[0];
    for architecture in ["sm_80", "sm_89", "sm_90", "sm_100"] {
        let found = &kernel["ptxas"][architecture];
        let registers = found["registers"].as_u64().expect("a number");
        assert!((8..=40).contains(&registers), "{architecture}: {found}");
        assert_eq!(found["shared"], 128, "{architecture}");
        assert_eq!(found["spill_stores"], 0, "{architecture}");
    }
    // So few registers are never short: 64 or 48 warps.
    for (gpu, blocks) in
        [("A100", 8), ("H100", 8), ("H200", 8), ("B200", 8), ("L4", 6), ("RTX 4090", 6)]
    {
        assert_eq!(kernel["occupancy"][gpu]["blocks"], blocks, "{gpu}");
        assert_eq!(kernel["occupancy"][gpu]["limit"], "warps", "{gpu}");
    }
    let listed = text(&run(&["norm.ptx", "--block", "256"]).stdout);
    assert!(listed.contains("A100: 8 blocks of 256 threads a multiprocessor, 100 %"), "{listed}");
    assert!(listed.contains("0 spilled and 0 loaded back (ptxas)"), "{listed}");
}

#[test]
fn machine_code_is_shown_and_counted() {
    let output = run(&["prefill.ptx", "--sass", "sm_80", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["HMMA", "LDSM", "LDGSTS", "EXIT"] {
        assert!(json["instructions"][name].as_u64() > Some(0), "{name}: {}", json["instructions"]);
    }
    let refused = run(&["prefill.ptx", "--sass", "sm_70"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("ptxas refuses the PTX for sm_70"));
}

#[test]
fn a_roofline_is_estimated_for_every_device() {
    let arguments = [
        "bugs.ptx",
        "--kernel",
        "touch",
        "--grid",
        "1024",
        "--block",
        "256",
        "--arg",
        "i32[262144]=iota",
        "--roofline",
    ];
    let json: serde_json::Value =
        serde_json::from_slice(&run(&[&arguments[..], &["--json"]].concat()).stdout).expect("JSON");
    let estimates = json["roofline"].as_array().expect("a list");
    assert_eq!(estimates.len(), 6);
    for one in estimates {
        assert_eq!(one["bound"], "memory", "{one}");
    }
    // A megabyte is read and written: at 2.039 TB/s.
    let time = estimates[0]["microseconds"].as_f64().expect("a number");
    assert!((time - 2.0 * 1048.576e3 / 2.039e6).abs() < 0.01, "{time}");
    let shown = text(&run(&arguments).stdout);
    assert!(shown.contains("real kernels take longer"), "{shown}");
    assert!(shown.contains("RTX 4090"), "{shown}");
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
fn a_launch_that_costs_more_than_its_record_ends_the_command_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cost.json");
    let file = file.to_str().expect("UTF-8");
    let launch = |blocks: &'static str| {
        let start = ["bugs.ptx", "--kernel", "touch", "--grid", blocks, "--block", "32"];
        [&start[..], &["--arg", "i32[128]=iota"]].concat()
    };
    let with = |blocks, more: &[&str]| run(&[&launch(blocks)[..], more].concat());
    assert_eq!(with("2", &["--record", file]).status.code(), Some(0));
    assert_eq!(with("2", &["--gate", file]).status.code(), Some(0));
    assert_eq!(with("1", &["--gate", file]).status.code(), Some(0));
    let output = with("3", &["--gate", file]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("costs more: 12 sectors loaded, 8 are recorded"), "{shown}");
    let json: serde_json::Value =
        serde_json::from_slice(&with("3", &["--gate", file, "--json"]).stdout).expect("JSON");
    assert_eq!(json["excess"][0]["what"], "sectors loaded");
    assert_eq!(json["counts"]["by_class"]["global"], 6);
    std::fs::write(file, "{}").expect("the file can be written");
    assert_eq!(with("2", &["--gate", file]).status.code(), Some(2));
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
