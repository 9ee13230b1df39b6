//! The program as its user sees it: which files it takes and leaves, and how it ends.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/llama-tied");
const LINE: &str = "{\"prompt\": \"a\", \"max_tokens\": 2, \"ignore_eos\": true}\n";

fn arguments(rest: &[&str]) -> Arguments {
    let fixed = ["offline_batch", "--model", MODEL, "--json", "--threads", "1"];
    let fixed = fixed.into_iter().chain(["--kv-memory", "1M"]);
    Arguments::try_parse_from(fixed.chain(rest.iter().copied())).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn folder_with_prompts() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.jsonl");
    fs::write(&prompts, LINE.repeat(3)).unwrap();
    (folder, prompts)
}

#[test]
fn answers_replace_what_was_in_their_file() {
    let (folder, prompts) = folder_with_prompts();
    let out = folder.path().join("out.jsonl");
    fs::write(&out, "old\n".repeat(10_000)).unwrap();
    run(&arguments(&["--prompts", text(&prompts), "--out", text(&out)])).unwrap();
    let answers = fs::read_to_string(&out).unwrap();
    assert_eq!(answers.lines().count(), 3);
    assert!(answers.ends_with('\n'));
    assert_eq!(fs::read_to_string(&prompts).unwrap(), LINE.repeat(3));
}

#[test]
fn out_that_is_the_prompts_own_file_is_refused_whatever_leads_there() {
    let (folder, prompts) = folder_with_prompts();
    let dotted = folder.path().join(".").join("prompts.jsonl");
    #[cfg(unix)]
    let links = {
        let (soft, hard) = (folder.path().join("soft"), folder.path().join("hard"));
        std::os::unix::fs::symlink(&prompts, &soft).unwrap();
        fs::hard_link(&prompts, &hard).unwrap();
        vec![soft, hard]
    };
    #[cfg(not(unix))]
    let links: Vec<PathBuf> = Vec::new();
    for out in [prompts.clone(), dotted].into_iter().chain(links) {
        let arguments = arguments(&["--prompts", text(&prompts), "--out", text(&out)]);
        let error = run(&arguments).unwrap_err();
        assert!(error.to_string().contains("the requests are read from"), "{error}");
        let opened = Prompts::open(Some(&prompts), crate::files::BUNDLED).unwrap();
        assert!(Answers::create(&out, &opened).is_err(), "not even if it appears meanwhile");
        assert_eq!(fs::read_to_string(&prompts).unwrap(), LINE.repeat(3));
    }
}

#[test]
fn a_wrong_model_leaves_the_answers_of_an_earlier_run_alone() {
    let (folder, prompts) = folder_with_prompts();
    let (old, new) = (folder.path().join("old.jsonl"), folder.path().join("new.jsonl"));
    fs::write(&old, "old\n").unwrap();
    for out in [&old, &new] {
        let mut arguments = arguments(&["--prompts", text(&prompts), "--out", text(out)]);
        let wrong = ["offline_batch", "--model", "./no/such/model"];
        arguments.engine = Arguments::try_parse_from(wrong).unwrap().engine;
        assert!(run(&arguments).unwrap_err().to_string().contains("does not exist"));
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "old\n");
    assert!(!new.exists());
}

#[test]
fn files_that_cannot_be_used_are_named_before_a_model_is_loaded() {
    let (folder, prompts) = folder_with_prompts();
    let nowhere = folder.path().join("no/such/out.jsonl");
    let cases = [
        (text(&nowhere), text(&prompts)),
        (text(folder.path()), text(&prompts)),
        ("out.jsonl", text(&nowhere)),
    ];
    for (out, prompts) in cases {
        let mut arguments = arguments(&["--prompts", prompts, "--out", out]);
        let wrong = ["offline_batch", "--model", "./no/such/model"];
        arguments.engine = Arguments::try_parse_from(wrong).unwrap().engine;
        let error = run(&arguments).unwrap_err();
        let line = understory::one_line(error.as_ref());
        assert!(line.starts_with("cannot ") && line.contains(": "), "{line}");
    }
}

#[test]
fn a_broken_model_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    fs::write(&model, "GGUF\u{9}\0\0\0").unwrap();
    let mut arguments = arguments(&[]);
    let broken = ["offline_batch", "--model", text(&model)];
    arguments.engine = Arguments::try_parse_from(broken).unwrap().engine;
    let line = understory::one_line(run(&arguments).unwrap_err().as_ref());
    assert!(line.contains("GGUF version 9 is not supported"), "{line}");
}

/// The program in a process of its own, since signals reach all of a process.
#[cfg(unix)]
mod process {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Names the file of answers to the process that is to be the program.
    const OUT: &str = "OFFLINE_BATCH_TEST_OUT";

    /// This is no test of its own: it is the program for the tests below, which start it.
    #[test]
    fn program() {
        let Ok(out) = std::env::var(OUT) else { return };
        let arguments = arguments(&["--prompts", "-", "--out", &out]);
        assert_eq!(start::run(|| run(&arguments)), ExitCode::SUCCESS);
    }

    fn start_program(out: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::process::program", "--nocapture", "--test-threads", "1"])
            .env(OUT, out)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
        // Far longer than it takes: whether it comes is what is tested, not when.
        let patience = Instant::now() + Duration::from_secs(120);
        while !is_there() {
            assert!(Instant::now() < patience, "{what} never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_interrupt_keeps_whole_lines_of_what_is_finished() {
        for signal in ["-INT", "-TERM"] {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out.jsonl");
            let mut program = start_program(&out);
            let mut input = program.stdin.take().unwrap();
            let lines = || fs::read_to_string(&out).unwrap_or_default();
            // The input stays open: answers don't wait for its end.
            for count in 1..=2 {
                input.write_all(LINE.as_bytes()).unwrap();
                wait_for("an answer", || lines().lines().count() == count);
            }
            let long =
                "{\"prompt\": \"a\", \"n\": 128, \"max_tokens\": 500, \"ignore_eos\": true}\n";
            input.write_all(long.repeat(40).as_bytes()).unwrap();

            let pid = program.id().to_string();
            assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
            let mut errors = String::new();
            BufReader::new(program.stderr.take().unwrap()).read_to_string(&mut errors).unwrap();
            assert!(!program.wait().unwrap().success());
            assert!(errors.contains("error: interrupted after 2 answers"), "{errors}");
            let lines = lines();
            assert!(lines.ends_with('\n'));
            for line in lines.as_bytes().lines() {
                let answer: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                assert_eq!(answer["usage"]["completion_tokens"], 2);
            }
        }
    }
}
