"""XLNet from the command line: pre-trained by permutations, fine-tuned, asked and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import launch
from research import initialize, runs
from research.infer.loaded import load
from research.models import pretrained
from research.models.xlnet import XLNet, XLNetSpec
from research.tasks.classify import Classify
from research.tasks.permutation import PermutationLM

ROOT = Path(__file__).parents[1]
SPECIAL = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and a tiny XLNet with random weights as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("xlnet")
    workshop.write_rows(folder)
    words = [word for group in workshop.WORDS.values() for word in group.split()]
    ids = {word: i for i, word in enumerate([*SPECIAL, *words, "the", "of", "and"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", special_tokens=[("<sep>", 4), ("<cls>", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = XLNetSpec(vocab_size=len(ids), width=16, depth=1, heads=2, hidden=32)
    task = PermutationLM(backbone=XLNet(spec))
    row = np.ones((1, 8), np.int32)
    batch: dict[str, Any] = {"tokens": row, "segments": row, "types": row * 0, "ids": row[:, :1]}
    batch |= {"positions": np.arange(8, dtype=np.int32)[None], "lengths": row[:, :1] * 8}
    params = initialize.initialize(task, batch, jax.random.key(0))
    assert pretrained.save(folder / "tiny", task, params, folder / "tokenizer.json") == ()
    return folder


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def flags(home: Path, folder: Path) -> list[str]:
    return [
        "--workdir", str(folder), "--data.train", str(home / "train.tsv"), "--data.text",
        "sentence", "--data.shapes", "1", "--data.max-length", "16", "--batch-size", "8",
        "--data.cache", str(home / "cache"),
    ]  # fmt: skip


def test_permutations_are_learned_and_fine_tuned(home: Path, tmp_path: Path) -> None:
    """The config of pre-training, shrunk, and a classifier that starts from its run."""
    common = [*flags(home, tmp_path), "--data.dev", str(home / "dev.tsv")]
    small = [
        "--data.tokenizer", str(home / "tokenizer.json"), "--task.share", "3", "--task.spans", "2",
        "--steps", "60", "--log-every", "10", "--save-every", "60", "--optim.learning-rate", "1e-2",
    ]  # fmt: skip
    spec = {"vocab-size": 20, "width": 16, "depth": 1, "heads": 2, "hidden": 32}
    for name, value in spec.items():
        small += [f"--task.backbone.spec.{name}", str(value)]
    assert launch.main(["train", "configs/pretrain_plm.py", *common, *small]) == 0
    run = tmp_path / "pretrain_plm"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("split") == "train"]
    # Thirteen words: guessing without context is 2.5 nats.
    assert losses[-1] < losses[0] - 0.3
    assert load(run).task.special_ids == tuple(range(7))

    arguments = ["train", "configs/sst2.py", *common, "--init-from", str(run), "--epochs", "1"]
    assert launch.main(arguments) == 2  # <cls> is last.
    assert launch.main([*arguments, "--task.pool", "last"]) == 0
    assert isinstance(load(tmp_path / "sst2").task.backbone, XLNet)


def test_a_directory_is_fine_tuned_asked_and_exported(home: Path, tmp_path: Path) -> None:
    more = ["--data.dev", str(home / "dev.tsv"), "--init-from", str(home / "tiny")]
    more += ["--epochs", "8", "--optim.learning-rate", "1e-2", "--task.pool", "last"]
    arguments = ["train", "configs/sst2.py", *flags(home, tmp_path), *more]
    assert launch.main(arguments) == 0
    run = tmp_path / "sst2"
    result = runs.read_result(run)
    assert result is not None and result["metrics"]["dev/accuracy"] > 0.8
    out = tmp_path / "out.jsonl"
    (tmp_path / "in.txt").write_text("apple and pear\nthe iron of zinc\n")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(out)]
    assert launch.main(["predict", str(run), *files]) == 0
    told = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert told == ["fruit", "metal"]
    assert launch.main(["export", str(run), "--to", "hf", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["XLNetForSequenceClassification"]
    task = Classify(backbone=load(run).task.backbone, labels=("fruit", "metal"), pool="last")
    assert pretrained.fits(tmp_path / "out", task)
    assert pretrained.trunk(tmp_path / "out").spec == task.backbone.spec
