"""The command line as a stranger uses it: every verb on real files, and every promised refusal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import workshop

import launch
from research import config as configs
from research import runs
from research.models import pretrained
from research.study.runner import Runner

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    workshop.write_rows(path)
    return path


@pytest.fixture(scope="module")
def flags(folder: Path) -> list[str]:
    """configs/smoke.py on the tiny rows, in a second."""
    spec = "--task.backbone.spec"
    return [
        *(f"{spec}.vocab-size", "80", f"{spec}.width", "16", f"{spec}.depth", "1"),
        *(f"{spec}.hidden", "32", f"{spec}.max-positions", "32"),
        *("--data.train", str(folder / "train.tsv"), "--data.dev", str(folder / "dev.tsv")),
        *("--data.text", "sentence", "--data.tokenizer", str(folder / "tokenizer.json")),
        *("--batch-size", "8", "--data.max-length", "16", "--data.shapes", "1"),
    ]


@pytest.fixture(scope="module")
def run(folder: Path, flags: list[str]) -> Path:
    arguments = ["train", "configs/smoke.py", "--workdir", str(folder / "runs"), *flags]
    assert launch.main(arguments) == 0
    return folder / "runs" / "smoke"


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_train_leaves_what_the_contract_says(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "result.json", "report.html", "log.txt"}
    assert names >= {"checkpoints", "tokenizer", "audit.json", "tensorboard"}
    result = runs.read_result(run)
    assert result is not None
    assert result["metrics"]["dev/accuracy"] >= 0.5
    page = (run / "report.html").read_text()
    assert "dev/accuracy" in page
    assert "backbone/" in page
    assert "<script src" not in page


def test_show_prints_the_audit_and_trains_nothing(
    folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["show", "configs/smoke.py", *flags]) == 0
    said = capsys.readouterr().out
    assert "head/kernel" in said
    assert "padding" in said
    assert not (folder / "runs" / "shown").exists()


def test_predict_answers_in_order_and_agrees_with_evaluate(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split("\t") for line in (folder / "dev.tsv").read_text().splitlines()[1:]]
    texts = [json.dumps({"sentence": text}) if i % 2 else text for i, (text, _) in enumerate(rows)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    assert launch.main(["predict", str(run), *files]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(found) == len(rows)
    for answer in found:
        assert set(answer["probabilities"]) == set(workshop.WORDS)
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    correct = sum(answer["label"] == label for answer, (_, label) in zip(found, rows))
    capsys.readouterr()
    assert launch.main(["evaluate", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)["dev/accuracy"] == pytest.approx(correct / len(rows))
    assert launch.main(["evaluate", str(run), "--data", str(folder / "train.tsv")]) == 0
    assert json.loads(capsys.readouterr().out)["dev/accuracy"] >= 0.5


def test_reports_of_one_run_and_of_two(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["report", str(run)]) == 0
    assert launch.main(["report", str(run), str(run), "--to", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file()
    assert "dev/accuracy" in capsys.readouterr().out


def test_pretrain_graft_export_and_load_again(folder: Path, flags: list[str]) -> None:
    """The whole road: masked LM, a BERT directory out of it, sst2's config on that directory."""
    road = ["--workdir", str(folder / "road")]
    more = ["--steps", "6", "--task.backbone.spec.token-types", "2", "--save-every", "6"]
    assert launch.main(["train", "configs/pretrain_mlm.py", *road, *flags, *more]) == 0
    bert = folder / "road" / "bert"
    trained = str(folder / "road" / "pretrain_mlm")
    assert launch.main(["export", trained, "--to", "hf", str(bert)]) == 0
    assert pretrained.trunk(bert).spec.width == 16
    data = ["--data.train", str(folder / "train.tsv"), "--data.dev", str(folder / "dev.tsv")]
    tiny = ["--init-from", str(bert), "--epochs", "1", "--batch-size", "8", *data]
    assert launch.main(["train", "configs/sst2.py", *road, *tiny]) == 0
    result = runs.read_result(folder / "road" / "sst2")
    assert result is not None
    assert result["steps"] == 6
    classifier = folder / "road" / "classifier"
    assert (
        launch.main(["export", str(folder / "road" / "sst2"), "--to", "hf", str(classifier)]) == 0
    )
    assert pretrained.labels(classifier) == ("fruit", "metal")


def test_the_quickstart_runs_small(tmp_path: Path) -> None:
    study = configs.load("experiments/quickstart.py", "study")
    runner = Runner(tmp_path / "quickstart", progress=False)
    page = study(runner, seeds=2, shots=(2,), pretrain_steps=2, steps=2)
    said = page.text()
    for arm in ("pre-trained", "scratch", "bag of words", "majority"):
        assert arm in said
    assert len(runner.results) == 1 + 2 * 2
    rows = (tmp_path / "quickstart" / "results.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["name"] == "pretrain"


def refusals(folder: Path) -> list[tuple[list[str], int, str]]:
    (folder / "empty.tsv").write_text("")
    (folder / "odd.tsv").write_text("sentence\tlabel\nan iron\tmetal\nzinc\twood\n")
    (folder / "torn.tsv").write_text("sentence\tlabel\nan iron\tmetal\textra\n")
    (folder / "typo.py").write_text("def config(:\n")
    train = ["train", "configs/smoke.py", "--workdir", str(folder / "refused")]
    return [
        ([], 0, ""),
        (["trian"], 2, "no verb 'trian'"),
        (["train"], 2, "give a FILE"),
        (["train", "configs/missing.py"], 2, "no such file"),
        (["train", str(folder / "typo.py")], 2, "typo.py:1: invalid syntax"),
        ([*train, "--optim.learning-rte", "1"], 2, "did you mean --optim.learning-rate"),
        ([*train, "--batch-size", "0"], 2, "batch_size is 0"),
        ([*train, "--mesh.data", "3"], 2, "does not fit"),
        ([*train, "--data.train", "missing.tsv"], 7, "missing.tsv"),
        ([*train, "--data.train", str(folder / "empty.tsv")], 7, "empty.tsv"),
        ([*train, "--data.train", str(folder / "torn.tsv")], 7, "torn.tsv:2"),
        ([*train, "--data.dev", str(folder / "odd.tsv")], 7, "odd.tsv:3.*wood"),
        (["evaluate", str(folder)], 2, "is not a run"),
        (["predict", str(folder / "nowhere")], 2, "is not a run"),
        (["export", str(folder), "--to", "onnx", "x"], 2, "the formats are hf and peft"),
        (["replay", str(folder / "runs" / "smoke")], 2, "no replay bundle"),
        (["train", "configs/sst2.py", "--init-from", str(folder)], 2, "config.json"),
    ]


def test_every_refusal_is_one_sentence_with_its_code(
    run: Path, folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, pattern in refusals(folder):
        given = list(arguments)
        if given[:2] == ["train", "configs/smoke.py"]:
            given = [*given[:2], *flags, *given[2:]]
        capsys.readouterr()
        assert launch.main(given) == code, arguments
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if code:
            assert said.startswith("graft: ")
            assert said.count("\n") == 1, said
            assert re.search(pattern, said), said


def test_a_text_of_a_hundred_thousand_words_is_truncated_and_answered(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("iron " * 100_000 + "\n")
    out = tmp_path / "out.jsonl"
    arguments = ["--input", str(tmp_path / "long.txt"), "--output", str(out)]
    assert launch.main(["predict", str(run), *arguments]) == 0
    assert json.loads(out.read_text())["label"] in workshop.WORDS


def test_help_is_useful_at_each_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help"]) == 0
    assert "predict RUN" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        launch.main(["train", "configs/sst2.py", "--help"])
    said = capsys.readouterr().out
    assert "--optim.learning-rate" in said
    with pytest.raises(SystemExit):
        launch.main(["study", "experiments/quickstart.py", "--help"])
    assert "--pretrain-steps" in capsys.readouterr().out


def test_the_command_itself_exits_with_the_code() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "train", "nothing.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "graft: nothing.py: no such file\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the malloc in question is glibc's")
@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2"])
def test_memory_is_kept_by_this_process_and_not_by_those_it_starts(own: str | None) -> None:
    """A rival of a bench is to have its own malloc; what a user sets holds for all."""
    told = """import os, pathlib
pathlib.Path.glob = lambda *_: []
import launch
launch.with_kept_memory()
began = pathlib.Path("/proc/self/environ").read_text().split(chr(0))
print(*[entry for entry in began if entry.startswith("GLIBC_TUNABLES")])
print(os.environ.get("GLIBC_TUNABLES"), "GRAFT_KEPT_MEMORY" in os.environ)"""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": own} if own else {}
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    began, after = done.stdout.splitlines()
    assert began == f"GLIBC_TUNABLES={own}" if own else "hugetlb=1" in began
    assert after == f"{own} False"
