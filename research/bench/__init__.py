"""Speed, measured beside a rival: each workload runs ours and theirs in turn, on the same rows in
the same order from the same weights, and prints ratios."""

from research.bench import replicates, turns


def main(arguments: list[str]) -> None:
    """`bench replicates ...`, or `bench WORKLOAD ...` beside a rival."""
    if arguments[:1] == ["replicates"]:
        replicates.main(arguments[1:])
    else:
        turns.main(arguments)
