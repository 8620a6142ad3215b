"""A run with terms: resumed bit for bit, then evaluated, asked, exported and learned from as if it
had none; and the study of a new loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import workshop
from bert_directory import write_bert

import launch
from research import config as configs
from research import runs, train
from research.config import Config
from research.data.domains import Domains
from research.data.texts import Texts
from research.errors import ConfigError
from research.infer.loaded import load
from research.infer.predict import predict
from research.models.transformer import Transformer
from research.regularize import Objective
from research.study.runner import Runner
from research.tasks.classify import Classify
from research.terms.compare import SupCon
from research.terms.consistency import RDrop
from research.terms.distill import Distill
from research.terms.domains import DomainAdversarial

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    workshop.write_rows(path)
    return path


def adversarial(folder: Path, **changes: Any) -> Config:
    """Two domains, an adversary that wakes up slowly, and R-Drop."""
    plain = workshop.config(folder)
    kept = {field.name: getattr(plain.data, field.name) for field in dataclasses.fields(Texts)}
    data = Domains(**kept, target=str(folder / "dev.tsv"))
    # A BERT that can be exported.
    trunk = Transformer(dataclasses.replace(plain.task.backbone.spec, token_types=2))
    inner = plain.task.clone(backbone=trunk)
    task = Objective(task=inner, terms=DomainAdversarial(hidden=4) + 0.5 * RDrop())
    return dataclasses.replace(plain, task=task, data=data, steps=4, save_every=1, **changes)


def told(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in runs.read_metrics(path)]


def test_a_run_with_terms_resumes_and_serves_the_task_within(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adversarial(folder)
    whole = train.run(config, tmp_path / "whole")
    lines = [row for row in told(whole.path) if row["split"] == "train"]
    assert {"loss", "task_loss", "rdrop", "domain_adversarial"} <= set(lines[-1])

    resumed = workshop.stopped_and_resumed(config, tmp_path / "cut", 3, monkeypatch)
    assert told(resumed.path) == told(whole.path)

    model = load(whole.path)
    assert isinstance(model.task, Classify)
    answers = list(predict(model, [b"iron zinc", b"apple"]))
    assert [sorted(answer["probabilities"]) for answer in answers] == [["fruit", "metal"]] * 2
    assert launch.main(["evaluate", str(whole.path)]) == 0
    assert launch.main(["export", str(whole.path), "--to", "hf", str(tmp_path / "hf")]) == 0
    exported = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert exported["architectures"] == ["BertForSequenceClassification"]

    learner = Objective(task=Classify(), terms=Distill(teacher=str(whole.path)))
    taught = workshop.config(
        folder, task=learner, name="taught", steps=3, init_from=str(whole.path), save_every=3
    )
    result = train.run(taught, tmp_path)
    assert "distill" in told(result.path)[0]


def test_bad_objectives_are_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    plain = workshop.config(folder)
    contrast = Objective(task=plain.task, terms=RDrop() + SupCon())
    with pytest.raises(ConfigError, match="microbatches is 2, but SupCon compares all examples"):
        train.run(dataclasses.replace(plain, task=contrast, microbatches=2), tmp_path / "a")
    domains = Objective(task=plain.task, terms=DomainAdversarial())
    with pytest.raises(ConfigError, match="DomainAdversarial needs a domain for every example"):
        train.run(dataclasses.replace(plain, task=domains), tmp_path / "b")
    nobody = Objective(task=plain.task, terms=Distill(teacher=str(tmp_path / "no")))
    with pytest.raises(ConfigError, match="no"):
        train.run(dataclasses.replace(plain, task=nobody), tmp_path / "c")


def test_the_study_of_a_new_loss_runs_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    workshop.write_rows(tmp_path)
    rows = (tmp_path / "train.tsv").read_text().splitlines()[1:]
    bert = write_bert(tmp_path, [row.split("\t")[0] for row in rows], size=80)
    study = configs.load("experiments/new_loss.py", "study")
    runner = Runner(tmp_path / "study", progress=False)
    files = {"train": str(tmp_path / "train.tsv"), "dev": str(tmp_path / "dev.tsv")}
    page = study(runner, init_from=str(bert), **files, seeds=2, epochs=0.5).text()
    assert len(runner.results) == 4
    assert "new loss" in page and "cross-entropy" in page
    assert type(load(runner.results[1].path).task).__name__ == "Bounded"
