//! Whatever the text, the shape or the bytes: an error or a report, never a panic.

use std::path::Path;
use std::sync::OnceLock;

use cuda_emulator::{Launch, Memory, Options, Program, launch};
use proptest::prelude::*;

/// Good PTX, and the corpus of PTX that is wrong.
fn texts() -> &'static [String] {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = |folder: &str| {
            let entries = std::fs::read_dir(root.join(folder)).expect("a folder");
            entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
        };
        let mut paths = files("fixtures");
        // One text of the corpus for each good one is enough.
        paths.extend(files("tests/bad_ptx").into_iter().step_by(4));
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "ptx"));
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).expect("a text")).collect()
    })
}

/// A change of the text. Places are shares of its length, in parts of 65536.
#[derive(Debug, Clone)]
enum Change {
    Remove {
        at: u16,
        count: u8,
    },
    Insert {
        at: u16,
        piece: String,
    },
    /// Replaces one word by another of the text.
    Swap {
        at: u16,
        from: u16,
    },
    /// Repeats a line elsewhere.
    Line {
        at: u16,
        from: u16,
    },
    Number {
        at: u16,
        value: u64,
    },
}

fn change() -> impl Strategy<Value = Change> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ";",
        ",",
        ":",
        "::",
        ".",
        "@",
        "!",
        "|",
        "+",
        "-",
        "0f",
        "0d1",
        "\"",
        "/*",
        "//",
        "%r",
        "%p1",
        "%rd1",
        ".reg .b32 %x<99999>;",
        ".shared .b8 s[99999999];",
        "ret;",
        "bra ",
        "call ",
        ".func ",
        ".entry ",
        "bar.sync 0;",
        "99999999999999999999",
        "0xFFFFFFFFFFFFFFFF",
        "é",
        "_",
        "mov.b64 %rd1, {%r1, %r2};",
        ".param .b8 p[16]",
        "ld.param.u64 %rd1, [%rd1];",
        "exit;",
        ".v4",
        ".sync",
    ]);
    prop_oneof![
        (any::<u16>(), 1..40u8).prop_map(|(at, count)| Change::Remove { at, count }),
        (any::<u16>(), piece)
            .prop_map(|(at, piece)| Change::Insert { at, piece: piece.to_owned() }),
        (any::<u16>(), any::<u16>()).prop_map(|(at, from)| Change::Swap { at, from }),
        (any::<u16>(), any::<u16>()).prop_map(|(at, from)| Change::Line { at, from }),
        (any::<u16>(), any::<u64>()).prop_map(|(at, value)| Change::Number { at, value }),
    ]
}

/// The place of a share, moved to the beginning of a character.
fn place(text: &str, share: u16) -> usize {
    let mut at = text.len() * usize::from(share) / 65536;
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The word around or after a place.
fn word(text: &str, share: u16) -> std::ops::Range<usize> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_$%.".contains(c);
    let rest = &text[place(text, share)..];
    let start = place(text, share) + rest.find(is_word).unwrap_or(0);
    let length = text[start..].find(|c| !is_word(c)).unwrap_or(0);
    start..start + length
}

fn apply(text: &mut String, change: &Change) {
    match change {
        Change::Remove { at, count } => {
            let start = place(text, *at);
            let mut end = (start + usize::from(*count)).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(start..end, "");
        }
        Change::Insert { at, piece } => text.insert_str(place(text, *at), piece),
        Change::Swap { at, from } => {
            let new = text[word(text, *from)].to_owned();
            text.replace_range(word(text, *at), &new);
        }
        Change::Line { at, from } => {
            let rest = &text[place(text, *from)..];
            let line = rest.lines().nth(1).unwrap_or_default().to_owned() + "\n";
            let start = place(text, *at);
            let to = text[start..].find('\n').map_or(text.len(), |end| start + end + 1);
            text.insert_str(to, &line);
        }
        Change::Number { at, value } => {
            text.replace_range(word(text, *at), &value.to_string());
        }
    }
}

/// Loads a text, and runs all of its kernels that compile, each for a short while.
fn exercise(text: &str, bytes: &[u8], threads: u32) {
    let mut memory = Memory::with_capacity(1 << 26);
    let Ok(program) = Program::load(text, &mut memory) else { return };
    let names: Vec<String> = program.kernel_names().map(str::to_owned).collect();
    let room = memory.allocate(1 << 16).expect("memory");
    memory.fill(room, &[1], 1 << 16).expect("in bounds");
    for name in names {
        let Ok(kernel) = program.kernel(&name) else { continue };
        let mut block = vec![0u8; kernel.parameter_bytes()];
        for (index, place) in block.chunks_mut(8).enumerate() {
            // Some parameters are good addresses, others anything.
            let address = (room + 4096 * index as u64).to_le_bytes();
            let source: &[u8] = if bytes.len() > index && bytes[index].is_multiple_of(4) {
                bytes
            } else {
                &address
            };
            for (to, from) in place.iter_mut().zip(source) {
                *to = *from;
            }
        }
        let shape =
            Launch { grid: [2, 1, 1], block: [threads, 1, 1], dynamic_shared: 512, cluster: None };
        let options = Options { threads: Some(1), instruction_limit: 20_000, ..Options::default() };
        // A launch may be refused; whatever the kernel does ends up in reports.
        _ = launch(&kernel, &memory, &shape, &block, &options);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn changed_ptx_is_refused_or_runs(
        text in 0..texts().len(),
        changes in prop::collection::vec(change(), 1..6),
        bytes in prop::collection::vec(any::<u8>(), 8..64),
        threads in 1..200u32,
    ) {
        let mut text = texts()[text].clone();
        for change in &changes {
            apply(&mut text, change);
        }
        exercise(&text, &bytes, threads);
    }

    #[test]
    fn any_text_is_refused_or_parsed(text in "\\PC*") {
        _ = cuda_emulator::ptx::Module::parse(&text);
    }

    #[test]
    fn any_shape_is_refused_or_runs(
        grid in prop::array::uniform3(prop_oneof![0..3u32, any::<u32>()]),
        block in prop::array::uniform3(prop_oneof![0..33u32, any::<u32>()]),
        dynamic_shared in prop_oneof![0..4096u32, any::<u32>()],
        parameters in prop::collection::vec(any::<u8>(), 0..16),
    ) {
        // A grid that is allowed may be too large to wait for.
        prop_assume!(grid.iter().map(|n| u128::from(*n)).product::<u128>() < 5000 || grid.contains(&0) || grid[1] > 65535);
        let mut memory = Memory::default();
        let program = Program::load(include_str!("../fixtures/bugs.ptx"), &mut memory).expect("the PTX is good");
        let kernel = program.kernel("touch").expect("the kernel is there");
        let shape = Launch { grid, block, dynamic_shared, cluster: None };
        let options = Options { threads: Some(1), instruction_limit: 100_000, ..Options::default() };
        _ = launch(&kernel, &memory, &shape, &parameters, &options);
    }
}

/// Ten minutes of the first property, from the seed `FUZZ_SEED` or another in every run:
///
///     cargo test --release -p cuda-emulator --test robust -- --ignored --nocapture
#[test]
#[ignore = "takes ten minutes"]
fn changed_ptx_is_refused_or_runs_for_ten_minutes() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    let now = || std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    let given = std::env::var("FUZZ_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed: u64 = given.unwrap_or_else(now);
    // Known before the first case, so that a crash can be repeated.
    println!("seed {seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), random);
    let strategy = (
        0..texts().len(),
        prop::collection::vec(change(), 1..6),
        prop::collection::vec(any::<u8>(), 8..64),
        1..200u32,
    );
    let start = std::time::Instant::now();
    let mut cases = 0u64;
    while start.elapsed().as_secs() < 600 {
        let tree = strategy.new_tree(&mut runner).expect("a case");
        let (index, changes, bytes, threads) = tree.current();
        let mut text = texts()[index].clone();
        changes.iter().for_each(|change| apply(&mut text, change));
        exercise(&text, &bytes, threads);
        cases += 1;
    }
    println!("{cases} changed texts in ten minutes");
    assert!(cases > 1000, "{cases} cases");
}
