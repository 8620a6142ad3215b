"""Vectors of texts as sentence-transformers makes them: the longest first, padded batch by batch.

    python transformers_embed.py MODEL TEXTS.jsonl VECTORS

Rows are {"text"}; told is the file of the vectors: means over tokens, of unit length. `--steelman`
is batches of 128 instead of 32, and bfloat16 where the processor multiplies in it.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from processor import native_bfloat16  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "texts", "vectors"):
        parser.add_argument(name)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steelman", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    low = given.steelman and native_bfloat16()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    model = transformers.AutoModel.from_pretrained(given.model).eval().to(device)
    run = torch.compile(model) if given.compiled else model
    lines = Path(given.texts).read_text("utf-8").splitlines()
    began = time.monotonic()
    texts = [json.loads(line)["text"] for line in lines]
    order = np.argsort([-len(text) for text in texts], kind="stable")
    size = 128 if given.steelman else 32
    vectors, first, cells, tokens = None, None, 0, 0
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=low):
        for start in range(0, len(texts), size):
            chosen = order[start : start + size]
            batch = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=given.max_length,
                return_tensors="pt",
            ).to(device)
            mask = batch["attention_mask"]
            found = run(**batch).last_hidden_state.float() * mask[..., None]
            means = found.sum(1) / mask.sum(1, keepdim=True)
            means = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
            vectors = (
                np.zeros((len(texts), means.shape[1]), np.float32) if first is None else vectors
            )
            vectors[chosen] = means
            first = first or time.monotonic() - STARTED
            cells, tokens = cells + mask.numel(), tokens + int(mask.sum())
    taken = time.monotonic() - began
    np.save(f"{given.vectors}.npy", vectors)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if given.compiled else 0
    found = {
        "examples_per_second": len(texts) / taken,
        "tokens_per_second": tokens / taken,
        "padding": 1 - tokens / cells,
        "compiled": graphs,
        "first_step_seconds": first,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "outputs": f"{given.vectors}.npy",
        "dtype": "bfloat16" if low else "float32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
