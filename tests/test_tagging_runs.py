"""Every config of tagging from end to end on a small file: train, evaluate, predict, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from tagged_files import INTENTS, NAMES, write_tagged

import launch
from research import initialize, runs
from research.data import tags
from research.data.tagged import Tagged
from research.models import pretrained
from research.models.transformer import Spec, Transformer
from research.tasks.tag import Tag

ROOT = Path(__file__).parents[1]
CONLL = ("conll2003", "conll2003_crf", "wnut17", "masakhaner", "ncbi_disease")
CONFIGS = (*CONLL, "conll2003_bilstm_crf", "atis")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files, and a small BERT in the format of Hugging Face."""
    path = write_tagged(tmp_path_factory.mktemp("runs"))
    spec = Spec(
        vocab_size=90, width=16, depth=1, heads=2, hidden=32, max_positions=64, token_types=2
    )
    task = Tag(backbone=Transformer(spec), labels=("O", "B-x", "I-x"), scheme="BIO")
    data = Tagged(train=str(path / "train.conll"), tokenizer=str(path / "tokenizer.json"))
    batch = data.open("train", 4).batch(0)
    params = initialize.initialize(task, batch, jax.random.key(0))
    pretrained.save(path / "bert", task, jax.device_get(params), path / "tokenizer.json")
    return path


def flags(folder: Path, name: str) -> list[str]:
    given = ["--batch-size", "8", "--epochs", "6", "--optim.learning-rate", "1e-2"]
    if name == "atis":
        given += ["--data.train", f"txt:{folder}/train/seq.in"]
        given += ["--data.dev", f"txt:{folder}/dev/seq.in"]
    else:
        given += ["--data.train", f"conll:{folder}/train.conll"]
        given += ["--data.dev", f"conll:{folder}/dev.conll"]
    if name == "conll2003_bilstm_crf":
        spec = "--task.backbone.spec"
        given += [f"{spec}.vocab-size", "60", f"{spec}.word-width", "8", f"{spec}.width", "16"]
        given += [f"{spec}.dropout", "0.0", "--data.tokenizer", "words:60"]
    else:
        given += ["--init-from", str(folder / "bert")]
    return [*given, "--data.test", "", "--data.shapes", "1"]


@pytest.fixture(scope="module", params=CONFIGS)
def run(folder: Path, request: pytest.FixtureRequest) -> Path:
    name = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        where = ["--workdir", str(folder / "out")]
        assert launch.main(["train", f"configs/{name}.py", *where, *flags(folder, name)]) == 0
    return folder / "out" / name


def test_a_config_learns_and_leaves_a_page(run: Path) -> None:
    result = runs.read_result(run)
    assert result is not None
    metrics = result["metrics"]
    assert metrics["dev/f1"] > 0.5
    assert {f"dev/{name}" for name in ("precision", "recall", "accuracy", "loss")} <= set(metrics)
    page = (run / "report.html").read_text()
    assert "dev/f1" in page
    for kind in NAMES:
        assert kind in page
    assert (run / "tokenizer" / "tokenizer.json").is_file()
    if run.name == "atis":
        assert metrics["dev/intent_accuracy"] > 0.5
        assert metrics["dev/exact_match"] <= min(metrics["dev/intent_accuracy"], 1)


def test_predict_agrees_with_evaluate(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scored by hand from what `predict` writes, in whatever folder it is asked."""
    gold = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    rows: list[Any] = [{"tokens": row["tokens"]} for row in gold]
    rows[0] = " ".join(gold[0]["tokens"])
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert launch.main(["predict", str(run), *files]) == 0
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["tokens"] for answer in told] == [row["tokens"] for row in gold]
    hits = predicted = labelled = 0
    for answer, row in zip(told, gold):
        wanted = set(tags.entities(row["tags"]))
        found = set(tags.entities(answer["tags"]))
        hits, predicted = hits + len(wanted & found), predicted + len(found)
        labelled += len(wanted)
        text = " ".join(row["tokens"])
        for entity in answer["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
    capsys.readouterr()
    assert launch.main(["evaluate", str(run)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["dev/f1"] == pytest.approx(2 * hits / (predicted + labelled))
    if run.name == "atis":
        right = [a["intent"] == row["intent"] for a, row in zip(told, gold)]
        assert set(INTENTS.values()) >= {answer["intent"] for answer in told}
        assert scores["dev/intent_accuracy"] == pytest.approx(sum(right) / len(right))


def test_export_is_for_linear_heads_on_bert(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = launch.main(["export", str(run), "--to", "hf", str(tmp_path / "hf")])
    said = capsys.readouterr().err
    if run.name in ("conll2003", "wnut17", "masakhaner", "ncbi_disease"):
        assert code == 0
        config = json.loads((tmp_path / "hf" / "config.json").read_text())
        assert config["architectures"] == ["BertForTokenClassification"]
        assert set(config["label2id"]) == set(tags.names(tuple(NAMES), "BIO"))
        return
    assert code == 2
    reason = "computes a RecurrentSpec trunk" if "bilstm" in run.name else "which is Tag, not"
    assert reason in said


def test_bad_lines_are_refused_with_their_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "dev.conll").write_text("Bo B-PER\n\nnear O\nAster B-STAR\n")
    given = [*flags(folder, "ncbi_disease"), "--data.dev", f"conll:{tmp_path}/dev.conll"]
    where = ["--workdir", str(tmp_path / "out")]
    assert launch.main(["train", "configs/ncbi_disease.py", *where, *given]) == 7
    said = capsys.readouterr().err
    assert said.startswith(f"graft: {tmp_path}/dev.conll:4: word 2 ('Aster'): tag 'B-STAR'")
    assert said.count("\n") == 1


def test_vectors_are_what_the_trunk_starts_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "vectors.txt").write_text("ship 1 2 3 4 5 6 7 8\nquill 8 7 6 5 4 3 2 1\n")
    given = [
        *flags(folder, "conll2003_bilstm_crf"),
        "--data.vectors",
        str(tmp_path / "vectors.txt"),
    ]
    where = ["--workdir", str(tmp_path / "out"), "--epochs", "1"]
    assert launch.main(["train", "configs/conll2003_bilstm_crf.py", *where, *given]) == 0
    said = (tmp_path / "out" / "conll2003_bilstm_crf" / "log.txt").read_text()
    assert "vectors for 2 of" in said
