"""Prompts: the logits are those of masked language modelling at the mask, packed or not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bert_directory import write_bert

from research import initialize
from research.config import Config
from research.data.texts import Texts
from research.errors import ConfigError
from research.tasks.lm import MaskedLM
from research.tasks.prompt import Prompt, verbalise

TEXTS = ["the sea is cold", "a ship", "the sky over the sea", "clouds in the sky and a ship"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any]:
    """A resolved run from a BERT with a head for words, and its starting parameters."""
    folder = tmp_path_factory.mktemp("prompt")
    bert = write_bert(folder, [*TEXTS, "it was bad good"], size=100, words=True)
    rows = [f"it was [MASK] . {text}\t{i % 2}" for i, text in enumerate(TEXTS)]
    (folder / "rows.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    ids = verbalise(str(bert), ("bad", "good"))
    data = Texts(train=str(folder / "rows.tsv"), max_length=32, cache=str(folder / "cache"))
    config = Config(
        name="prompt", task=Prompt(word_ids=ids), data=data, steps=1, init_from=str(bert)
    )
    config = initialize.resolve(config)
    mesh = config.mesh.build()
    batch = config.data.open("train", 4).batch(0)
    said: list[str] = []
    abstract = initialize.abstract_params(config.task, batch, mesh)
    params = initialize.starting_params(config, abstract, batch, said.append)
    # Every parameter is the directory's, its head for words as well.
    assert "drawn anew" not in said[0]
    return config, params


def batch_of(config: Config, layout: Any) -> dict[str, np.ndarray]:
    batch: dict[str, np.ndarray] = (
        dataclasses.replace(config.data, layout=layout).open("train", 4).batch(0)
    )
    return batch


def by_id(batch: dict[str, np.ndarray], values: Any) -> np.ndarray:
    taken = batch["ids"] >= 0
    found: np.ndarray = np.asarray(values)[taken][np.argsort(batch["ids"][taken])]
    return found


def test_the_words_at_the_mask_are_scored_as_masked_language_modelling_scores_them(
    made: tuple[Config, Any],
) -> None:
    config, params = made
    batch = batch_of(config, "padded")
    words = MaskedLM(backbone=config.task.backbone, vocab_size=100, mask_id=config.task.mask_id)
    x = words.apply({"params": params}, batch, batch["tokens"], noise=None, method="see")
    every = np.asarray(words.apply({"params": params}, x, method="logits"))
    rows, cells = np.nonzero(batch["tokens"] == config.task.mask_id)
    assert len(rows) == len(TEXTS)
    wanted = jax.nn.softmax(jnp.asarray(every[rows, cells][:, list(config.task.word_ids)]), -1)
    found = config.task.apply({"params": params}, batch, method="predict")["probabilities"]
    by_row = np.zeros((*found.shape[:1], 2), np.float32)
    by_row[rows] = wanted
    np.testing.assert_allclose(found[:, 0][batch["ids"][:, 0] >= 0], by_row[: len(rows)], rtol=1e-5)


def test_packed_rows_give_the_loss_and_gradient_of_padded_ones(made: tuple[Config, Any]) -> None:
    config, params = made

    def loss(params: Any, batch: Any) -> Any:
        means = config.task.apply(
            {"params": params}, batch, train=True, rngs={"noise": jax.random.key(3)}
        )
        return means["loss"].value

    packed, padded = batch_of(config, "packed"), batch_of(config, "padded")
    assert packed["tokens"].shape != padded["tokens"].shape
    (one, grads), (other, wanted) = (
        jax.jit(jax.value_and_grad(loss))(params, batch) for batch in (packed, padded)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, wanted)


def test_words_that_are_no_single_token_are_refused(made: tuple[Config, Any]) -> None:
    config, _ = made
    with pytest.raises(ConfigError, match="'bad ship' is 2 tokens"):
        verbalise(str(config.data.tokenizer), ("bad ship", "good"))
    with pytest.raises(ConfigError, match="'bad' means what another does"):
        verbalise(str(config.data.tokenizer), ("bad", "bad"))
    with pytest.raises(ConfigError, match="1 words, but there are 2 labels"):
        task = config.task.clone(word_ids=(5,))
        jax.eval_shape(
            lambda: task.init(jax.random.key(0), batch_of(config, "padded"), train=False)
        )
