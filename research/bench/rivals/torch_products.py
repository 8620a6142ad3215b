"""GFLOP/s of [tokens, width] @ [width, hidden] and back, as PyTorch multiplies; one JSON line.

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

    for _ in range(3):
        x @ up @ down
    wait()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.5:
        x @ up @ down
        wait()
        count += 1
    taken = time.perf_counter() - started
    print(json.dumps({"gflops": count * 4 * tokens * width * hidden / taken / 1e9}))


if __name__ == "__main__":
    main()
