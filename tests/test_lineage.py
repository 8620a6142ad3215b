"""The study of language models, shrunk to seconds: all models predict the same tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.lineage_page import COUNTED, TRAINED, Score, page
from research import config as configs
from research.data.bpe import train_bpe
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError
from research.evaluate import Model
from research.infer.draw import draw
from research.infer.loaded import load
from research.study.runner import Runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of a small grammar."""
    path = tmp_path_factory.mktemp("lineage")
    chance = random.Random(0)
    nouns, verbs = ["cat", "dog", "bird", "fish"], ["sees", "hears", "likes"]
    lines = [
        " and ".join(
            f"the {chance.choice(nouns)} {chance.choice(verbs)} the {chance.choice(nouns)}"
            for _ in range(chance.randint(1, 4))
        )
        for _ in range(120)
    ]
    (path / "text.txt").write_text("\n".join(lines))
    rows = [
        {
            "sentence_good": "the cat sees the dog",
            "sentence_bad": "the sees cat dog the",
            "linguistics_term": "order",
            "UID": "order",
        }
    ]
    (path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_study_runs_small_and_measures_all_models_alike(folder: Path) -> None:
    study = configs.load("experiments/lineage.py", "study")
    runner = Runner(folder / "lineage", progress=False)
    settings = {
        "data": str(folder / "text.txt"),
        "sizes": (1.0,),
        "seeds": 1,
        "steps": 2,
        "vocabulary": 280,
        "width": 16,
        "block": 12,
        "pairs": str(folder / "pairs.jsonl"),
    }
    said = study(runner, **settings).text()
    for arm in ("unigram", "3-gram", "5-gram", "feed-forward", "LSTM", "causal", "masked"):
        assert arm in said
    assert len(runner.results) == 4
    # What is trained is not trained again, and everything comes out the same.
    again = Runner(folder / "lineage", progress=False)
    repeated = study(again, **settings).text()
    assert said.split("On the largest text")[0] == repeated.split("On the largest text")[0]
    # No text is in two splits by its place, and together they are all.
    rows = [
        (folder / "lineage" / "corpus" / f"{split}.jsonl").read_text().splitlines()
        for split in ("train", "dev", "test")
    ]
    given = (folder / "text.txt").read_text().splitlines()
    kept = sorted(json.loads(row)["text"] for part in rows for row in part)
    assert kept == sorted(given)
    check_samples(runner)


def check_samples(runner: Runner) -> None:
    """A sample has no special token, repeats, and is another with another seed."""
    for result in runner.results[-2:]:
        model: Model = load(result.path).model()
        with jax.set_mesh(model.mesh):
            first, second, other = (draw(model, 1, 12, seed=seed, sweeps=1) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()
        assert not np.isin(first, model.data.facts()["special_ids"]).any()


def test_bytes_come_back_and_the_file_repeats(tmp_path: Path) -> None:
    texts = ["the cat sees  the dog", "ein Fuß, 中文\n", "the theme"]
    one = train_bpe(texts, 300, tmp_path / "a" / "tokenizer.json")
    other = train_bpe(texts, 300, tmp_path / "b.json")
    assert one.read_bytes() == other.read_bytes()
    tokenizer, vocabulary = tokenizer_of(str(one))
    for text in [*texts, " \t 𝛼 unseen"]:
        ids = tokenizer.encode(text).ids
        assert ids[0] == vocabulary.cls
        assert tokenizer.decode(ids) == text
    assert vocabulary.unk is None and vocabulary.sep is None and vocabulary.mask is not None
    with pytest.raises(ConfigError, match="alone are 259"):
        train_bpe(texts, 100, tmp_path / "c.json")


def test_the_page_sets_seeds_against_each_other_and_masks_apart() -> None:
    found: dict[tuple[str, float], list[Score]] = {}
    for share in (0.1, 1.0):
        for number, arm in enumerate((*COUNTED, *TRAINED)):
            found[arm, share] = [
                Score(100.0 + 10 * number + seed, 2.0 + number, 9, 1.0, 0.5, "text")
                for seed in range(1 if arm in COUNTED else 3)
            ]
    said = page(found, {0.1: 1000, 1.0: 10000}, "9 test tokens").text()
    rows = said.split("minus its rivals")[1].split("Samples")[0].splitlines()
    (lstm,) = [line.split() for line in rows if line.startswith("LSTM") and " 0.1" in line]
    wanted = np.mean([np.log((150 + seed) / (140 + seed)) for seed in range(3)])
    np.testing.assert_allclose(float(lstm[2].lstrip("+")), wanted, rtol=1e-3)
    comparable, masks = said.split("Pseudo-perplexity of the masked")
    assert "masked" not in comparable and "161" in masks
