"""Encoders of every family and transformers, live: the same numbers, in both directions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer, models

from research.models import pretrained
from research.models.transformer import Spec, Transformer
from research.tasks.answer import Answer
from research.tasks.choice import MultipleChoice
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM
from research.tasks.replaced import ReplacedTokens
from research.tasks.tag import Tag

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

V, T = 97, 20
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 24,
}
PADDING_ONE = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SHAPE),
    "roberta": ("Roberta", SHAPE | PADDING_ONE),
    "xlm-roberta": ("XLMRoberta", SHAPE | PADDING_ONE),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": V,
            "dim": 32,
            "n_layers": 3,
            "n_heads": 4,
            "hidden_dim": 56,
            "max_position_embeddings": 24,
        },
    ),
    "electra": ("Electra", SHAPE | {"embedding_size": 16}),
    "electra-wide": ("Electra", SHAPE | {"embedding_size": 32}),
    "albert": ("Albert", SHAPE | {"embedding_size": 16, "hidden_act": "gelu_new"}),
    "modernbert": (
        "ModernBert",
        SHAPE
        | {
            "num_hidden_layers": 5,
            "local_attention": 6,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "modernbert-mean": (
        "ModernBert",
        SHAPE
        | {
            "local_attention": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "classifier_pooling": "mean",
            "classifier_bias": True,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
}
LABELS = ("O", "B-x", "I-x")
TASKS: dict[str, Any] = {
    "ForSequenceClassification": Classify(labels=LABELS),
    "ForMultipleChoice": MultipleChoice(),
    "ForTokenClassification": Tag(labels=LABELS, scheme="BIO"),
    "ForQuestionAnswering": Answer(),
    "ForMaskedLM": MaskedLM(vocab_size=V, mask_id=4),
}
PER_TOKEN = ("ForTokenClassification", "ForQuestionAnswering")
CASES = [(family, name) for family in KINDS for name in TASKS]


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def random_model(family: str, name: str, **more: Any) -> Any:
    """A model whose every parameter is far from its initial value."""
    kin, facts = KINDS[family]
    labels = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
    }
    if name in ("ForSequenceClassification", "ForTokenClassification"):
        more = labels | more
    config = getattr(transformers, f"{kin}Config")(**(facts | more))
    torch.manual_seed(1)
    model = getattr(transformers, kin + name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def inputs_of(family: str, rows: int = 4) -> dict[str, Any]:
    """So many rows of 2 to 20 tokens, none of them the padding's."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(T, 2, rows).long()[:, None]
    mask = (torch.arange(T) < lengths).long()
    padding = KINDS[family][1].get("pad_token_id", 0)
    ids = torch.randint(5, V, mask.shape, generator=generator) * mask + padding * (1 - mask)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family.startswith(("bert", "electra", "albert")):
        inputs["token_type_ids"] = (torch.arange(T) >= lengths // 2).long() * mask
    return inputs


def batch_of(inputs: dict[str, Any], choices: int = 1) -> dict[str, jax.Array]:
    """One example a row; `choices` after one another are of one question."""
    mask = np.asarray(inputs["attention_mask"])
    number = np.arange(len(mask))[:, None]
    batch = {
        "tokens": inputs["input_ids"],
        "types": inputs.get("token_type_ids", np.zeros_like(mask)),
        "positions": np.arange(T)[None] * mask,
        "segments": mask,
        "ids": number,
        "starts": np.zeros_like(number),
        "lengths": mask.sum(axis=1, keepdims=True),
        "questions": number // choices,
    }
    return {name: jnp.asarray(np.asarray(array), jnp.int32) for name, array in batch.items()}


def exact(directory: Path, **changes: Any) -> Transformer:
    spec = pretrained.trunk(directory).spec
    return Transformer(dataclasses.replace(spec, dtype="float32", **changes))


def scores(task: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """The logits of a task of any kind."""
    if isinstance(task, MaskedLM):
        return task.logits(task.backbone(batch))
    return task.emissions(batch) if isinstance(task, Tag) else task.logits(batch)


def load(directory: Path, task: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
    """Parameters, none of them drawn, and the account."""

    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, batch, method=scores)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    params, account = pretrained.load(directory, abstract, fresh={}.__getitem__)
    assert account.fresh == () and account.unused == ()
    return params, account


def expected_of(model: Any, inputs: dict[str, Any], choices: int) -> Any:
    """transformers' logits: [rows, ..., classes]."""
    if choices > 1:
        inputs = {name: array.reshape(-1, choices, T) for name, array in inputs.items()}
    with torch.no_grad():
        output = model(**inputs)
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits


def tokenizer_file(path: Path, padding: int) -> Path:
    """A tokenizer of all ids whose padding is where the family wants it."""
    words = {f"w{i}": i for i in range(V) if i != padding}
    words["<pad>" if padding else "[PAD]"] = padding
    Tokenizer(models.WordPiece(words, unk_token="w3")).save(str(path))
    return path


@pytest.mark.parametrize(("family", "name"), CASES)
def test_heads_are_read_and_written(tmp_path: Path, family: str, name: str) -> None:
    model = random_model(family, name)
    model.save_pretrained(tmp_path / "in")
    inputs, choices = inputs_of(family), 2 if name == "ForMultipleChoice" else 1
    batch = batch_of(inputs, choices)
    expected = expected_of(model, inputs, choices)
    task = TASKS[name].clone(backbone=exact(tmp_path / "in"))
    if family.startswith("modernbert") and name in PER_TOKEN:
        assert not pretrained.fits(tmp_path / "in", task)
        task = task.clone(token_pooler=True)
    if family == "modernbert-mean" and name in ("ForSequenceClassification", "ForMultipleChoice"):
        assert not pretrained.fits(tmp_path / "in", task)
        task = task.clone(pool="mean")
    assert pretrained.fits(tmp_path / "in", task)
    params, _ = load(tmp_path / "in", task, batch)
    got = jax.jit(lambda p, b: task.apply({"params": p}, b, method=scores))(params, batch)
    got = np.asarray(got)
    if got.shape[1] == T:
        mask = np.asarray(inputs["attention_mask"])[..., None]
        got, theirs = got * mask, expected.numpy() * mask
    else:
        got, theirs = got.reshape(expected.shape), expected.numpy()
    np.testing.assert_allclose(got, theirs, atol=1e-4, rtol=0)
    file = tokenizer_file(tmp_path / "t.json", KINDS[family][1].get("pad_token_id", 0))
    assert pretrained.save(tmp_path / "out", task, params, file) == ()
    auto = getattr(transformers, f"AutoModel{name}", None)
    again, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(expected_of(again.eval(), inputs, choices), expected)
    back = task.clone(backbone=exact(tmp_path / "out"))
    assert back == task
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out", back, batch)[0], params)


def test_electra_for_pre_training_is_read_and_written(tmp_path: Path) -> None:
    model = random_model("electra", "ForPreTraining")
    model.save_pretrained(tmp_path / "in")
    inputs = inputs_of("electra")
    with torch.no_grad():
        expected = model(**inputs).logits
    batch = batch_of(inputs)
    generator = Transformer(Spec(vocab_size=V, width=8, depth=1, heads=1, hidden=8))
    trunk = exact(tmp_path / "in")
    task = ReplacedTokens(backbone=trunk, generator=generator, vocab_size=V, mask_id=4)

    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, batch, method="detect")["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    drawn = {"bias": jnp.zeros(V)}
    params, account = pretrained.load(
        tmp_path / "in", abstract, fresh=lambda paths: {path: drawn[path] for path in paths}
    )
    assert account.unused == () and account.fresh == ("bias",)
    got = jax.jit(lambda p, b: task.apply({"params": p}, b, method="detect"))(params, batch)
    mask = np.asarray(inputs["attention_mask"])
    np.testing.assert_allclose(got * mask, expected.numpy() * mask, atol=1e-4, rtol=0)
    file = tokenizer_file(tmp_path / "t.json", 0)
    assert pretrained.save(tmp_path / "out", task, params, file) == ("bias",)
    auto = transformers.AutoModelForPreTraining
    again, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()) and type(again) is type(model), report
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, expected)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", KINDS)
def test_every_hidden_state(tmp_path: Path, family: str, scan: bool) -> None:
    model = random_model(family, "Model")
    model.save_pretrained(tmp_path)
    inputs = inputs_of(family)
    batch = batch_of(inputs)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
    trunk = exact(tmp_path, scan=scan)
    task = Classify(backbone=trunk, labels=LABELS, pooler=False)

    def states(task: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return task.backbone.layers(batch)

    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, batch, method=states)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    params, account = pretrained.load(tmp_path, abstract, fresh={}.__getitem__)
    assert not [n for n in account.unused if "pooler" not in n] and not account.fresh
    got = np.asarray(
        jax.jit(lambda p, b: task.apply({"params": p}, b, method=states))(params, batch)
    )
    mask = np.asarray(inputs["attention_mask"])[..., None]
    theirs = torch.stack(expected.hidden_states).numpy()
    assert got.shape == theirs.shape
    np.testing.assert_allclose(got * mask, theirs * mask, atol=1e-4, rtol=0)
    assert len(flatten_dict(params)) == len(account.loaded)
