"""Tagging beside transformers' BertForTokenClassification, in both directions."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_bert import (  # noqa: E402
    assert_close,
    batch_of,
    exact,
    load,
    minilm,
    random_inputs,
    random_model,
    reload,
    run,
)

from research.data.tagged import Tagged  # noqa: E402
from research.models import pretrained  # noqa: E402
from research.tasks.tag import Tag  # noqa: E402

pytestmark = pytest.mark.parity
__all__ = ["minilm"]
LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SENTENCES = (
    ["Peter", "Blackburn", "flew", "from", "Ouagadougou", "to", "Saint-Denis", "."],
    ["naïve", "CAFÉ", "unaffable", "3.14"],
    ["Graft"],
)


def tagged_batch(inputs):
    batch = batch_of(inputs)
    ones = jnp.ones_like(batch["ids"])
    return batch | {"tags": batch["tokens"] * 0, "opens": ones, "closes": ones}


def test_logits_of_a_token_classifier(tmp_path):
    model = random_model(transformers.BertForTokenClassification, num_labels=5)
    model.save_pretrained(tmp_path)
    inputs = random_inputs(97)
    task = Tag(backbone=exact(tmp_path), labels=LABELS, scheme="BIO")
    batch = tagged_batch(inputs)
    params, account = load(tmp_path, task, batch)
    assert account.fresh == () and account.unused == ()
    got = run(task, params, batch, "emissions")
    assert_close(got, model(**inputs).logits, inputs["attention_mask"])


def test_exported_tagger_tags_every_word_the_same(minilm, tmp_path):
    data = Tagged(train="", types=("LOC", "PER"), tokenizer=str(minilm))
    batches = data.encode_rows([{"tokens": words} for words in SENTENCES], batch_size=3)
    batch = {name: jnp.asarray(x) for name, x in batches.batch(0).items()}
    task = Tag(backbone=exact(minilm), labels=LABELS, scheme="BIO", dropout=0.25)
    params, _ = load(minilm, task, batch)
    rng = np.random.default_rng(0)
    head = {"kernel": 0.3 * rng.normal(size=(384, 5)), "bias": rng.normal(size=5)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params | {"head": head})
    assert pretrained.save(tmp_path / "out", task, params, minilm / "tokenizer.json") == ()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert pretrained.labels(tmp_path / "out") == LABELS
    assert pretrained.fits(tmp_path / "out", task)

    model = reload(transformers.AutoModelForTokenClassification, tmp_path / "out")
    assert model.config.classifier_dropout == 0.25
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(list(SENTENCES), is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    outputs = {name: np.asarray(x) for name, x in run(task, params, batch, "predict").items()}
    ours = np.asarray(run(task, params, batch, "emissions"))
    taken = np.asarray(batch["ids"])
    for row, words in enumerate(SENTENCES):
        ids = inputs.word_ids(row)
        firsts = [ids.index(word) for word in range(len(words))]
        ((b, m),) = np.argwhere(taken == row)
        start, length = int(batch["starts"][b, m]), int(batch["lengths"][b, m])
        here = slice(start, start + length)
        heads = np.flatnonzero(np.asarray(batch["tags"])[b, here] >= 0)
        assert heads.tolist() == firsts
        np.testing.assert_allclose(ours[b, here][heads], logits[row, firsts], atol=1e-4, rtol=0)
        assert outputs["tags"][b, here][heads].tolist() == logits[row, firsts].argmax(-1).tolist()
