"""XLNet in Graft and in transformers, live: the same numbers, in both directions."""

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
from research.models.xlnet import XLNet, remember
from research.tasks.answer import Answer
from research.tasks.choice import MultipleChoice
from research.tasks.classify import Classify
from research.tasks.embed import InfoNCE
from research.tasks.permutation import PermutationLM
from research.tasks.tag import Tag

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

V, T = 97, 20
LENGTHS = (20, 13, 7, 2)
TAGS = ("O", "B-LOC", "I-LOC")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def random_model(kind: Any, **more: Any) -> Any:
    """A model of 2 blocks whose every parameter is far from its initial value."""
    config = transformers.XLNetConfig(
        vocab_size=V, d_model=32, n_layer=2, n_head=4, d_inner=48, mem_len=None, **more
    )
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def inputs_of() -> dict[str, Any]:
    """Rows padded on the left, as the tokenizer of XLNet does."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS)[:, None]
    place = torch.arange(T) - (T - lengths)
    types = (place >= lengths // 2).long() + (place == lengths - 1).long()
    return {
        "input_ids": torch.randint(1, V, (len(LENGTHS), T), generator=generator),
        "token_type_ids": types,
        "attention_mask": (place >= 0).long(),
    }


def batch_of(inputs: dict[str, Any], choices: int = 1) -> dict[str, jax.Array]:
    """The same rows, one example each, from their first cell on."""
    mask = np.asarray(inputs["attention_mask"])
    lengths = mask.sum(axis=1)
    number = np.arange(len(mask))[:, None]

    def left(x: Any) -> np.ndarray:
        rolled = [np.roll(np.asarray(row), n) for row, n in zip(x, lengths)]
        return np.stack(rolled) * mask[:, ::-1]

    batch = {
        "tokens": left(inputs["input_ids"]),
        "types": left(inputs["token_type_ids"]),
        "positions": np.arange(mask.shape[1])[None] * mask[:, ::-1],
        "segments": mask[:, ::-1],
        "ids": number,
        "starts": np.zeros_like(number),
        "lengths": lengths[:, None],
        "questions": number // choices,
    }
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


def real(x: Any, inputs: dict[str, Any], *, left: bool) -> np.ndarray:
    """What [B, T, ...] holds of the tokens, one after another."""
    lengths = np.asarray(inputs["attention_mask"]).sum(axis=1)
    rows = zip(np.asarray(x), lengths)
    return np.concatenate([row[-n:] if left else row[:n] for row, n in rows])


def exact(directory: Path) -> XLNet:
    return XLNet(dataclasses.replace(pretrained.trunk(directory).spec, dtype="float32"))


def load(directory: Path, task: Any, batch: dict[str, jax.Array], method: str) -> Any:
    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, batch, method=method)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    return pretrained.load(directory, abstract, fresh=lambda paths: pytest.fail(str(paths)))


def words_of(folder: Path) -> Path:
    words = {"<unk>": 0, "<sep>": 1, "<cls>": 2, **{f"w{i}": i for i in range(3, V)}}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


NAMES = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
CASES: dict[str, tuple[Any, Any, dict[str, Any], Any, str]] = {
    "trunk": ("XLNetModel", "AutoModel", {}, InfoNCE(normalize=False), "encode"),
    "uni": ("XLNetModel", "AutoModel", {"attn_type": "uni"}, InfoNCE(normalize=False), "encode"),
    "classes": (
        "XLNetForSequenceClassification", "AutoModelForSequenceClassification", NAMES,
        Classify(labels=TAGS, pool="last"), "logits",
    ),
    "tags": (
        "XLNetForTokenClassification", "AutoModelForTokenClassification", NAMES,
        Tag(labels=TAGS, scheme="BIO"), "emissions",
    ),
    "answers": (
        "XLNetForQuestionAnsweringSimple", "XLNetForQuestionAnsweringSimple", {}, Answer(),
        "logits",
    ),
    "choices": (
        "XLNetForMultipleChoice", "AutoModelForMultipleChoice", {}, MultipleChoice(pool="last"),
        "logits",
    ),
}  # fmt: skip


def outputs(model: Any, inputs: dict[str, Any], case: str) -> np.ndarray:
    """What transformers makes of the real tokens, or of every text."""
    if case == "choices":
        inputs = {k: v.reshape(2, 2, T) for k, v in inputs.items()}
    with torch.no_grad():
        if case == "uni":  # With padding transformers 5.23 takes one row at a time.
            rows = [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(len(LENGTHS))]
            return torch.cat([model(**row)[0] for row in rows]).numpy()
        found = model(**inputs)
    if case == "answers":
        return torch.stack([found.start_logits, found.end_logits], dim=-1).numpy()
    return found[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_classes_are_read_and_written(tmp_path: Path, case: str) -> None:
    name, auto, facts, task, method = CASES[case]
    model = random_model(getattr(transformers, name), **facts)
    model.save_pretrained(tmp_path / "in")
    inputs = inputs_of()
    expected = outputs(model, inputs, case)
    task = task.clone(backbone=exact(tmp_path / "in"))
    batch = batch_of(inputs, 2)
    params, account = load(tmp_path / "in", task, batch, method)
    assert account.fresh == () and account.unused == ()
    got = task.apply({"params": params}, batch, method=method)
    if case in ("trunk", "uni"):
        vectors = real(expected, inputs, left=True)
        ends = np.cumsum(LENGTHS)[:-1]
        expected = np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])
        got = got[:, 0]
    elif case in ("tags", "answers"):
        got, expected = (real(x, inputs, left=left) for x, left in ((got, False), (expected, True)))
    np.testing.assert_allclose(np.ravel(got), np.ravel(expected), atol=1e-4, rtol=0)

    assert pretrained.save(tmp_path / "out", task, params, words_of(tmp_path)) == ()
    kind = getattr(transformers, auto)
    again, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert type(again) is type(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    if case in ("classes", "tags"):
        assert again.config.id2label == dict(enumerate(TAGS))
        assert pretrained.fits(tmp_path / "out", task)
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "left"


@pytest.mark.parametrize("tied", [True, False])
def test_permutations_with_memory(tmp_path: Path, tied: bool) -> None:
    """Scores of words by the query stream, over two blocks of text, and the model given back."""
    model = random_model(transformers.XLNetLMHeadModel, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "in")
    inputs = inputs_of()
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    generator = torch.Generator().manual_seed(3)
    rank = torch.argsort(torch.rand(len(LENGTHS), T, generator=generator), dim=1)
    rank = torch.clamp(rank - 9, min=0)
    targets = torch.argsort(rank, dim=1)[:, 10:]
    hidden = (rank[:, None, :] >= rank[:, :, None]) & (rank[:, None, :] > 0)
    asked = {
        "perm_mask": hidden.float(),
        "target_mapping": torch.nn.functional.one_hot(targets, T).float(),
    }
    ours = {"visible": jnp.asarray(~hidden.numpy()), "targets": jnp.asarray(targets.numpy())}
    ours["targets"] = ours["targets"].astype(jnp.int32)
    task = PermutationLM(backbone=exact(tmp_path / "in"))
    batch = batch_of(inputs)

    def words(self: PermutationLM, batch: Any, memory: Any = None) -> Any:
        streams = self.backbone.streams(batch, memory=memory, **ours)
        return self.logits(streams.query), streams

    params, account = load(tmp_path / "in", task, batch, words)
    assert account.fresh == () and account.unused == ()
    memory = mems = None
    for _ in range(2):
        with torch.no_grad():
            expected = model(**inputs, **asked, mems=mems, use_mems=True)
        got, streams = task.apply({"params": params}, batch, memory, method=words)
        memory, mems = remember(memory, streams, 99), expected.mems
        np.testing.assert_allclose(got, expected.logits.numpy(), atol=1e-4, rtol=0)
        for one, other in zip(memory, mems):
            np.testing.assert_allclose(one.swapaxes(0, 1), other.numpy(), atol=1e-4, rtol=0)
    assert pretrained.save(tmp_path / "out", task, params, words_of(tmp_path)) == ()
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs, **asked).logits, model(**inputs, **asked).logits)
