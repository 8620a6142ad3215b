"""Two domains in every batch: labelled texts of one, texts of another whose labels are unread."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.data.batches import Batches, Examples
from research.data.dataset import Signature
from research.data.mixture import shuffled
from research.data.sources import signature
from research.data.texts import Texts
from research.data.tokenize import Encoded
from research.errors import ConfigError

SOURCE, TARGET = 0, 1


@dataclass(frozen=True, kw_only=True)
class Domains(Texts):
    """`train` are labelled texts of the source domain, `target` texts of the target domain.

    Of N examples a step N / 2 are of each, each domain going through its texts in orders of its
    own, the smaller one more often. Batches have `domains` [B, M], 0 the source; a target text's
    label is not read, and weighs 0. `target` needs no column `label`. `dev` and `test` are labelled
    as always. An epoch is as long as both together.
    """

    target: str = ""

    def examples(self, split: str) -> Examples:
        """See `Dataset.examples`; those of train are the source's, then the target's."""
        found = super().examples(split)
        if split != "train":
            return found
        return both(self, self.signature("train"), signature(self.needed_target()))

    def batches(self, split: str, steps: int | None) -> type[Batches]:
        """See `Dataset.batches`; a training stream has both domains in every batch."""
        return Batches if split != "train" or steps is None else Halves

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        super().check()
        told = {"resample": self.resample, "multilabel": self.multilabel, "group": self.group}
        for name, bad in told.items():
            if bad:
                raise ConfigError(f"data.{name} is set, which data of two domains cannot have")

    def needed_target(self) -> str:
        """The target's texts. Raises ConfigError where they are not set."""
        if not self.target:
            raise ConfigError("data.target is not set; expected a path to texts of another domain")
        return self.target

    def unlabelled(self) -> Texts:
        """The target's texts as data of their own, without labels."""
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(Texts)}
        changes: dict[str, Any] = {"train": self.needed_target(), "label": None, "labels": ()}
        changes |= {"regression": False, "limits": None, "limit": None, "shots": None}
        return Texts(**(kept | changes))


class Halves(Batches):
    """Batches of which one half is of either domain; otherwise as `Batches`."""

    def __init__(self, examples: Examples, batch_size: int, *, seed: int, **options: Any) -> None:
        if batch_size % 2:
            raise ConfigError(f"config: batch_size is {batch_size}, but two domains need it even")
        target = int(np.sum(examples.slots["domains"]))
        self.sizes = (len(examples.encoded.row_of) - target, target)
        self.orders = functools.lru_cache(maxsize=4)(shuffled)
        super().__init__(examples, batch_size, seed=seed, **options)
        digest = hashlib.sha256(f"{self.fingerprint} halves".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def examples_of(self, step: int) -> np.ndarray:
        """The examples of a step, int64 [N]: the source's, then the target's."""
        if step < 0:
            raise IndexError(f"step {step} of {self.steps}")
        half = self.batch_size // 2
        source, target = (self.drawn(domain, step * half, half) for domain in (SOURCE, TARGET))
        return np.concatenate([source, self.sizes[SOURCE] + target])

    def drawn(self, domain: int, start: int, count: int) -> np.ndarray:
        """Draws [start, start + count) of a domain's endless stream of permutations."""
        size, pieces, stop = self.sizes[domain], [], start + count
        while start < stop:
            turn, first = divmod(start, size)
            pieces.append(
                self.orders(size, self.seed, turn, domain + 1)[first : first + stop - start]
            )
            start += len(pieces[-1])
        return np.concatenate(pieces)


@functools.lru_cache(maxsize=4)
def both(data: Domains, source: Signature, target: Signature) -> Examples:
    """The source's examples and the target's, one after the other."""
    parts = [Texts.examples(data, "train"), data.unlabelled().examples("train")]
    counts = [len(part.encoded.row_of) for part in parts]
    labels = parts[SOURCE].slots["labels"]
    return Examples(
        encoded=joined([part.encoded for part in parts]),
        slots={
            "labels": np.concatenate([labels, np.zeros(counts[TARGET], labels.dtype)]),
            "weights": np.repeat(np.array([1, 0], np.float32), counts),
            "domains": np.repeat(np.array([SOURCE, TARGET], np.int32), counts),
        },
        dropped=sum(part.dropped for part in parts),
    )


def joined(parts: list[Encoded]) -> Encoded:
    """Encoded texts one after another; rows and texts of a later part are counted on."""
    firsts = np.cumsum([0, *(len(part.tokens) for part in parts)])
    texts = np.cumsum([0, *(int(part.row_of.max(initial=-1)) + 1 for part in parts)])
    return Encoded(
        tokens=np.concatenate([part.tokens for part in parts]),
        types=np.concatenate([part.types for part in parts]),
        words=np.concatenate([part.words for part in parts]),
        offsets=np.concatenate(
            [[0], *(part.offsets[1:] + first for part, first in zip(parts, firsts))]
        ),
        row_of=np.concatenate([part.row_of + first for part, first in zip(parts, texts)]),
        blank=np.concatenate([part.blank + first for part, first in zip(parts, texts)]),
        truncated=sum(part.truncated for part in parts),
        lost=sum(part.lost for part in parts),
        fingerprint=hashlib.sha256(" ".join(p.fingerprint for p in parts).encode()).hexdigest(),
    )
