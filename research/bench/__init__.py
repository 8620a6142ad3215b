"""Speed, measured beside a rival: each workload runs ours and theirs in turn, in processes of their
own, on the same rows in the same order from the same weights, and prints ratios."""

from research.bench.turns import main

__all__ = ["main"]
