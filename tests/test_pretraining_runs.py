"""Configs of pre-training, shrunk, from end to end; and what they leave, fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from research import runs
from research.data.tokenize import train_wordpiece
from research.infer.loaded import load

ROOT = Path(__file__).parents[1]
LINES = [
    " ".join(f"the {a} {b}s in {c}. it {b}s again." for b in ("sing", "swim", "run"))
    for a in ("cat", "dog", "bird", "fish")
    for c in ("town", "rivers", "snow")
]
READ = {
    "mlm": ("dev/loss", "dev/pseudo_perplexity"),
    "clm": ("dev/perplexity", "dev/bits_per_byte"),
    "rtd": ("dev/detection_loss", "dev/detection_accuracy", "dev/replaced"),
    "mixture": (
        "dev/loss",
        "dev/causal_bits_per_byte",
        "dev/spans_loss",
        "dev/spans_pseudo_perplexity",
    ),
    "sop": ("dev/order_accuracy", "dev/unmasked_order_accuracy", "dev/pseudo_perplexity"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretraining")
    (path / "train.txt").write_text("\n".join(LINES) + "\n")
    train_wordpiece(LINES, 80, path / "tokenizer.json")
    return path


def train(name: str, folder: Path, *more: str) -> Path:
    """A config of this name on the folder's text: four steps of a trunk 16 wide."""
    text, width = str(folder / "train.txt"), ["16", "1", "2", "32", "80"]
    flags = ["train", f"configs/{name}.py", "--workdir", str(folder / "runs"), *more]
    for option, value in zip(("width", "depth", "heads", "hidden", "vocab-size"), width):
        flags += [f"--task.backbone.spec.{option}", value]
        if name == "pretrain_rtd":
            small = {"heads": "1", "hidden": "16"}.get(option, value)
            flags += [f"--task.generator.spec.{option}", small]
    flags += [
        "--data.train",
        text,
        "--data.dev",
        text,
        "--data.tokenizer",
        str(folder / "tokenizer.json"),
    ]
    flags += ["--steps", "4", "--batch-size", "4", "--data.shapes", "1", "--data.max-length", "24"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert launch.main(flags) == 0
    return folder / "runs" / name


@pytest.mark.parametrize("name", READ)
def test_a_config_trains_and_says_what_its_docstring_names(name: str, folder: Path) -> None:
    result = runs.read_result(train(f"pretrain_{name}", folder))
    assert result is not None and result["steps"] == 4
    for metric in READ[name]:
        assert result["metrics"][metric] > 0, metric
    if name == "mixture":
        terms = result["metrics"]["dev/causal_loss"] + 0.5 * result["metrics"]["dev/spans_loss"]
        assert result["metrics"]["dev/loss"] == pytest.approx(terms)
    if name == "clm":
        lines = (folder / "train.txt").read_text().splitlines()
        odds = tell(folder / "runs" / "pretrain_clm", folder / "train.txt", folder / "out.jsonl")
        assert len(odds) == len(lines) and all(row["tokens"] > 5 for row in odds)


def tell(run: Path, source: Path, out: Path) -> list[dict[str, float]]:
    assert launch.main(["predict", str(run), "--input", str(source), "--output", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_discriminator_is_what_a_later_run_starts_from(folder: Path) -> None:
    first = folder / "runs" / "pretrain_rtd"
    if not (first / "result.json").exists():
        train("pretrain_rtd", folder)
    rows = [f"{line}\t{i % 2}" for i, line in enumerate(LINES)]
    (folder / "labelled.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    flags = ["train", "configs/sst2.py", "--workdir", str(folder / "runs"), "--init-from"]
    flags += [str(first), "--data.train", str(folder / "labelled.tsv"), "--batch-size", "4"]
    flags += ["--data.dev", str(folder / "labelled.tsv"), "--epochs", "1", "--data.shapes", "1"]
    # Nothing moves, so that the trunk is what it was loaded as.
    flags += ["--optim.learning-rate", "0", "--optim.weight-decay", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert launch.main(flags) == 0
    before, after = (load(path).params["backbone"] for path in (first, folder / "runs" / "sst2"))
    after.pop("pooler")
    jax.tree.map(np.testing.assert_array_equal, after, before)
