"""Heads for every token: ELECTRA's detector and ModernBERT's classes, beside numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_encoder_families import batch, reference, tokenizer_file, write
from tiny_bert import constant, exact

from research.errors import ConfigError
from research.models import pretrained
from research.models.transformer import Spec, Transformer
from research.tasks.answer import Answer
from research.tasks.replaced import ReplacedTokens
from research.tasks.tag import Tag

LABELS = ("O", "B-x", "I-x")
erf = np.vectorize(math.erf)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(seed: int, name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
    return {f"{name}.weight": drawn(seed, rows, columns), f"{name}.bias": drawn(seed + 1, rows)}


def load(directory: Path, task: Any, family: str, method: Any, allow: str = "$^") -> Any:
    rows = batch(family)

    def initial(key: jax.Array) -> Any:
        kwargs = {"method": method} if method else {"train": False}
        return task.init({"params": key, "noise": key}, rows, **kwargs)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    return pretrained.load(directory, abstract, fresh=constant(abstract), allow=allow)


def agree(got: Any, expected: np.ndarray, family: str) -> None:
    mask = reference(family)[0]["input/attention_mask"]
    mask = mask.reshape(mask.shape + (1,) * (expected.ndim - 2))
    np.testing.assert_allclose(np.asarray(got) * mask, expected * mask, atol=1e-4, rtol=0)


def test_a_detector_of_electra_is_read_and_written(tmp_path: Path) -> None:
    arrays, weights, _ = reference("electra")
    head = {
        **layer(0, "discriminator_predictions.dense", 16, 16),
        **layer(2, "discriminator_predictions.dense_prediction", 1, 16),
    }
    tensors = {k: v for k, v in weights.items() if k.startswith("electra.")} | head
    name = "ElectraForPreTraining"
    directory = write(tmp_path / "in", "electra", tensors, architectures=[name], id2label={})
    trunk = exact(pretrained.trunk(directory))
    small = Spec(vocab_size=97, width=8, depth=1, heads=1, hidden=8, max_positions=24)
    task = ReplacedTokens(
        backbone=trunk, generator=Transformer(small), vocab_size=97, mask_id=4, special_ids=()
    )
    assert pretrained.fits(directory, task)
    params, account = load(directory, task, "electra", None, "^(generator|transform|norm|bias)")
    assert account.unused == ()
    got = jax.jit(lambda p, b: task.apply({"params": p}, b, method="detect"))(
        params, batch("electra")
    )
    x = arrays["output/hidden"][-1]
    x = gelu(x @ head["discriminator_predictions.dense.weight"].T + drawn(1, 16))
    agree(got, (x @ drawn(2, 1, 16).T + drawn(3, 1))[..., 0], "electra")
    dropped = pretrained.save(tmp_path / "out", task, params, tokenizer_file(tmp_path / "t", 0))
    assert {path.split("/")[0] for path in dropped} == {"generator", "transform", "norm", "bias"}
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in set(tensors) - {"electra.embeddings.position_ids"}:
        np.testing.assert_array_equal(written.pop(name), tensors[name])
    assert not written
    again, _ = load(tmp_path / "out", task, "electra", "detect", "^bias")
    for part in ("backbone", "detector", "detection"):
        jax.tree.map(np.testing.assert_array_equal, again[part], params[part])


@pytest.mark.parametrize("kind", ["Tag", "Answer"])
def test_modernbert_has_a_dense_layer_under_every_token(tmp_path: Path, kind: str) -> None:
    arrays, weights, _ = reference("modernbert")
    count, name = (3, "TokenClassification") if kind == "Tag" else (2, "QuestionAnswering")
    norms = {"head.norm.weight": 1 + drawn(9, 16)}
    head = layer(4, "classifier", count, 16) | norms | {"head.dense.weight": drawn(7, 16, 16)}
    tensors = {k: v for k, v in weights.items() if k.startswith("model.")} | head
    architectures = [f"ModernBertFor{name}"]
    named = {} if kind == "Tag" else {"id2label": {}}
    directory = write(tmp_path / "in", "modernbert", tensors, architectures=architectures, **named)
    trunk = exact(pretrained.trunk(directory))
    task: Any = Tag(backbone=trunk, labels=LABELS) if kind == "Tag" else Answer(backbone=trunk)
    assert not pretrained.fits(directory, task)
    task = task.clone(token_pooler=True)
    assert pretrained.fits(directory, task)
    method = "emissions" if kind == "Tag" else "logits"
    params, account = load(directory, task, "modernbert", method)
    assert account.unused == () and account.fresh == ()
    got = jax.jit(lambda p, b: task.apply({"params": p}, b, method=method))(
        params, batch("modernbert")
    )
    x = gelu(arrays["output/hidden"][-1] @ head["head.dense.weight"].T)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * head["head.norm.weight"] @ head["classifier.weight"].T + head["classifier.bias"]
    agree(got, x, "modernbert")
    file = tokenizer_file(tmp_path / "t", 0)
    assert pretrained.save(tmp_path / "out", task, params, file) == ()
    again, _ = load(tmp_path / "out", task, "modernbert", method)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(ConfigError, match="has a dense layer under its head"):
        pretrained.save(tmp_path / "other", task.clone(token_pooler=False), params, file)
