"""Reading comprehension from end to end: configs/squad2.py trained, scored, asked and exported."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from squad_files import squad, tokenizer, write

import launch
from research import initialize, runs, spans, train
from research.config import Config
from research.data.questions import Questions
from research.evaluate import HeldOut
from research.infer.loaded import load
from research.models import pretrained
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.answer import Answer
from research.tasks.lm import MaskedLM

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQuAD file, and a tiny BERT to start from."""
    path = tmp_path_factory.mktemp("squad")
    write(path / "train.json", squad())
    words = tokenizer(path)
    spec = Spec(
        vocab_size=120, width=16, depth=1, heads=2, hidden=32, max_positions=32, token_types=2
    )
    task = MaskedLM(backbone=Transformer(spec), vocab_size=120, mask_id=4)
    batch = {
        name: np.ones((1, 8), np.int32) for name in ("tokens", "positions", "segments", "types")
    } | {name: np.zeros((1, 1), np.int32) for name in ("ids", "starts")}
    params = initialize.initialize(task, batch, jax.random.key(0))
    pretrained.save(path / "bert", task, params, words)
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    # A module's fixture runs before a test's working directory is set.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        arguments = ["train", "configs/squad2.py", "--workdir", str(folder / "runs")]
        arguments += ["--init-from", str(folder / "bert"), "--batch-size", "8"]
        arguments += ["--data.train", str(folder / "train.json"), "--data.shapes", "1"]
        arguments += ["--data.max-length", "24", "--data.max-question", "6", "--data.stride", "6"]
        assert launch.main(arguments) == 0
    return folder / "runs" / "squad2"


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    capsys.readouterr()
    assert launch.main(["evaluate", *arguments]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_of_one_file_scores_articles_it_was_not_trained_on(run: Path) -> None:
    result = runs.read_result(run)
    assert result is not None
    metrics = result["metrics"]
    for name in ("exact_match", "f1", "has_answer_f1", "no_answer_accuracy"):
        assert 0 <= metrics[f"dev/{name}"] <= 1
    # A sign alone as the answer to a question without one is right, but not for the official sweep.
    assert metrics["dev/f1"] >= metrics["dev/best_f1"] - 1e-9
    # A quarter of the questions has no answer, and saying so always is one of the thresholds.
    assert metrics["dev/best_exact_match"] >= 0.25
    assert result["details"]["dev"]["tuned"]["threshold"] == metrics["dev/threshold"]
    page = (run / "report.html").read_text()
    for word in ("dev/f1", "Most confident mistakes", "(no answer)", "What does"):
        assert word in page


def test_evaluate_repeats_the_scores_and_takes_other_files(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = runs.read_result(run)
    assert result is not None
    numbers = asked(capsys, str(run))
    for name, value in numbers.items():
        assert value == pytest.approx(result["metrics"][name], abs=1e-5), name
    # The whole file has the held-out articles and those of training.
    whole = asked(capsys, str(run), "--data", str(folder / "train.json"))
    assert whole["dev/threshold"] == numbers["dev/threshold"]
    assert whole["dev/loss"] != numbers["dev/loss"]


def test_predict_answers_rows_and_agrees_with_evaluate(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [
        {"question": q["question"], "context": p["context"], "id": q["id"]}
        for article in squad()["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
    ]
    gold = {
        q["id"]: [a["text"] for a in q["answers"]]
        for article in squad()["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
    }
    lines = [json.dumps(row) for row in questions]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert launch.main(["predict", str(run), *files]) == 0
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in told] == [row["id"] for row in questions]
    for answer, row in zip(told, questions):
        assert len(answer["nbest"]) <= 20
        for one in [answer, *answer["nbest"]]:
            if one["start"] is not None:
                assert row["context"][one["start"] : one["end"]] == one["answer"] != ""
    exact, f1 = spans.grade([a["answer"] for a in told], [gold[row["id"]] for row in questions])
    found = asked(capsys, str(run), "--data", str(folder / "train.json"))
    assert found["dev/exact_match"] == pytest.approx(exact.mean(), abs=1e-6)
    assert found["dev/f1"] == pytest.approx(f1.mean(), abs=1e-6)


def test_predict_reads_a_hundred_thousand_words(run: Path, tmp_path: Path) -> None:
    context = "apple " * 99_999 + "zinc"
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"question": "What does Anna have?", "context": context}) + "\n"
    )
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert launch.main(["predict", str(run), *files]) == 0
    (answer,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    best = answer["nbest"][0]
    assert context[best["start"] : best["end"]] == best["answer"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Who has it?", r"in\.jsonl:2: expected a JSON row with 'question' and 'context'"),
        ('{"question": "Who?"}', r"in\.jsonl:2: no 'context'"),
        ('{"question": "Who?", "context"', r"in\.jsonl:2: broken JSON"),
    ],
)
def test_a_row_that_is_no_question_ends_with_its_line(
    run: Path, tmp_path: Path, line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"question": "Who?", "context": "Anna."})
    (tmp_path / "in.jsonl").write_text(f"{good}\n{line}\n")
    capsys.readouterr()
    assert launch.main(["predict", str(run), "--input", str(tmp_path / "in.jsonl")]) == 7
    assert re.fullmatch(rf"graft: .*{complaint}.*\n", capsys.readouterr().err)


def test_an_exported_run_is_a_question_answering_model_and_comes_back(
    run: Path, tmp_path: Path
) -> None:
    assert launch.main(["export", str(run), "--to", "hf", str(tmp_path / "out")]) == 0
    config: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"]
    loaded = load(run)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded.params)
    params, account = pretrained.load(tmp_path / "out", abstract, fresh=lambda paths: {})
    assert account.fresh == account.unused == ()
    jax.tree.map(np.testing.assert_array_equal, params, loaded.params)


def test_what_is_shown_often_is_answered_word_by_word(tmp_path: Path) -> None:
    """Features, loss, search and grading agree: one mistake in any of them and 24 questions with
    and without answers are not learned by heart."""
    spec = Spec(
        vocab_size=120, width=64, depth=2, heads=4, hidden=128, max_positions=48, token_types=2
    )
    spec = dataclasses.replace(spec, dropout=0.0, attention_dropout=0.0)
    path = write(tmp_path / "a.json", squad(2, 3))
    config = Config(
        name="heart",
        task=Answer(backbone=Transformer(spec)),
        data=Questions(
            train=path,
            dev=path,
            tokenizer=tokenizer(tmp_path),
            max_length=48,
            max_question=8,
            stride=8,
            shapes=1,
        ),
        optim=Optim(learning_rate=2e-3, warmup=20),
        steps=300,
        batch_size=32,
        eval_every=300,
        evals=(HeldOut(tune=True),),
    )
    metrics = train.run(config, tmp_path / "runs").metrics
    assert metrics["dev/exact_match"] == metrics["dev/f1"] == 1.0


def test_version_1_1_trains_without_thresholds(folder: Path) -> None:
    old = write(folder / "old.json", squad(version="v1.1"))
    arguments = ["train", "configs/squad2.py", "--workdir", str(folder / "runs"), "--name", "old"]
    arguments += ["--init-from", str(folder / "bert"), "--batch-size", "8", "--steps", "2"]
    arguments += ["--epochs", "None", "--data.train", old, "--data.dev", old, "--data.shapes", "1"]
    arguments += ["--data.max-length", "24", "--data.max-question", "6"]
    assert launch.main(arguments) == 0
    result = runs.read_result(folder / "runs" / "old")
    assert result is not None
    assert {name for name in result["metrics"] if name.startswith("dev/")} == {
        *("dev/loss", "dev/window_accuracy", "dev/exact_match", "dev/f1")
    }
