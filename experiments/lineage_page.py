"""The page of the study of language models: perplexities by size, tests, and samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from research.study import plot
from research.study.page import Code, Figure, Heading, Page, Text
from research.study.statistics import Summary, paired_test
from research.study.table import Cell, Table

COUNTED = {"unigram": 1, "3-gram, Kneser-Ney": 3, "5-gram, Kneser-Ney": 5}
FEEDFORWARD, LSTM = "feed-forward network", "LSTM"
CAUSAL, MASKED = "Transformer, causal", "Transformer, masked"
TRAINED = {FEEDFORWARD: "feedforward", LSTM: "lstm", CAUSAL: "causal", MASKED: "masked"}


@dataclass(frozen=True)
class Score:
    """One model at one size, tested; of a masked model `perplexity` is a pseudo-perplexity.

    `pairs` is BLiMP's accuracy.
    """

    perplexity: float
    bits_per_byte: float
    parameters: int
    seconds: float
    pairs: float | None
    sample: str


def page(
    scores: dict[tuple[str, float], list[Score]], tokens: dict[float, int], asked: str
) -> Page:
    """What the study found, with everything a reader needs to doubt it.

    `scores` by model and share of the training texts, `tokens` of each share; `asked` says what was
    tested on.
    """
    sizes = list(tokens)
    arms = [arm for arm in (*COUNTED, *TRAINED) if arm != MASKED]
    columns = tuple(f"{tokens[share]:,} tokens" for share in sizes)
    by_size = Table(
        title="Perplexity a token on the test texts, by size of the training text",
        columns=("", *columns),
        rows=tuple((arm, *(spread(scores[arm, s], "perplexity") for s in sizes)) for arm in arms),
        lowest=columns,
    )
    masks = Table(
        title="Pseudo-perplexity of the masked Transformer, which sees both sides",
        columns=("", *columns),
        rows=((MASKED, *(spread(scores[MASKED, s], "perplexity") for s in sizes)),),
    )
    return Page(
        "Lineage: from counting to Transformers",
        f"{asked}; what is trained with n = {len(scores[CAUSAL, sizes[0]])}",
        [
            Heading("Result"),
            by_size,
            masks,
            Text(
                "Every token after a block's start is predicted by every model from the start and "
                "the tokens before it in its block. A pseudo-perplexity is each token's given all "
                "others: it belongs to no distribution over texts, compares with no perplexity, "
                "and has no bits a byte."
            ),
            Figure(curves(scores, tokens, arms), "Mean over seeds, and their range."),
            details(scores, sizes[-1]),
            *([tests(scores, sizes)] if len(scores[CAUSAL, sizes[0]]) > 1 else []),
            Heading("Samples"),
            *(
                block
                for arm in (*arms, MASKED)
                for block in (Text(arm), Code(scores[arm, sizes[-1]][0].sample))
            ),
        ],
    )


def spread(found: list[Score], name: str) -> Cell:
    """A number over seeds; alone where there is one."""
    values = [getattr(score, name) for score in found]
    return values[0] if len(values) == 1 else Summary.of(values)


def curves(
    scores: dict[tuple[str, float], list[Score]], tokens: dict[float, int], arms: list[str]
) -> str:
    """Perplexity over training tokens."""
    series = []
    for arm in arms:
        values = np.array([[s.perplexity for s in scores[arm, share]] for share in tokens])
        x = list(tokens.values())
        low, high = values.min(1), values.max(1)
        series.append(plot.Series(label=arm, x=x, y=values.mean(1), low=low, high=high))
    labels = {"xlabel": "training tokens", "ylabel": "perplexity"}
    return plot.curves("Perplexity by size of the text", series, log_x=True, log_y=True, **labels)


def details(scores: dict[tuple[str, float], list[Score]], share: float) -> Table:
    """Everything about the models of one size."""
    rows = []
    for arm in (*COUNTED, *TRAINED):
        found = scores[arm, share]
        bits = None if arm == MASKED else spread(found, "bits_per_byte")
        pairs = None if found[0].pairs is None else spread(found, "pairs")
        rows.append((arm, bits, pairs, found[0].parameters, spread(found, "seconds")))
    return Table(
        title="On the largest text",
        columns=("", "bits a byte", "minimal pairs", "parameters or n-grams", "seconds"),
        rows=tuple(rows),
        lowest=("bits a byte",),
        highest=("minimal pairs",),
    )


def tests(scores: dict[tuple[str, float], list[Score]], sizes: list[float]) -> Table:
    """The causal Transformer against the other trained models in nats a token, by seed."""
    rows = []
    for rival in (FEEDFORWARD, LSTM):
        for share in sizes:
            ours, theirs = (
                [float(np.log(score.perplexity)) for score in scores[arm, share]]
                for arm in (CAUSAL, rival)
            )
            test = paired_test(ours, theirs)
            rows.append((rival, share, test.difference, test.n, test.p, test.t_p))
    return Table(
        title="The causal Transformer minus its rivals, nats a token, paired by seed",
        columns=("rival", "share", "difference", "pairs", "p, sign flips", "p, t-test"),
        rows=tuple(rows),
    )
