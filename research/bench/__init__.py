"""Speed, measured beside a rival: each workload runs ours and theirs in turn, on the same rows in
the same order from the same weights, and prints ratios. Beside it: what grows with what."""

from research.bench import embedding, growth, replicates, turns

# The two last are what benches start for themselves.
VERBS = {
    "growth": growth.main,
    "replicates": replicates.main,
    "encode": embedding.encode,
    "point": growth.point,
}


def main(arguments: list[str]) -> None:
    """`bench replicates ...`, `bench growth ...`, or `bench WORKLOAD ...` beside a rival."""
    if arguments and arguments[0] in VERBS:
        VERBS[arguments[0]](arguments[1:])
    else:
        turns.main(arguments)
