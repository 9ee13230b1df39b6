"""Token ids for strings, and text for ids, under each pre-tokenizer that GGUF files name.

`smollm2` is the real tokenizer. For the others one small vocabulary is trained here, on whole
lines rather than words, so that its merges run across every boundary a pre-tokenizer draws: a
wrong boundary then shows up as another id.
"""

import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from .common import FIXTURES, REPOSITORY, versions, write_json
from .smollm2_files import load_tokenizer
from .tokenizer_strings import STRINGS

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"]
USER_DEFINED = ["<tool_call>"]
NEVER_MERGED = "Ġquokka"
"""In the vocabulary, but not reached by merges: found only where `ignore_merges` is on."""

VOCABULARY_SIZE = 1024
TINY_MODEL = "llama-tied"
RANDOM_DECODES = 24
NORMAL, CONTROL_TYPE, USER_DEFINED_TYPE = 1, 3, 4


def make(arguments) -> None:
    """Writes tokenizers/ and the tokenizer of the tiny Llama model."""
    if arguments.smollm2 is None:
        raise SystemExit("this part needs --smollm2 FILE.gguf")
    directory = FIXTURES / "tokenizers"
    smollm2 = load_tokenizer(arguments.smollm2).backend_tokenizer
    _write_expected(directory / "smollm2.json", smollm2, "smollm")

    trained = _train(VOCABULARY_SIZE)
    by_pre = {pre: _tokenizer(pre, *trained) for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"]}
    _check_that_pre_tokenizers_matter(by_pre)
    for pre, tokenizer in by_pre.items():
        home = directory / f"small-{pre}"
        home.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(home / "tokenizer.json"), pretty=False)
        _write_expected(home / "expected.json", tokenizer, pre)
    _write_gguf_vocabulary(directory / "small-vocabulary.json", *trained)
    _write_tiny_model_tokenizer()


def _train(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE over lines of the bundled prompts and STRINGS."""
    requests = (REPOSITORY / "examples" / "data" / "prompts.jsonl").read_text(encoding="utf-8")
    messages = [
        message["content"]
        for line in requests.splitlines()
        for message in json.loads(line)["messages"]
    ]
    corpus = list(dict.fromkeys(messages)) + 4 * [
        string for string in STRINGS if "<|" not in string
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(r".{1,12}\n*"), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=CONTROL + USER_DEFINED,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"], NEVER_MERGED: len(model["vocab"])}
    if len(vocabulary) != size:
        raise ValueError(f"{len(vocabulary)} tokens instead of {size}")
    return vocabulary, [tuple(merge) for merge in model["merges"]]


def _tokenizer(pre: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """The vocabulary behind the pre-tokenizer, normalizer and post-processor that go with `pre`."""
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    if pre in GGUF_PRE_TOKENIZER_SPLITS:
        split = Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
        tokenizer.pre_tokenizer = Sequence(
            [split, ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif pre == "smollm":
        tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    else:
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if pre == "llama-bpe":
        begin = "<|begin_of_text|>"
        tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
        )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in USER_DEFINED]
    )
    return tokenizer


def _check_that_pre_tokenizers_matter(by_pre: dict[str, Tokenizer]) -> None:
    for left in by_pre:
        for right in by_pre:
            different = sum(
                by_pre[left].encode(string, add_special_tokens=False).ids
                != by_pre[right].encode(string, add_special_tokens=False).ids
                for string in STRINGS
            )
            if left < right:
                print(f"{left} and {right} differ on {different} of {len(STRINGS)} strings")
                if different < 5:
                    raise ValueError("too few strings tell these pre-tokenizers apart")


def _write_expected(path, tokenizer: Tokenizer, pre: str) -> None:
    generator = random.Random(20261)
    size = tokenizer.get_vocab_size()
    sequences = [
        [generator.randrange(size) for _ in range(generator.randrange(1, 24))]
        for _ in range(RANDOM_DECODES)
    ]
    write_json(
        path,
        {
            "made_with": versions("tokenizers", "transformers"),
            "pre": pre,
            "vocab_size": size,
            "encode": [
                {
                    "text": string,
                    "ids": tokenizer.encode(string, add_special_tokens=False).ids,
                    "ids_with_special": tokenizer.encode(string, add_special_tokens=True).ids,
                }
                for string in STRINGS
            ],
            "decode": [
                {
                    "ids": ids,
                    "text": tokenizer.decode(ids, skip_special_tokens=False),
                    "text_without_special": tokenizer.decode(ids, skip_special_tokens=True),
                }
                for ids in sequences
            ],
        },
    )


def _write_gguf_vocabulary(path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """The same vocabulary as the `tokenizer.ggml.*` keys of a GGUF file would hold it."""
    types = {
        **{token: CONTROL_TYPE for token in CONTROL},
        **{token: USER_DEFINED_TYPE for token in USER_DEFINED},
    }
    tokens = sorted(vocabulary, key=vocabulary.get)
    write_json(
        path,
        {
            "model": "gpt2",
            "tokens": tokens,
            "token_types": [types.get(token, NORMAL) for token in tokens],
            "merges": [" ".join(merge) for merge in merges],
            "bos_token_id": vocabulary["<|begin_of_text|>"],
            "eos_token_id": vocabulary["<|im_end|>"],
        },
    )


def _write_tiny_model_tokenizer() -> None:
    """Makes the directory of one tiny model complete: text in, text out."""
    directory = FIXTURES / "tiny" / TINY_MODEL
    config = json.loads((directory / "config.json").read_text())
    tokenizer = _tokenizer("smollm", *_train(config["vocab_size"]))
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    tokenizer_config = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "chat_template": (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(tokenizer_config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
