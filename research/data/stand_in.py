"""Data of a config's shape, for when only shapes are asked for: nothing is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from research.data.batches import Batches, Examples
from research.data.dataset import Dataset
from research.data.tokenize import Encoded
from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Examples as long as those of `data` may be, each a row, in place of `data`.

    `vocab_size` is the tokenizer's, as the trunk tells it.
    """

    data: Any
    vocab_size: int

    def facts(self) -> dict[str, object]:
        """Those that tasks of language modelling ask for; the numbers of tokens are stand-ins."""
        facts: dict[str, object] = {"vocab_size": self.vocab_size, "mask_id": 0}
        labels = getattr(self.data, "labels", ())
        return facts | ({"labels": labels} if labels else {})

    def open(self, split: str, batch_size: int, **settings: Any) -> Batches:
        """One batch's examples, with the slots that texts and corpora have. Raises ConfigError for
        data whose batches hold more than these."""
        if not isinstance(self.data, Dataset):
            raise ConfigError(f"plan: the batches of {type(self.data).__name__} are not foreseen")
        length = self.data.row_length or self.data.max_length
        tokens = np.zeros(batch_size * length, np.int32)
        encoded = Encoded(
            tokens=tokens,
            types=tokens.astype(np.uint8),
            words=tokens.astype(np.uint8),
            offsets=np.arange(batch_size + 1) * length,
            row_of=np.arange(batch_size),
            blank=np.zeros(0, np.int64),
            truncated=0,
            lost=0,
            fingerprint="stand-in",
        )
        slots = {
            "labels": np.zeros(batch_size, np.int32),
            "weights": np.ones(batch_size, np.float32),
        }
        examples = Examples(encoded=encoded, slots=slots)
        return Batches(examples, batch_size, arrangement=self.data.arrangement, **settings)
