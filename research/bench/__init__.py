"""Speed, measured beside a rival: each workload runs ours and theirs in turn, on the same rows in
the same order from the same weights, and prints ratios. Beside it: what grows with what."""

from research.bench import embedding, replicates, turns

VERBS = {"replicates": replicates.main, "encode": embedding.encode}


def main(arguments: list[str]) -> None:
    """`bench replicates ...`, `bench growth ...`, or `bench WORKLOAD ...` beside a rival."""
    if arguments and arguments[0] in VERBS:
        VERBS[arguments[0]](arguments[1:])
    else:
        turns.main(arguments)
