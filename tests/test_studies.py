"""Studies of experiments/, shrunk: every arm runs, and no run twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bert_directory import write_bert
from tagged_files import write_tagged

import launch
from research import config as configs
from research.study import plan
from research.study.runner import Runner

ROOT = Path(__file__).parents[1]
TOPICS = {"sea": "ship wave gull reef", "kitchen": "stove pan bread salt", "sky": "cloud sun star"}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run_study(name: str, folder: Path, **knobs: Any) -> tuple[str, Runner]:
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


def test_imbalance_runs_every_remedy_on_thinned_rows(topics: Path, tmp_path: Path) -> None:
    file = str(topics / "rows.jsonl")
    knobs: dict[str, Any] = {"init_from": str(topics / "bert"), "train": file, "test": file}
    knobs |= {"skews": (4,), "most": 8, "epochs": 0.5, "seeds": 1}
    said, runner = run_study("imbalance", tmp_path, **knobs)
    for arm in ("cross entropy", "focal", "logit adjustment", "re-sampling", "smoothing"):
        assert arm in said
    assert len(runner.results) == 7
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
    said, runner = run_study(
        "tagging",
        tmp_path,
        init_from=str(bert),
        train=str(folder / "train.conll"),
        dev=str(folder / "dev.conll"),
        scheme="BIO",
        epochs=0.5,
        seeds=1,
    )
    names = [result.config.name for result in runner.results]
    assert names == ["transformer-linear-0", "transformer-crf-0", "bilstm-linear-0", "bilstm-crf-0"]
    assert "Entity F1" in said


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


def plan_of(name: str, folder: Path, **knobs: Any) -> set[str]:
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
    assert len(plan_of("strategies", tmp_path / "all", **knobs, factors=(1.0,))) == 15
    few: dict[str, Any] = {"only": ("head only", "LoRA r=4", "LoRA r=16"), "factors": (1.0,)}
    run_study("strategies", tmp_path / "few", **knobs, **few)
