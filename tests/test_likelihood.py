"""Minimal pairs and choices by likelihood: laws on a counting model, loops on neural ones."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from tokenizers import Tokenizer

from research.config import Config
from research.data.choices import Choices
from research.data.texts import Texts
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError
from research.evaluate import Model
from research.evaluators.likelihood import (
    ChoiceLikelihood,
    MinimalPairs,
    likelihoods,
)
from research.initialize import initialize, resolve
from research.models.ngram import NGram, fit, without_first
from research.models.transformer import Spec, Transformer
from research.tasks.causal import CausalLM
from research.tasks.lm import MaskedLM

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[1] / "shared")) / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")

PAIRS = [
    ("the cat sleeps", "the cat sleep", "agreement", "verb"),
    ("the cats sleep", "the cats sleeps", "agreement", "verb"),
    ("this cat eats", "these cat eats", "determiner", "number"),
    ("the cat ate a fish", "the fish ate cat a", "determiner", "order"),
]
QUESTIONS = [
    ("what sleeps ?", "the cat", "a fish", "", "", "A"),
    ("what do cats eat ?", "cats", "these", "fish", "sleep", "C"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("likelihood")
    names = ("sentence_good", "sentence_bad", "linguistics_term", "UID")
    for file, order in (("pairs", (0, 1)), ("swapped", (1, 0)), ("same", (0, 0))):
        rows = [(row[order[0]], row[order[1]], *row[2:]) for row in PAIRS]
        lines = [json.dumps(dict(zip(names, row)) | {"two_prefix_method": False}) for row in rows]
        (path / f"{file}.jsonl").write_text("\n".join(lines))
    (path / "questions.csv").write_text("\n".join(",".join(row) for row in QUESTIONS))
    texts = [text for row in PAIRS for text in row[:2]] + [cell for q in QUESTIONS for cell in q]
    train_wordpiece(texts, 90, path / "bert.json")
    # [CLS] before a text and nothing after it.
    plain = json.loads((path / "bert.json").read_text())
    cls = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    whole = {"Sequence": {"id": "A", "type_id": 0}}
    number = Tokenizer.from_file(str(path / "bert.json")).token_to_id("[CLS]")
    plain["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*cls, whole],
        "pair": [*cls, whole, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [number], "tokens": ["[CLS]"]}},
    }
    (path / "tokenizer.json").write_text(json.dumps(plain))
    (path / "train.txt").write_text("\n".join(row[0] for row in PAIRS))
    return path


def texts_of(folder: Path, **changes) -> Texts:
    settings = {
        "train": str(folder / "train.txt"),
        "label": None,
        "tokenizer": str(folder / "tokenizer.json"),
        "max_length": 32,
    }
    return Texts(**settings | changes)


def counted(folder: Path, order: int) -> NGram:
    """An n-gram of the good sentences."""
    encoded = texts_of(folder).examples("train").encoded
    return fit(
        *without_first(encoded.tokens, encoded.offsets),
        order=order,
        vocab_size=texts_of(folder).vocabulary.size,
    )


def model_of(task, folder: Path) -> Model:
    config = resolve(Config(name="x", task=task, data=texts_of(folder), steps=1))
    batch = config.data.open("train", 4).batch(0)
    params = jax.jit(functools.partial(initialize, config.task))(batch, jax.random.key(3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), params)
    return Model(config.task, params, config.data, config.mesh.build(jax.devices()[:1]))


def trunk(**changes) -> Transformer:
    settings = {"vocab_size": 90, "width": 16, "depth": 1, "heads": 2, "hidden": 24}
    return Transformer(Spec(**settings | {"dtype": "float32"} | changes))


@pytest.fixture(scope="module")
def masked(folder: Path) -> Model:
    return model_of(MaskedLM(backbone=trunk()), folder)


@pytest.fixture(scope="module")
def causal(folder: Path) -> Model:
    return model_of(CausalLM(backbone=trunk(causal=True, norm_first=True)), folder)


def ask(evaluator: MinimalPairs, model: NGram, data: Texts) -> dict[str, float]:
    return evaluator.grade(model.outputs(evaluator.batches(data).examples)).numbers


def test_a_model_of_the_good_sentences_is_right_and_swapped_pairs_swap_its_score(folder) -> None:
    data, model = texts_of(folder), counted(folder, 3)
    right = ask(MinimalPairs(source=str(folder / "pairs.jsonl")), model, data)
    assert right == {"accuracy": 1.0, "agreement": 1.0, "determiner": 1.0}
    swapped = ask(MinimalPairs(source=str(folder / "swapped.jsonl")), model, data)
    assert set(swapped.values()) == {0.0}
    same = ask(MinimalPairs(source=str(folder / "same.jsonl")), model, data)
    assert set(same.values()) == {0.5}


def test_the_order_of_the_same_words_is_a_tie_for_unigrams(folder) -> None:
    evaluator = MinimalPairs(source=str(folder / "pairs.jsonl"))
    scores = evaluator.grade(
        counted(folder, 1).outputs(evaluator.batches(texts_of(folder)).examples)
    )
    assert scores.details["paradigms"]["order"] == 0.5
    assert scores.details["pairs"] == 4
    assert set(scores.details["paradigms"]) == {"verb", "number", "order"}


def test_limit_is_by_paradigm(folder) -> None:
    rows = MinimalPairs(source=str(folder / "pairs.jsonl"), limit=1).rows()
    assert [row["UID"] for row in rows] == ["verb", "number", "order"]


@functools.cache
def reader(task):
    """Logits [T, V] of one row."""

    def read(task, batch):
        x = task.backbone(batch)
        return (task if isinstance(task, MaskedLM) else task.backbone).logits(x)[0]

    return jax.jit(lambda params, batch: task.apply({"params": params}, batch, method=read))


def nats_alone(model: Model, text: str) -> float:
    """-log P of a text's tokens after [CLS], alone in a row; masked, one pass a token."""
    ids = np.array(Tokenizer.from_file(model.data.tokenizer).encode(text).ids)
    hide, row = isinstance(model.task, MaskedLM), np.zeros((1, 16), np.int32)
    row[0, : len(ids)] = ids
    real = (np.arange(16) < len(ids)).astype(np.int32)[None]
    batch = {"positions": np.arange(16, dtype=np.int32)[None], "segments": real}
    total = 0.0
    for i in range(1, len(ids)):
        shown = row.copy()
        if hide:
            shown[0, i] = model.task.mask_id
        logits = np.asarray(reader(model.task)(model.params, batch | {"tokens": shown}))
        total -= log_softmax(logits[i if hide else i - 1])[ids[i]]
    return total


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_likelihoods_of_packed_texts_are_those_of_each_alone(kind, folder, request) -> None:
    model = request.getfixturevalue(kind)
    evaluator = MinimalPairs(
        source=str(folder / "pairs.jsonl"), batch_size=4, pseudo=kind[0] == "m"
    )
    batches = evaluator.batches(model.data)
    assert batches.batch(0)["segments"].max() > 1
    outputs = likelihoods(model, batches, pseudo=evaluator.pseudo)
    texts = [text for row in PAIRS[:2] for text in row[:2]]
    alone = [nats_alone(model, text) for text in texts]
    np.testing.assert_allclose(outputs["nll"][:4], alone, rtol=1e-5)
    np.testing.assert_array_equal(outputs["count"], batches.examples.encoded.lengths - 1)
    assert evaluator(model).numbers["accuracy"] == evaluator.grade(outputs).numbers["accuracy"]


def test_choices_are_scored_by_their_own_tokens_after_the_question(folder, causal) -> None:
    data = Choices(
        dev=str(folder / "questions.csv"),
        columns=("question", "A", "B", "C", "D", "answer"),
        tokenizer=str(folder / "tokenizer.json"),
    )
    evaluator = ChoiceLikelihood(data=data)
    evaluator.prepare(causal)
    wanted = {"accuracy": [], "accuracy_token": [], "accuracy_byte": []}
    words = Tokenizer.from_file(causal.data.tokenizer)
    for question, *choices, answer in QUESTIONS:
        choices = [choice for choice in choices if choice]
        start = nats_alone(causal, question)
        cost = [nats_alone(causal, f"{question} {c}") - start for c in choices]
        tokens = [len(words.encode(c, add_special_tokens=False).ids) for c in choices]
        for name, sizes in (("", [1] * 9), ("_token", tokens), ("_byte", [*map(len, choices)])):
            best = min(range(len(choices)), key=lambda i: cost[i] / sizes[i])
            wanted[f"accuracy{name}"].append("ABCD"[best] == answer)
    numbers = evaluator(causal).numbers
    assert numbers == {name: np.mean(hits) for name, hits in wanted.items()} | {"chance": 0.375}
    # A model that has read the answers is right by every measure.
    read = [f"{q} {choices['ABCD'.index(answer)]}" for q, *choices, answer in QUESTIONS]
    encoded = texts_of(folder).encode_rows(read * 3).examples.encoded
    size = causal.data.vocabulary.size
    model = fit(*without_first(encoded.tokens, encoded.offsets), order=4, vocab_size=size)
    scores = evaluator.grade(model.outputs(evaluator.batches(causal.data).examples)).numbers
    assert [scores[name] for name in wanted] == [1, 1, 1]


def test_what_cannot_be_asked_is_refused(folder, masked, causal) -> None:
    pairs = MinimalPairs(source=str(folder / "pairs.jsonl"))
    with pytest.raises(ConfigError, match="MaskedLM tells no likelihood"):
        pairs(masked)
    with pytest.raises(ConfigError, match="CausalLM has no mask"):
        dataclasses.replace(pairs, pseudo=True)(causal)
    with pytest.raises(ConfigError, match="8 of 8 texts have more than 3 tokens"):
        dataclasses.replace(pairs, max_length=3).prepare(causal)


def test_special_tokens_do_not_count(masked) -> None:
    """[UNK] in a text, and [SEP] after it, are not asked for."""
    data = dataclasses.replace(
        masked.data, tokenizer=masked.data.tokenizer.replace("tokenizer.json", "bert.json")
    )
    batches = data.encode_rows(["the cat 中 sleeps"])
    outputs = likelihoods(dataclasses.replace(masked, data=data), batches, pseudo=True)
    assert batches.examples.encoded.lengths.tolist() == [6]
    assert outputs["count"].tolist() == [3]


@real
def test_blimp_is_read_from_its_archive(folder) -> None:
    evaluator = MinimalPairs(source=str(DATA / "lm" / "BLiMP.zip"), limit=2)
    rows = evaluator.rows()
    assert len(rows) == 2 * 67
    numbers = ask(evaluator, counted(folder, 2), texts_of(folder))
    # The paper's 12 phenomena, and all together.
    assert len(numbers) == 13
    assert 0 <= numbers["accuracy"] <= 1
