"""Reading comprehension: the span of a context that answers a question, or that there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import spans
from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers
from research.models.layers import Dense
from research.spans import Rules, Span

Batch = dict[str, jax.Array]

NO_ANSWER = "(no answer)"


class Found(NamedTuple):
    """What all windows of a question say: the `best` spans of its context, and the score of none,
    which is the lowest of any window; `example` is the first window."""

    row: int
    example: int
    null: float
    best: list[Span]

    @property
    def difference(self) -> float:
        """By how much no answer scores above the best span."""
        return self.null - self.best[0].score

    def odds(self) -> np.ndarray:
        """Probabilities of no answer and of each span, float64 [1 + spans], that sum to 1."""
        scores = np.array([self.null, *(span.score for span in self.best)])
        odds = np.exp(scores - scores.max())
        return odds / odds.sum()


class Answer(nn.Module):
    """A first and a last token, each by a softmax over a window (Devlin et al., 2019).

    The softmax is over the context and the window's first token, which stands for no answer; the
    score of a span is the sum of its two logits. Spans have at most `longest` tokens; `nbest` of
    them are told of each question. Where `unanswerable`, no answer is predicted if its score is
    more than `threshold` above that of the best span; empty, it is whether train has such
    questions. `token_pooler` puts the trunk's dense layer under the head, as in ModernBERT's class.
    """

    backbone: Any = None
    token_pooler: bool = False
    unanswerable: bool | None = None
    threshold: float = 0.0
    longest: int = 30
    nbest: int = 20
    per_token = ("start_logits", "end_logits")

    def setup(self) -> None:
        self.span = Dense(2, dtype="float32", kernel_init=layers.small_normal)

    def logits(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """Scores of every token as the first and as the last of the answer: float32 [B, T, 2]."""
        x = self.backbone(batch, noise=noise)
        return self.span((self.backbone.pool(x) if self.token_pooler else x).astype(jnp.float32))

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        logits = self.logits(batch, noise=noise)
        weights = batch["weights"]
        losses, hits = jnp.zeros_like(weights), jnp.ones_like(weights, bool)
        for side, name in enumerate(("start", "end")):
            values, right = pick(logits[..., side], batch, batch[name])
            losses, hits = losses + 0.5 * values, hits & right
        return {
            "loss": Mean.of(losses, weights),
            "window_accuracy": Mean.of(hits.astype(jnp.float32), weights),
        }

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`start_logits` and `end_logits`, float32 [B, T]."""
        logits = self.logits(batch)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    @property
    def rules(self) -> Rules:
        """The version of SQuAD by whose rules answers are graded."""
        return "2.0" if self.unanswerable else "1.1"

    def find(self, outputs: dict[str, Any], examples: Examples, count: int) -> Iterator[Found]:
        """The `count` best spans of each question over its windows, question by question."""
        windows, row_of = examples.source.windows, examples.encoded.row_of
        ends = np.append(np.flatnonzero(np.diff(row_of)) + 1, len(row_of))
        first = 0
        for end in ends.tolist():
            null, pool = math.inf, []
            for window in range(first, end):
                starts, lasts = outputs["start_logits"][window], outputs["end_logits"][window]
                null = min(null, float(starts[0]) + float(lasts[0]))
                begin = int(windows.begins[window])
                here = slice(begin, begin + int(windows.sizes[window]))
                scores, one, other = spans.best_spans(
                    starts[here], lasts[here], longest=self.longest, count=count
                )
                for score, a, z in zip(scores.tolist(), one.tolist(), other.tolist()):
                    pool.append(Span(score, *windows.characters(window, a, z)))
            yield Found(int(row_of[first]), first, null, spans.merge(pool, count))
            first = end

    def answers(self, found: Found) -> bool:
        """Whether a span is predicted, and not that there is no answer."""
        return not self.unanswerable or found.difference <= self.threshold

    def graded(
        self, outputs: dict[str, Any], examples: Examples
    ) -> tuple[list[Found], list[str], Graded]:
        """Of each question what was found, the text of the best span, and what it earns."""
        found = list(self.find(outputs, examples, self.nbest))
        asked = examples.source
        texts = [trim(asked.rows[one.row]["context"], one.best[0])[0] for one in found]
        gold = [asked.answers[one.row] for one in found]
        exact, overlap = spans.grade(texts, gold, self.rules)
        graded = Graded(
            exact,
            overlap,
            np.array([bool(answers) for answers in gold]),
            np.array([one.difference for one in found]),
        )
        return found, texts, graded

    def tuned(self, outputs: dict[str, Any], examples: Examples) -> dict[str, Any]:
        """The `threshold` with the best F1 on these questions."""
        if not self.unanswerable:
            return {}
        _, _, graded = self.graded(outputs, examples)
        best = spans.best_threshold(graded.differences, graded.f1, graded.answerable)
        return {"threshold": best.between}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Exact match and F1 by SQuAD's rules, in [0, 1], over all questions and by kind.

        Where `unanswerable` also the `threshold`, and the best that any threshold gives on these
        very questions, as evaluate-v2.0.py has it (Rajpurkar et al., 2018).
        """
        found, texts, graded = self.graded(outputs, examples)
        spoken, exact, overlap = self.earned(found, graded)
        numbers = means | {"exact_match": float(exact.mean()), "f1": float(overlap.mean())}
        if self.unanswerable:
            numbers |= graded.by_kind(exact, overlap) | {"threshold": self.threshold}
            for name, values in (("exact_match", graded.exact), ("f1", graded.f1)):
                best = spans.best_threshold(graded.differences, values, graded.answerable)
                numbers |= {f"best_{name}": best.score, f"best_{name}_threshold": best.official}
        told = [text if speaks else "" for text, speaks in zip(texts, spoken)]
        wrong = np.flatnonzero(exact == 0)
        return numbers, {"mistakes": self.mistakes([(found[i], told[i]) for i in wrong], examples)}

    def earned(
        self, found: list[Found], graded: Graded
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each question whether a span is told, and the exact match and F1 of what is told."""
        spoken = np.array([self.answers(one) for one in found])
        exact = np.where(spoken, graded.exact, ~graded.answerable)
        return spoken, exact, np.where(spoken, graded.f1, ~graded.answerable)

    def by_row(
        self, outputs: dict[str, Any], examples: Examples
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Exact match and F1 as two sums a question, over all and over those with an answer."""
        found, _, graded = self.graded(outputs, examples)
        _, exact, overlap = self.earned(found, graded)
        earned = {"exact_match": exact, "f1": overlap}
        every, some = np.ones(len(found)), graded.answerable
        told = {name: (values * every, every) for name, values in earned.items()}
        if self.unanswerable:
            told |= {f"has_answer_{name}": (x * some, some) for name, x in earned.items()}
            told["no_answer_accuracy"] = (exact * ~some, ~some)
        return told

    def mistakes(
        self, wrong: list[tuple[Found, str]], examples: Examples, most: int = 20
    ) -> list[dict[str, Any]]:
        """The wrong answers given with the highest probability."""
        told: list[dict[str, Any]] = [
            {
                "id": one.example,
                "label": " / ".join(dict.fromkeys(examples.source.answers[one.row])) or NO_ANSWER,
                "prediction": text or NO_ANSWER,
                "probability": float(one.odds()[1 if text else 0]),
            }
            for one, text in wrong
        ]
        return sorted(told, key=lambda mistake: -mistake["probability"])[:most]

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"answer": a slice of the context, or "" for none, "score": its probability, "start" and
        "end": its characters, null for none, "no_answer_probability", "nbest": spans likewise}."""
        for found in self.find(outputs, examples, self.nbest):
            row = examples.source.rows[found.row]
            odds = found.odds().tolist()
            listed = []
            for span, probability in zip(found.best, odds[1:]):
                text, start, end = trim(row["context"], span)
                listed.append({"answer": text, "score": probability, "start": start, "end": end})
            nothing = {"answer": "", "score": odds[0], "start": None, "end": None}
            answer = listed[0] if self.answers(found) else nothing
            own = {"id": row["id"]} if "id" in row else {}
            yield own | answer | {"no_answer_probability": odds[0], "nbest": listed}


class Graded(NamedTuple):
    """Of each question [N]: what its best span earns, whether it has an answer, and by how much no
    answer scores above the span."""

    exact: np.ndarray
    f1: np.ndarray
    answerable: np.ndarray
    differences: np.ndarray

    def by_kind(self, exact: np.ndarray, overlap: np.ndarray) -> dict[str, float]:
        """Means of what was earned over the questions with and without an answer."""
        parts = {
            "has_answer_exact_match": exact[self.answerable],
            "has_answer_f1": overlap[self.answerable],
            "no_answer_accuracy": exact[~self.answerable],
        }
        return {name: float(part.mean()) for name, part in parts.items() if len(part)}


def pick(logits: jax.Array, batch: Batch, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each window's place and whether it is the likeliest: [B, T] -> [B, M] both.

    Candidates are the window's first token and those of its context.
    """
    slots = jnp.arange(1, batch["ids"].shape[1] + 1, dtype=jnp.int32)
    member = batch["segments"][:, None, :] == slots[None, :, None]  # [B, M, T]
    allowed = (batch["context"] == 1) | (batch["positions"] == 0)
    scores = jnp.where(member & allowed[:, None, :], logits[:, None, :], jnp.float32(-1e30))
    target = batch["starts"] + places
    chosen = jnp.take_along_axis(scores, target[..., None], axis=2)[..., 0]
    values = jax.nn.logsumexp(scores, axis=-1) - chosen
    return values, jnp.argmax(scores, axis=-1) == target


def trim(context: str, span: Span) -> tuple[str, int, int]:
    """A span's text and characters without the white space that some tokens begin with."""
    text = context[span.start : span.end]
    start = span.start + len(text) - len(text.lstrip())
    return text.strip(), start, start + len(text.strip())
