//! What the names of GGUF's pre-tokenizers stand for.
//!
//! GGUF stores of the pre-tokenizer only a name. What a name means is defined by the Hugging Face
//! tokenizers of the models that carry it; GGUF readers reproduce those, and so does this table.

use serde_json::{Value, json};

/// What the name of a pre-tokenizer stands for.
pub(super) struct Family {
    pub(super) normalizer: Value,
    /// How a text is split before each piece is put into the byte alphabet and merged.
    pub(super) steps: Vec<Value>,
    /// A piece that is a token as a whole is not merged from its bytes.
    pub(super) ignore_merges: bool,
    /// Prompts begin with `bos` where the file does not say.
    pub(super) add_bos: bool,
}

/// The names that [`family_of`] knows.
pub(super) const PRE_TOKENIZERS: [&str; 26] = [
    "default",
    "gpt-2",
    "phi-2",
    "olmo",
    "smollm",
    "starcoder",
    "refact",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "falcon3",
    "lfm2",
    "pixtral",
    "dbrx",
    "smaug-bpe",
    "glm4",
    "tekken",
    "gpt-4o",
    "llama4",
    "kimi-k2",
    "qwen2",
    "qwen35",
    "deepseek-r1-qwen",
    "deepseek-v3",
    "deepseek-llm",
    "deepseek-coder",
];

/// GPT-2's regular expression: contractions, words, numbers and punctuation, each with one
/// leading space, and runs of white space without their last character if a word follows.
const GPT2_SPLIT: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Upper case and lower case letters, each with those that have no case and with marks.
const UPPER: &str = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}";
const LOWER: &str = r"\p{Ll}\p{Lm}\p{Lo}\p{M}";

/// Letters with case, without those of scripts and blocks that DeepSeek's list of letters leaves out:
/// Armenian's small ones, Georgian's, mathematical ones, phonetic ones, and the later additions.
const CASED_FOR_DEEPSEEK: &str = r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u{560}-\u{588}\u{10C7}-\u{10FF}\u{1C80}-\u{1C8F}\u{2D00}-\u{2D2D}\u{A790}-\u{A7FA}\u{AB30}-\u{AB68}\u{10570}-\u{105BC}\u{10D50}-\u{10D85}\u{16E40}-\u{16EDF}\u{1D400}-\u{1D7CB}\u{1DF00}-\u{1DF2A}]]";

/// Chinese characters and what lies between the ends of these ranges.
const EAST_ASIAN_FOR_DEEPSEEK: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";

/// English contractions.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

pub(super) fn family_of(pre: &str) -> Option<Family> {
    let plain =
        |steps| Family { normalizer: Value::Null, steps, ignore_merges: false, add_bos: false };
    let composed = |pattern: &str| Family {
        normalizer: json!({ "type": "NFC" }),
        ..plain(vec![split(pattern)])
    };
    let whole_words = |pattern: &str| Family {
        ignore_merges: true,
        add_bos: true,
        ..plain(vec![split(pattern)])
    };
    let threes = word_split(r"\p{L}", r"\p{N}{1,3}");
    Some(match pre {
        "gpt-2" | "phi-2" | "olmo" => plain(vec![split(GPT2_SPLIT)]),
        // Every digit is a piece of its own, then as GPT-2.
        "smollm" | "starcoder" | "refact" => {
            plain(vec![json!({ "type": "Digits", "individual_digits": true }), split(GPT2_SPLIT)])
        }
        "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "lfm2" | "pixtral" => {
            whole_words(&threes)
        }
        "dbrx" | "smaug-bpe" | "glm4" => plain(vec![split(&threes)]),
        "tekken" => whole_words(&cased_split(UPPER, LOWER, "", r"\p{N}", "[\\r\\n/]")),
        "gpt-4o" | "llama4" => plain(vec![split(&cased_split(
            UPPER,
            LOWER,
            &format!("{CONTRACTIONS}?"),
            r"\p{N}{1,3}",
            "[\\r\\n/]",
        ))]),
        // As GPT-4o, but Chinese characters are pieces of their own.
        "kimi-k2" => {
            let without_han = |letters: &str| format!(r"{letters}&&[^\p{{Han}}]");
            let (upper, lower) = (without_han(UPPER), without_han(LOWER));
            let ending = format!("{CONTRACTIONS}?");
            let rest = cased_split(&upper, &lower, &ending, r"\p{N}{1,3}", "[\\r\\n]");
            plain(vec![split(&format!(r"[\p{{Han}}]+|{rest}"))])
        }
        "qwen2" => composed(&word_split(r"\p{L}", r"\p{N}")),
        "qwen35" => composed(&word_split(r"\p{L}\p{M}", r"\p{N}")),
        "deepseek-r1-qwen" => plain(vec![split(&word_split(r"\p{L}", r"\p{N}"))]),
        "deepseek-v3" => plain(vec![
            split(r"\p{N}{1,3}"),
            split("[一-龥\u{3040}-ゟ゠-ヿ]+"),
            split(concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
                r"|\s*[\r\n]+|\s+(?!\S)|\s+",
            )),
        ]),
        "deepseek-llm" => plain(vec![
            split(r"[\r\n]"),
            split(&format!(r"\s?{CASED_FOR_DEEPSEEK}+")),
            split(r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
            split(r"\s+$"),
            split(EAST_ASIAN_FOR_DEEPSEEK),
            json!({ "type": "Digits", "individual_digits": true }),
        ]),
        "deepseek-coder" => plain(vec![
            split(r"[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split(EAST_ASIAN_FOR_DEEPSEEK),
            json!({ "type": "Digits", "individual_digits": true }),
        ]),
        // What GGUF readers have always done with files that name nothing: punctuation apart,
        // then as GPT-2, then numbers apart and cut into threes.
        "default" => plain(vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2_SPLIT),
            split(r"\p{N}+"),
            split(r"[0-9][0-9][0-9]"),
        ]),
        _ => return None,
    })
}

/// The split of Llama 3 and its descendants: like GPT-2's, but contractions in any case, words
/// with any one leading character that is not a letter or a digit, numbers as given, and line
/// breaks together with what stands before them.
fn word_split(letters: &str, number: &str) -> String {
    let others = match letters {
        r"\p{L}" => r"[^\s\p{L}\p{N}]".to_owned(),
        letters => format!(r"[^\s{letters}\p{{N}}]"),
    };
    format!(
        r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{number}| ?{others}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The split of GPT-4o: words break where lower case turns into upper case, and may end in a
/// contraction; punctuation takes line breaks with it.
fn cased_split(upper: &str, lower: &str, ending: &str, number: &str, breaks: &str) -> String {
    format!(
        r"[^\r\n\p{{L}}\p{{N}}]?[{upper}]*[{lower}]+{ending}|[^\r\n\p{{L}}\p{{N}}]?[{upper}]+[{lower}]*{ending}|{number}| ?[^\s\p{{L}}\p{{N}}]+{breaks}*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
    })
}
