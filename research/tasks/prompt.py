"""Classification as masked language modelling: the word at the mask says the label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research import losses
from research.data.batches import Examples
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM

Batch = dict[str, jax.Array]


class Prompt(MaskedLM):
    """One of `labels` by the words that may stand for the mask (Schick & Schütze, 2021; Gao et al.,
    2021).

    Texts hold one mask token each, as "It was [MASK]. A fine film", in front, where a long text
    is not cut. `word_ids`: the token that tells each label, in their order (see `verbalise`). The
    head is that of masked language modelling, which `init_from` should have; its loss is the cross
    entropy among the words alone.
    """

    labels: tuple[str, ...] = ()
    word_ids: tuple[int, ...] = ()
    resampled = Classify.resampled

    def prepare(self) -> None:
        if len(self.word_ids) != len(self.labels):
            raise ConfigError(
                f"task.word_ids has {len(self.word_ids)} words, but there are {len(self.labels)} "
                f"labels"
            )

    def label_logits(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """Scores of the labels' words at each example's mask: float32 [B, M, C]."""
        x = self.see(batch, batch["tokens"], noise=noise)
        place = 1 + jnp.arange(batch["ids"].shape[1], dtype=jnp.int32)
        own = batch["segments"][:, None, :] == place[None, :, None]  # [B, M, T]
        hit = (own & (batch["tokens"][:, None, :] == self.mask_id)).astype(x.dtype)
        hit = hit / jnp.maximum(hit.sum(-1, keepdims=True), 1)
        at_mask = jnp.einsum("bmt,btd->bmd", hit, x)
        return self.logits(at_mask)[..., jnp.asarray(self.word_ids, jnp.int32)]

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        logits = self.label_logits(batch, noise=noise)
        correct = (jnp.argmax(logits, axis=-1) == batch["labels"]).astype(jnp.float32)
        values = losses.cross_entropy(logits, batch["labels"])
        weights = batch["weights"]
        return {"loss": Mean.of(values, weights), "accuracy": Mean.of(correct, weights)}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` float32 [B, M, C], among the labels' words."""
        return {"probabilities": jax.nn.softmax(self.label_logits(batch), axis=-1)}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Those of `Classify`."""
        return Classify(labels=self.labels, parent=None).score(means, outputs, examples)

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """Those of `Classify`."""
        return Classify(labels=self.labels, parent=None).decode(outputs, examples)


def verbalise(tokenizer: str, words: Sequence[str]) -> tuple[int, ...]:
    """The ids of words. Raises ConfigError for one that is not a single token, or given twice."""
    encoder = tokenizer_of(tokenizer)[0]
    found: list[int] = []
    for word in words:
        ids = encoder.encode(word, add_special_tokens=False).ids
        if len(ids) != 1 or ids[0] in found:
            twice = "means what another does" if len(ids) == 1 else f"is {len(ids)} tokens"
            raise ConfigError(
                f"verbaliser: {word!r} {twice} for {tokenizer}, expected one of its own"
            )
        found += ids
    return tuple(found)
