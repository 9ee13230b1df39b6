"""How far llama.cpp's predictions are from exact ones on the same file, for comparison with `int8`.

    npm install --ignore-scripts --prefix CACHE node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
    NODE_PATH=CACHE/node_modules .venv/bin/python scripts/llama_cpp_quality.py MODEL TEXT [TOKENS]

MODEL is a GGUF file, of whose text the first TOKENS tokens (default 2,048) are read in pieces of 512, as
the example `quality` of `backend-cpu` reads them. Exact means: the file's weights as f32, in
transformers. Prints the Kullback-Leibler divergence of llama.cpp from exact, over the tokens among the
255 likeliest of both and all others together, and how often both find the same token likeliest: the
same measures as the example's.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PIECE = 512
TOP = 255


def main():
    model, text = Path(sys.argv[1]), Path(sys.argv[2])
    wanted = int(sys.argv[3]) if len(sys.argv) > 3 else 2048
    torch.set_num_threads(1)
    where = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
    ids = AutoTokenizer.from_pretrained(**where).encode(text.read_text(), add_special_tokens=False)
    starts = range(0, min(wanted, len(ids) // PIECE * PIECE), PIECE)
    pieces = [ids[start : start + PIECE] for start in starts]
    if not pieces:
        sys.exit(f"a text of {len(ids)} tokens has no piece of {PIECE}")

    exact = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    divergence, same, count = 0.0, 0, 0
    for piece, predictions in zip(pieces, by_llama_cpp(model, pieces), strict=True):
        with torch.inference_mode():
            logits = exact(torch.tensor([piece[:-1]])).logits[0]
        top = torch.log_softmax(logits, dim=-1).topk(TOP)
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        for (tokens, logprobs), prediction in zip(likeliest, predictions, strict=True):
            divergence += divergence_of(zip(tokens, logprobs, strict=True), dict(prediction))
            same += tokens[0] == prediction[0][0]
            count += 1
    print(f"{count} predictions: KL {divergence / count:.3g}, same likeliest {100 * same / count:.2f} %")


def by_llama_cpp(model, pieces):
    """llama.cpp's likeliest tokens after each token, `[piece][token][(token, log probability)]`."""
    with tempfile.TemporaryDirectory() as directory:
        tokens, out = Path(directory, "tokens.json"), Path(directory, "out.json")
        tokens.write_text(json.dumps(pieces))
        script = Path(__file__).with_name("llama_cpp_logits.cjs")
        subprocess.run(["node", script, model.resolve(), tokens, out], check=True, env=os.environ)
        return json.loads(out.read_text())


def divergence_of(exact, other):
    """The divergence over the tokens that both name and all others together."""
    total, rest_exact, rest_other = 0.0, 1.0, 1.0
    for token, logprob in exact:
        if token in other:
            total += math.exp(logprob) * (logprob - other[token])
            rest_exact -= math.exp(logprob)
            rest_other -= math.exp(other[token])
    rest_exact, rest_other = max(rest_exact, 1e-9), max(rest_other, 1e-9)
    return total + rest_exact * math.log(rest_exact / rest_other)


if __name__ == "__main__":
    main()
