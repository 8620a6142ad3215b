"""The heads of classification in transformers, live: the same numbers, in both directions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from research.models import pretrained
from research.models.transformer import Transformer
from research.tasks.choice import MultipleChoice
from research.tasks.multilabel import MultiLabel
from research.tasks.regress import Regress

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

LABELS = ("toxic", "rude", "spam")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def random_model(kind: Any, **more: Any) -> Any:
    """A model of 2 blocks whose every parameter is far from its initial value."""
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        **more,
    )
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def inputs_of(examples: int) -> dict[str, Any]:
    """So many rows of 2 to 20 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(20, 2, examples).long()[:, None]
    mask = (torch.arange(20) < lengths).long()
    ids = torch.randint(1, 97, mask.shape, generator=generator) * mask
    types = (torch.arange(20) >= lengths // 2).long() * mask
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def batch_of(inputs: dict[str, Any], choices: int = 1) -> dict[str, jax.Array]:
    """One example a row; `choices` after one another are of one question."""
    mask = np.asarray(inputs["attention_mask"])
    number = np.arange(len(mask))[:, None]
    batch = {
        "tokens": inputs["input_ids"],
        "types": inputs["token_type_ids"],
        "positions": np.arange(mask.shape[1])[None] * mask,
        "segments": mask,
        "ids": number,
        "starts": np.zeros_like(number),
        "lengths": mask.sum(axis=1, keepdims=True),
        "questions": number // choices,
    }
    return {name: jnp.asarray(np.asarray(array), jnp.int32) for name, array in batch.items()}


def exact(directory: Path) -> Transformer:
    spec = pretrained.trunk(directory).spec
    return Transformer(dataclasses.replace(spec, dtype="float32"))


CASES = {
    "regression": (
        transformers.BertForSequenceClassification,
        {"num_labels": 1, "problem_type": "regression"},
        Regress(label_mean=2.0),
        1,
    ),
    "multi-label": (
        transformers.BertForSequenceClassification,
        {
            "problem_type": "multi_label_classification",
            "id2label": dict(enumerate(LABELS)),
            "label2id": {name: i for i, name in enumerate(LABELS)},
        },
        MultiLabel(labels=LABELS),
        1,
    ),
    "multiple choice": (transformers.BertForMultipleChoice, {}, MultipleChoice(), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_heads_are_read_and_written(tmp_path: Path, case: str) -> None:
    kind, facts, task, choices = CASES[case]
    model = random_model(kind, **facts)
    model.save_pretrained(tmp_path / "in")
    inputs = inputs_of(8)
    shaped = {k: v.reshape(-1, choices, 20) for k, v in inputs.items()} if choices > 1 else inputs
    with torch.no_grad():
        expected = model(**shaped).logits
    task = task.clone(backbone=exact(tmp_path / "in"))
    assert pretrained.fits(tmp_path / "in", task)
    others = [other for name, (_, _, other, _) in CASES.items() if name != case]
    assert not any(pretrained.fits(tmp_path / "in", other) for other in others)
    batch = batch_of(inputs, choices)

    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, batch, method="predict")["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    params, account = pretrained.load(tmp_path / "in", abstract, fresh=zeros)
    assert account.fresh == () and account.unused == ()
    ((name, found),) = task.apply({"params": params}, batch, method="predict").items()
    squash = {"scores": lambda x: x, "probabilities": torch.sigmoid}[name]
    if choices > 1:
        squash = lambda x: torch.softmax(x, -1)  # noqa: E731
    np.testing.assert_allclose(
        np.asarray(found).ravel(), squash(expected).numpy().ravel(), atol=1e-4, rtol=0
    )
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 97)}}
    Tokenizer(models.WordPiece(words)).save(str(tmp_path / "tokenizer.json"))
    assert pretrained.save(tmp_path / "out", task, params, tmp_path / "tokenizer.json") == ()
    auto = (
        transformers.AutoModelForMultipleChoice
        if choices > 1
        else transformers.AutoModelForSequenceClassification
    )
    again, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.problem_type == facts.get("problem_type")
    if case == "multi-label":
        assert again.config.id2label == dict(enumerate(LABELS))
    with torch.no_grad():
        assert torch.equal(again.eval()(**shaped).logits, expected)
