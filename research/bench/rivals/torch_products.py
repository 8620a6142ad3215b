"""GFLOP/s of [tokens, width] @ [width, hidden] and back, as PyTorch multiplies when it is fastest.

python torch_products.py TOKENS WIDTH HIDDEN float32|bfloat16
"""

import json
import sys
import time

import torch


def main():
    tokens, width, hidden = map(int, sys.argv[1:4])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"dtype": getattr(torch, sys.argv[4]), "device": device}
    shapes = ((tokens, width), (width, hidden), (hidden, width))
    x, up, down = (torch.randn(*shape, **kind) for shape in shapes)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    best, until = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < until or best == float("inf"):
        started = time.perf_counter()
        x @ up @ down
        wait()
        best = min(best, time.perf_counter() - started)
    print(json.dumps({"gflops": 4 * tokens * width * hidden / best / 1e9}))


if __name__ == "__main__":
    main()
