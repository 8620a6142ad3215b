"""Embeddings from the command line: both configs train, are evaluated, predict and are exported."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import workshop

import launch
from research import runs
from research.data.wordpiece import train_wordpiece

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of sentences of one subject, with a hard negative; scored pairs; plain texts."""
    path = tmp_path_factory.mktemp("embed")
    generator = random.Random(0)
    subjects = [words.split() for words in workshop.WORDS.values()]

    def sentence(subject: list[str]) -> str:
        return " ".join(generator.choices([*subject, "the", "of"], k=generator.randint(3, 8)))

    rows = [(sentence(one), sentence(one), sentence(two)) for one, two in [subjects] * 20]
    rows += [(sentence(two), sentence(two), sentence(one)) for one, two in [subjects] * 20]
    lines = ["label\tpremise\thypothesis\tnegative", "contradiction\tan apple\ttin\ttin"]
    lines += ["entailment\t" + "\t".join(row) for row in rows]
    (path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    scored = [f"{sentence(one)}\t{sentence(one)}\t5" for one in subjects * 6]
    scored += [f"{sentence(subjects[0])}\t{sentence(subjects[1])}\t{i % 3}" for i in range(12)]
    (path / "dev.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(scored) + "\n")
    bare = ["\t".join([(cells := row.split("\t"))[2], *cells[:2]]) for row in scored]
    (path / "bare.tsv").write_text("\n".join(bare) + "\n")
    (path / "texts.txt").write_text("\n".join(row[0] for row in rows) + "\n")
    train_wordpiece([text for row in rows for text in row], 80, path / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    """A tiny BERT directory, made by Graft's own pre-training."""
    spec = "--task.backbone.spec"
    flags = [
        *(f"{spec}.vocab-size", "80", f"{spec}.width", "16", f"{spec}.depth", "1"),
        *(f"{spec}.hidden", "32", f"{spec}.max-positions", "32", f"{spec}.token-types", "2"),
        *("--data.train", str(folder / "texts.txt"), "--data.text", "text"),
        *("--data.dev", str(folder / "texts.txt")),
        *("--data.tokenizer", str(folder / "tokenizer.json"), "--data.max-length", "16"),
        *("--batch-size", "8", "--data.shapes", "1", "--steps", "2", "--save-every", "2"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        road = ["--workdir", str(folder / "runs")]
        assert launch.main(["train", "configs/pretrain_mlm.py", *road, *flags]) == 0
        run = str(folder / "runs" / "pretrain_mlm")
        assert launch.main(["export", run, "--to", "hf", str(folder / "bert")]) == 0
    return folder / "bert"


def train(folder: Path, bert: Path, config: str, *flags: str) -> Path:
    arguments = ["train", f"configs/{config}.py", "--workdir", str(folder / "runs")]
    arguments += ["--init-from", str(bert), "--data.dev", str(folder / "dev.tsv")]
    arguments += ["--batch-size", "8", "--data.shapes", "1", "--data.max-length", "16"]
    assert launch.main([*arguments, *flags]) == 0
    return folder / "runs" / config


def test_pairs_train_evaluate_predict_and_export(
    folder: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data.train", str(folder / "pairs.tsv"), "--data.negatives", "negative"]
    flags += ["--optim.learning-rate", "1e-2", "--epochs", "4", "--task.chunks", "2"]
    run = train(folder, bert, "embed_pairs", *flags)
    result = runs.read_result(run)
    assert result is not None
    assert result["metrics"]["dev/spearman"] > 0.5
    assert "furthest in rank" in (run / "report.html").read_text()
    capsys.readouterr()
    bare = ["--data", str(folder / "bare.tsv")]
    bare += ["--data.scored-columns", "score", "sentence1", "sentence2"]
    assert launch.main(["evaluate", str(run), *bare]) == 0
    found = json.loads(capsys.readouterr().out)["dev/spearman"]
    assert found == pytest.approx(result["metrics"]["dev/spearman"], abs=1e-6)
    texts = (folder / "texts.txt").read_text().splitlines()[:5]
    given, lines, array = (tmp_path / name for name in ("in.txt", "out.jsonl", "out.npy"))
    given.write_text("\n".join(texts) + "\n")
    for output in (lines, array):
        assert (
            launch.main(["predict", str(run), "--input", str(given), "--output", str(output)]) == 0
        )
    vectors = np.load(array, allow_pickle=False)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    told = [json.loads(line)["vector"] for line in lines.read_text().splitlines()]
    np.testing.assert_array_equal(np.asarray(told, np.float32), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    row = json.dumps({"sentence1": texts[0], "sentence2": texts[1]})
    given.write_text(row + "\n")
    assert launch.main(["predict", str(run), "--input", str(given), "--output", str(lines)]) == 0
    pair = json.loads(lines.read_text())
    assert pair["similarity"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    out = tmp_path / "exported"
    assert launch.main(["export", str(run), "--to", "hf", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]
    capsys.readouterr()
    assert launch.main(["predict", str(run), "--input", str(given), "--output", str(array)]) == 2
    assert "holds similarity, vectors" in capsys.readouterr().err


def test_simcse_trains_on_plain_texts(folder: Path, bert: Path) -> None:
    flags = ["--data.train", str(folder / "texts.txt"), "--epochs", "1", "--eval-every", "5"]
    result = runs.read_result(train(folder, bert, "simcse", *flags))
    assert result is not None
    assert -1.0 <= result["metrics"]["dev/spearman"] <= 1.0
    assert np.isfinite(result["metrics"]["train/loss"])


def test_microbatches_are_refused_before_anything_is_opened(
    folder: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "configs/simcse.py", "--workdir", str(folder / "refused")]
    arguments += ["--init-from", str(bert), "--microbatches", "2"]
    assert launch.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "use task.chunks" in said
