"""Studies of experiments/, shrunk: every arm runs, and no run twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from bert_directory import write_bert
from flax.traverse_util import flatten_dict
from tagged_files import write_tagged

import launch
from experiments.corpora import upper
from experiments.fewrel import fewrel
from research import config as configs
from research.data.texts import Texts
from research.errors import ConfigError, DataError
from research.models.transformer import Spec, Transformer
from research.strategies import Full
from research.study import plan
from research.study.runner import Runner

ROOT = Path(__file__).parents[1]
TOPICS = {"sea": "ship wave gull reef", "kitchen": "stove pan bread salt", "sky": "cloud sun star"}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run_study(name: str, folder: Path, /, **knobs: Any) -> tuple[str, Runner]:
    """What the page says, and the runs."""
    runner = Runner(folder / name, progress=False)
    page = configs.load(f"experiments/{name}.py", "study")(runner, **knobs)
    return page.text(), runner


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose words give their topic away, 12 of each, and a BERT."""
    folder = tmp_path_factory.mktemp("topics")
    texts = [
        {"text": f"{word} {other} near the {word}", "category": topic}
        for topic, words in TOPICS.items()
        for word in words.split()
        for other in words.split()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    write_bert(folder, [row["text"] for row in texts])
    return folder


def test_imbalance_sets_remedies_against_each_other_on_thinned_rows(
    topics: Path, tmp_path: Path
) -> None:
    file = str(topics / "rows.jsonl")
    knobs: dict[str, Any] = {"init_from": str(topics / "bert"), "train": file, "test": file}
    knobs |= {"skews": (4,), "most": 8, "epochs": 0.5, "seeds": 1}
    assert len(plan_of("imbalance", tmp_path / "plan", **knobs)) == 7
    knobs |= {"remedies": ("cross entropy", "logit adjustment", "re-sampling")}
    said, runner = run_study("imbalance", tmp_path, **knobs)
    assert "logit adjustment" in said and len(runner.results) == 3
    with pytest.raises(ConfigError, match="remedies: no 'hope'"):
        run_study("imbalance", tmp_path, **knobs | {"remedies": ("hope",)})
    lines = (runner.path / "train-4-0.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    counts = sorted(sum(row["category"] == topic for row in rows) for topic in TOPICS)
    assert counts == [2, 4, 8]
    lines = [(one.path / "metrics.jsonl").read_text() for one in runner.results]
    again, repeated = run_study("imbalance", tmp_path, **knobs)
    assert again == said
    assert [(one.path / "metrics.jsonl").read_text() for one in repeated.results] == lines


def test_tagging_compares_heads_on_both_trunks(tmp_path: Path) -> None:
    folder = write_tagged(tmp_path)
    words = (folder / "train" / "seq.in").read_text().splitlines()
    bert = write_bert(tmp_path, words)
    knobs: dict[str, Any] = {"init_from": str(bert), "scheme": "BIO", "epochs": 0.5, "seeds": 1}
    knobs |= {split: str(folder / f"{split}.conll") for split in ("train", "dev")}
    names = {
        f"{trunk}-{head}-0" for trunk in ("transformer", "bilstm") for head in ("linear", "crf")
    }
    assert plan_of("tagging", tmp_path / "plan", **knobs) == names
    said, runner = run_study("tagging", tmp_path, **knobs, trunks=("Transformer",))
    assert len(runner.results) == 2 and "Entity F1" in said


def test_small_is_a_switch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch.main(["study", "experiments/imbalance.py", "--help"])
    assert "--small" in capsys.readouterr().out


@pytest.fixture
def given(topics: Path) -> str:
    """The texts in the columns of BANKING77's config, as a study is handed them."""
    file = topics / "banking.csv"
    rows = [json.loads(line) for line in (topics / "rows.jsonl").read_text().splitlines()]
    lines = [f"{row['text']},{row['category']}\n" for row in rows]
    file.write_text("text,category\n" + "".join(lines))
    return f"banking77;{file};{file}"


def plan_of(name: str, folder: Path, /, **knobs: Any) -> set[str]:
    """The names of all runs that a study would make, and none is made."""
    runner = Runner(folder / name, dry=True)
    configs.load(f"experiments/{name}.py", "study")(runner, **knobs)
    assert plan.plan(runner).text()
    assert not list(runner.path.rglob("result.json"))
    return {result.config.name for result in runner.results}


def test_strategies_are_set_against_full_fine_tuning(
    topics: Path, given: str, tmp_path: Path
) -> None:
    knobs: dict[str, Any] = {"init_from": str(topics / "bert"), "data": (given,), "limit": 24}
    knobs |= {"steps": 2, "seeds": 1, "held": 6}
    kept = {"only": ("full", "BitFit"), "factors": (0.3, 1.0)}
    planned = plan_of("strategies", tmp_path, **knobs, **kept)
    said, runner = run_study("strategies", tmp_path, **knobs, **kept)
    # Two runs to choose the rate and one that is told; a plan knows not which rate will be best.
    assert len(runner.results) == len(planned) == 6
    tuning = [one for one in runner.results if "tuning" in one.config.name]
    held = (runner.path / "banking77-held.jsonl").read_text().splitlines()
    train = (runner.path / "banking77-train.jsonl").read_text().splitlines()
    assert len(held) == 6 and len(train) == 24
    assert {one.config.data.dev for one in tuning} == {str(runner.path / "banking77-held.jsonl")}
    assert "What a strategy costs" in said and "Learning rates" in said
    chosen = next(one for one in runner.results if one.config.name.startswith("banking77/BitFit-0"))
    best = max(
        (one.metrics["dev/accuracy"], -place)
        for place, one in enumerate(one for one in tuning if "BitFit" in one.config.name)
    )
    assert chosen.config.optim.learning_rate == (0.3, 1.0)[-best[1]] * 1e-3
    # All of them have a place on this trunk; two that add leaves run beside one that adds none.
    assert len(plan_of("strategies", tmp_path / "all", **knobs, factors=(1.0,))) == 16
    few: dict[str, Any] = {"only": ("head only", "LoRA r=4", "LoRA r=16"), "factors": (1.0,)}
    run_study("strategies", tmp_path / "few", **knobs, **few)


def test_contrastive_arms_go_before_cross_entropy(topics: Path, given: str, tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"init_from": str(topics / "bert"), "data": (given,), "seeds": 1}
    knobs |= {"shots": (4, 500), "steps": 2, "first_steps": 2}
    planned = plan_of("contrastive", tmp_path, **knobs)
    said, runner = run_study("contrastive", tmp_path, **knobs)
    # Three arms of one run and three of two each; no label has 500 rows.
    assert planned == {result.config.name for result in runner.results} and len(planned) == 9
    runs = {result.config.name: result for result in runner.results}
    linear = runs["banking77/SupCon-then-linear-4-0"].config
    assert linear.init_from == str(runs["banking77/SupCon-then-linear-first-4-0"].path)
    assert "SimCSE, then cross entropy" in said


def test_few_shots_see_the_same_rows_in_every_arm(topics: Path, given: str, tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"data": (given,), "shots": (3,), "seeds": (13,)}
    knobs |= {"steps": 2, "pair_steps": 2, "words": "sea=ship,kitchen=bread,sky=cloud"}
    bert = write_bert_of_words(tmp_path, topics)
    without = plan_of("few_shot", tmp_path / "without", init_from=str(topics / "bert"), **knobs)
    assert len(without) == 5
    said, runner = run_study("few_shot", tmp_path, init_from=str(bert), **knobs)
    arms = ("fine-tuning", "LoRA", "ridge probe", "nearest", "pairs, then", "prompt")
    for arm in (*arms, "prototypes, fine-tuned"):
        assert arm in said
    runs = {result.config.name.split("/")[1]: result.config for result in runner.results}
    drawn = {runs["fine-tuning-3-13"].data.text_of("train", i)["text"] for i in range(9)}
    lines = (runner.path / "banking77-pairs-3-13.jsonl").read_text().splitlines()
    paired = [json.loads(line) for line in lines]
    assert {row[side] for row in paired for side in "ab"} == drawn
    texts = {runs["prompt-3-13"].data.text_of("train", i)["text"] for i in range(9)}
    assert texts == {f"It was [MASK]. {text}" for text in drawn}


def test_relations_to_tell_are_none_of_those_learned_from(topics: Path, tmp_path: Path) -> None:
    """Every run learns from one half of the relations and is asked of the other."""
    words = {
        f"P{i}": word for i, word in enumerate(("ship", "wave", "stove", "pan", "sun", "star"))
    }
    told = {
        relation: [
            {"tokens": ["the", word, "near", other], "h": ["", "", [[1]]], "t": ["", "", [[3]]]}
            for other in words.values()
        ]
        for relation, word in words.items()
    }
    (tmp_path / "relations.json").write_text(json.dumps(told))
    runner = Runner(tmp_path / "fewrel", progress=False)
    arms = fewrel(
        runner,
        str(tmp_path / "relations.json"),
        str(topics / "bert"),
        seeds=(0, 1),
        instances=6,
        steps=2,
        shots=(1,),
        ways=2,
    )
    assert [len(values) for values in arms.scores.values()] == [2, 2, 2]
    for result in runner.results:
        known = set(result.config.data.label_names())
        unseen = set(result.config.evals[0].data.label_names())
        assert known | unseen == set(words) and not known & unseen and len(known) == 3


def test_only_the_upper_blocks_learn_where_that_is_asked(topics: Path) -> None:
    spec = Spec(vocab_size=9, width=8, depth=3, heads=2, hidden=16, max_positions=9)
    batch = {name: np.zeros((1, 1), np.int32) for name in ("tokens", "positions", "segments")}
    shapes = jax.eval_shape(lambda: Transformer(spec).init(jax.random.key(0), batch))
    leaves = flatten_dict({"backbone": shapes["params"], "head": {"kernel": 0}}, sep="/")
    with pytest.raises(ConfigError, match=r"top: is 2, but .* has 1 blocks"):
        upper(str(topics / "bert"), 2)
    assert upper(str(topics / "bert"), None) == Full()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("research.initialize.trunk_of", lambda _: Transformer(spec))
        rules = upper("", 2).rules(leaves)
    learning = {path for path, rule in rules.items() if rule.learns}
    assert learning == {
        p for p in leaves if p.startswith(("backbone/block_1", "backbone/block_2", "head"))
    }


def write_bert_of_words(folder: Path, topics: Path) -> Path:
    """The tiny BERT with its head of masked language modelling."""
    rows = [json.loads(line)["text"] for line in (topics / "rows.jsonl").read_text().splitlines()]
    return write_bert(folder, [f"It was. {row}" for row in rows], size=140, words=True)


def write_domains(folder: Path, flipped: bool) -> Path:
    """Two domains of reviews in the files of FDU-MTL; of the target no labels but those of test."""
    folder.mkdir()
    for domain, nouns in (("books", "plot page tale"), ("dvd", "film disc scene")):
        rows = [
            f"{label}\tthe {noun} was {word} and {other}"
            for noun in nouns.split()
            for label, words in ((1, "good fine great"), (0, "bad dull poor"))
            for word in words.split()
            for other in words.split()
        ]
        if domain == "dvd" and flipped:
            rows = [f"{1 - int(row[0])}{row[1:]}" for row in rows]
        if domain == "books":
            (folder / f"{domain}.task.train").write_text("\n".join(rows) + "\n")
        (folder / f"{domain}.task.test").write_text("\n".join(rows) + "\n")
        texts = [row.split("\t")[1] for row in rows[::2]]
        (folder / f"{domain}.task.unlabel").write_text("\n".join(texts) + "\n")
    return folder


def test_target_labels_are_read_by_evaluation_only(tmp_path: Path) -> None:
    """Without a train file of the target all runs but the ceiling are made; with the labels of its
    test turned round, all are trained alike, and only what is told of them turns round."""
    one, other = (write_domains(tmp_path / str(flip), flip) for flip in (False, True))
    words = [row.split("\t")[1] for row in (one / "dvd.task.test").read_text().splitlines()]
    words += [row.split("\t")[1] for row in (one / "books.task.test").read_text().splitlines()]
    knobs: dict[str, Any] = {"init_from": str(write_bert(tmp_path, words)), "seeds": 1}
    knobs |= {"pairs": ("books>dvd",), "steps": 3, "first_steps": 2, "length": 16}
    blind = ("source only", "DAPT", "TAPT", "DANN", "CORAL", "MMD", "self-training")
    blind += ("importance weights",)
    plain, first = run_study(
        "domain_adaptation", tmp_path / "a", folder=str(one), arms=blind, **knobs
    )
    turned, second = run_study(
        "domain_adaptation", tmp_path / "b", folder=str(other), arms=blind, **knobs
    )
    assert len(first.results) == len(second.results) == 12
    for before, after in zip(first.results, second.results):
        assert before.metrics["train/loss"] == after.metrics["train/loss"]
        if "dev/accuracy" in before.metrics:
            told = before.metrics["dev/accuracy"] + after.metrics["dev/accuracy"]
            assert abs(told - 1) < 1e-6
    rows = (first.path / "books-dvd-weighted.jsonl").read_text().splitlines()
    weights = [float(json.loads(row)["weight"]) for row in rows]
    assert abs(sum(weights) / len(weights) - 1) < 1e-3 and min(weights) >= 0
    believed = (first.path / "books-dvd-believed-0.jsonl").read_text().splitlines()
    assert len(rows) < len(believed) <= len(rows) + 28
    assert "proxy A-distance" in plain and "DAPT" in turned
    with pytest.raises(DataError, match=r"dvd\.task\.train"):
        run_study("domain_adaptation", tmp_path / "c", folder=str(one), **knobs)


def test_rows_weigh_what_their_column_says(topics: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (topics / "rows.jsonl").read_text().splitlines()]
    told = [row | {"much": f"{i / 4}"} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    data = Texts(
        train=str(tmp_path / "rows.jsonl"),
        dev=str(topics / "rows.jsonl"),
        label="category",
        weight="much",
        tokenizer=str(topics / "bert"),
    )
    np.testing.assert_array_equal(data.examples("train").slots["weights"], np.arange(len(rows)) / 4)
    assert set(data.examples("dev").slots["weights"].tolist()) == {1.0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0] | {"much": "-1"}) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'much' '-1' is no number from 0 up"):
        data.examples("train")


def test_tricks_are_set_against_plain_fine_tuning(
    topics: Path, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs: dict[str, Any] = {"init_from": str(topics / "bert"), "data": (given,), "steps": 2}
    knobs |= {"seeds": 1, "limit": 12}
    assert len(plan_of("tricks", tmp_path / "plan", **knobs)) == 7
    module = configs.load_module("experiments/tricks.py")
    kept = {name: module.TRICKS[name] for name in ("plain", "FGM", "EMA", "layer decay")}
    monkeypatch.setattr(module, "TRICKS", kept)
    runner = Runner(tmp_path / "tricks", progress=False)
    said = module.study(runner, **knobs).text()
    assert "layer decay" in said and len(runner.results) == 4
    assert runner.results[2].config.optim.ema == 0.98
