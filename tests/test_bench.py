"""Benches: both sides are given the same tokens, and the rival's loop learns the same objective."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import workshop

from research import initialize
from research.bench import turns
from research.bench.pretraining import PRETRAINING
from research.config import Config, load_config

ROOT = Path(__file__).parents[1]


def small(name: str, folder: Path) -> Config:
    """A workload's config of 3 steps on small texts, 16 wide."""
    workload = PRETRAINING[name]
    widths = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "vocab-size": 80}
    flags = list(workload.same)
    for part in ("backbone", "generator") if name == "rtd" else ("backbone",):
        for option, value in widths.items():
            flags += [f"--task.{part}.spec.{option}", str(value)]
    config = load_config(ROOT / "configs" / f"{workload.config}.py", flags)
    rows = {"train": str(folder / "train.tsv"), "dev": str(folder / "dev.tsv")}
    tokenizer = str(folder / "tokenizer.json")
    data = dataclasses.replace(
        config.data, **rows, text="sentence", tokenizer=tokenizer, max_length=15
    )
    return initialize.resolve(dataclasses.replace(config, data=data, steps=3, batch_size=8))


@pytest.mark.parametrize("name", PRETRAINING)
def test_the_rival_is_given_our_tokens_step_by_step(name: str, tmp_path: Path) -> None:
    workshop.write_rows(tmp_path)
    config = small(name, tmp_path)
    PRETRAINING[name].write(config, tmp_path, 5)
    lines = (tmp_path / "train5.jsonl").read_text().splitlines()
    stream = config.data.open("train", 8, steps=3, seed=5)
    assert len(lines) == 3
    for step, line in enumerate(lines):
        batch = stream.batch(step)
        ours = sorted(batch["tokens"][batch["segments"] > 0].tolist())
        theirs = json.loads(line)["tokens"]
        assert len(theirs) == 8 and sorted(i for row in theirs for i in row) == ours
    said = json.loads((tmp_path / "config.json").read_text())
    classes = {
        "mlm": "BertForMaskedLM",
        "clm": "LlamaForCausalLM",
        "plm": "XLNetLMHeadModel",
        "rtd": "ElectraForPreTraining",
    }
    assert said["architectures"] == [classes[name]]


@pytest.mark.parity
@pytest.mark.parametrize("name", PRETRAINING)
def test_the_rival_begins_where_chance_is(name: str, tmp_path: Path) -> None:
    """log V for words, and log 2 for replacements besides."""
    pytest.importorskip("torch", reason="torch is not installed")
    workshop.write_rows(tmp_path)
    config = small(name, tmp_path)
    PRETRAINING[name].write(config, tmp_path, 0)
    bench = turns.Bench(PRETRAINING[name], config, (), sys.executable, tmp_path)
    found = bench.theirs(0)
    chance = math.log(80) + (50 * math.log(2) if name == "rtd" else 0)
    assert found["score"] == pytest.approx(chance, rel=0.1)
    assert found["tokens_per_second"] > 0 and found["peak_memory_mb"] > 0


def test_ratios_are_taken_round_by_round() -> None:
    def side(*speeds: float) -> list[dict[str, float]]:
        return [dict.fromkeys(turns.UNITS, speed) for speed in speeds]

    said = turns.table({"Graft": side(2, 9, 4), "PyTorch": side(1, 3, 4)}, "train/loss").to_text()
    (row,) = [line for line in said.splitlines() if line.startswith("train/loss")]
    assert row.split(None, 1)[1].startswith("4 (2 to 9)") and "2.00 (1.00 to 3.00)" in row
