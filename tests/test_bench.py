"""Benches: both sides are given the same tokens, and the rival's loop learns the same objective."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import workshop
from bert_directory import write_bert

from research import initialize
from research.bench import embedding, machine, ours, tables, turns
from research.bench.pretraining import PRETRAINING
from research.config import Config, load_config
from research.data.corpus import Corpus
from research.data.texts import Texts
from research.errors import ConfigError

ROOT = Path(__file__).parents[1]


def small(name: str, folder: Path) -> Config:
    """A workload's config of 3 steps on small texts, 16 wide."""
    workload = PRETRAINING[name]
    widths = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "vocab-size": 80}
    if name.startswith("llama"):
        widths["kv-heads"] = 1
    flags = list(workload.same)
    for part in ("backbone", "generator") if name == "rtd" else ("backbone",):
        for option, value in widths.items():
            flags += [f"--task.{part}.spec.{option}", str(value)]
    config = load_config(ROOT / "configs" / f"{workload.config}.py", flags)
    rows = {"train": str(folder / "train.tsv"), "dev": str(folder / "dev.tsv")}
    tokenizer = str(folder / "tokenizer.json")
    assert isinstance(config.data, Corpus | Texts)
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
        "bert_large": "BertForMaskedLM",
        "gpt2": "GPT2LMHeadModel",
        "gpt2_xl": "GPT2LMHeadModel",
        "llama_8b": "LlamaForCausalLM",
        "llama_8b_lora": "LlamaForCausalLM",
    }
    assert said["architectures"] == [classes[name]]
    given = PRETRAINING[name].arguments(config, tmp_path, 5)
    assert ("--lora-rank" in given) == (name == "llama_8b_lora")


@pytest.mark.parametrize("name", ["bert_large", "gpt2", "gpt2_xl", "llama_8b", "llama_8b_lora"])
def test_workloads_of_a_gpu_are_of_the_published_sizes(name: str) -> None:
    workload = PRETRAINING[name]
    config = load_config(ROOT / "configs" / f"{workload.config}.py", list(workload.same))
    cells = ("tokens", "positions", "segments", "types", "ids", "starts", "lengths")
    rows = dict.fromkeys(cells, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    trunk = config.task.backbone
    shapes = jax.eval_shape(lambda rows: trunk.init(jax.random.key(0), rows)["params"], rows)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # Without a call to it, a table for scores of its own is not made.
    count += 0 if trunk.spec.tied else trunk.spec.vocab_size * trunk.spec.width
    sizes = {"bert_large": 335e6, "gpt2": 124e6, "gpt2_xl": 1558e6}
    assert count == pytest.approx(sizes.get(name, 8030e6), rel=0.01)
    assert config.data.max_length == {"bert": 512, "gpt2": 1024, "llam": 4096}[name[:4]]
    assert config.steps == 40 and trunk.spec.vocab_size > 6000


@pytest.mark.parity
@pytest.mark.parametrize("name", ["mlm", "clm", "plm", "rtd", "gpt2", "llama_8b_lora"])
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


def side(*speeds: float | None) -> list[dict[str, Any]]:
    return [dict.fromkeys(tables.UNITS, speed) for speed in speeds]


def test_ratios_are_taken_round_by_round() -> None:
    said = tables.table({"Graft": side(2, 9, 4), "PyTorch": side(1, 3, 4)}, "train/loss").to_text()
    (row,) = [line for line in said.splitlines() if line.startswith("train/loss")]
    assert row.split(None, 1)[1].startswith("4 (2 to 9)") and "2.00 (1.00 to 3.00)" in row


def test_rounds_without_a_value_are_counted() -> None:
    found = {"Graft": side(2, 9, 4), "PyTorch": side(1, None, 4)}
    said = tables.table(found, "train/loss").to_text()
    (row,) = [line for line in said.splitlines() if line.startswith("train/loss")]
    assert "2.5 (1 to 4, 2 of 3 rounds)" in row and "1.50 (1.00 to 2.00, 2 of 3 rounds)" in row
    assert tables.spread([None, None]) == "none"


class Fake:
    """A bench whose sides cost nothing."""

    workload = config = folder = None

    def __init__(self) -> None:
        self.workload = self
        self.calls: list[tuple[str, int]] = []

    def write(self, config: Any, folder: Any, seed: int) -> None:
        self.calls.append(("rows", seed))

    def products(self, library: str, dtype: str, seed: int) -> float:
        return {"jax": 2.0, "torch": 4.0}[library]

    def measure(self, name: str, seed: int) -> dict[str, Any]:
        self.calls.append((name, seed))
        mine = {"flops_per_token": 3e8} if name == "Graft" else {}
        library = "jax" if name == "Graft" else "torch"
        return {"tokens_per_second": 5.0, "library": library, "dtype": "float32", **mine}


def test_sides_take_turns_and_another_seed_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "others", lambda: 0.0)
    bench: Any = Fake()
    names = ("Graft", "default", "steelman")
    sides = {name: functools.partial(bench.measure, name) for name in names}
    found, loads = turns.rounds(bench, sides, 3, strict=True)
    assert bench.calls == [(name, seed) for seed in range(3) for name in ("rows", *names)]
    assert loads == [0.0] * 3
    # Both do the same work: 5 tokens/s of 0.3 GFLOP each.
    assert [one["products_share"] for one in found["Graft"]] == pytest.approx([0.75] * 3)
    assert [one["products_share"] for one in found["steelman"]] == pytest.approx([0.375] * 3)


def test_a_busy_machine_is_said_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "others", lambda: 0.5)
    bench: Any = Fake()
    sides = {"Graft": functools.partial(bench.measure, "Graft")}
    with pytest.raises(ConfigError, match="others use 50% of the processors before round 1"):
        turns.rounds(bench, sides, 1, strict=True)
    _, loads = turns.rounds(bench, sides, 1, strict=False)
    assert "its figures are doubtful" in capsys.readouterr().err
    found = {"Graft": [one | {"score": 1.0} for one in [bench.measure("Graft", 0)]]}
    facts = tables.circumstances(found, loads, ["sst2"])
    page = tables.page("bench", "dev/accuracy", found, facts)
    assert "Others used up to 50%" in page.markdown()


def test_what_a_bench_cannot_do_is_said_first() -> None:
    with pytest.raises(ConfigError, match="no rival 'best'; there are default, steelman, compiled"):
        turns.main(["sst2", "--rivals", "default,best"])
    with pytest.raises(ConfigError, match="mlm has no score on dev for --target"):
        turns.main(["mlm", "--target", "0.8"])


def test_a_score_counts_from_the_line_that_holds_it(tmp_path: Path) -> None:
    bench = SimpleNamespace(workload=turns.EVERY["sst2"], target=0.8)
    lines = tmp_path / "metrics.jsonl"
    assert not ours.scores(lines, bench)
    lines.write_text('{"split": "train", "accuracy": 0.9}\n{"split": "dev", "accuracy": 0.79}\n')
    assert not ours.scores(lines, bench)
    with lines.open("a") as file:
        file.write('{"split": "dev", "accuracy": 0.8')
    assert not ours.scores(lines, bench)
    with lines.open("a") as file:
        file.write("}\n")
    assert ours.scores(lines, bench)


def encoding(folder: Path) -> turns.Bench:
    """The workload of vectors on the texts of train, by a tiny BERT."""
    workshop.write_rows(folder)
    texts = [line.split("\t")[0] for line in (folder / "train.tsv").read_text().splitlines()[1:]]
    model = write_bert(folder, texts, 80)
    (folder / "texts.txt").write_text("\n".join(texts))
    given = ["--init-from", str(model), "--data.train", str(folder / "texts.txt")]
    options = SimpleNamespace(
        workload="embed", target=None, cold=False, rival_python=sys.executable
    )
    bench = turns.prepare(options, [*given, "--batch-size", "7"], folder)
    bench.workload.write(bench.config, folder, 1)
    return bench


def test_each_text_has_its_own_vector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = encoding(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train1.jsonl").read_text().splitlines()]
    arguments = [str(tmp_path / name) for name in ("config.py", "train1.jsonl", "ours")]
    embedding.encode([*arguments, *bench.overrides])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    vectors = np.load(tmp_path / "ours.npy", allow_pickle=False)
    assert len(rows) == len(vectors) == 48 and found["compiled"] <= 3
    same = {}
    for row, vector in zip(rows, vectors):
        np.testing.assert_allclose(vector, same.setdefault(row["text"], vector), atol=1e-5)
    assert len(np.unique(vectors.round(4), axis=0)) == len(same)
    assert bench.workload.grade(str(tmp_path / "ours.npy"), tmp_path) == pytest.approx(1)


@pytest.mark.parity
def test_the_rival_makes_the_same_vectors(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    bench = encoding(tmp_path)
    arguments = [str(tmp_path / name) for name in ("config.py", "train1.jsonl", "ours")]
    embedding.encode([*arguments, *bench.overrides])
    for settings in ("default", "steelman"):
        found = bench.theirs(1, settings)
        assert found["score"] == pytest.approx(1, abs=1e-5 if found["dtype"] == "float32" else 1e-2)
        assert found["warm_first_step_seconds"] > 0 and 0 <= found["padding"] < 1


@pytest.mark.parity
def test_rivals_answer_in_the_order_of_the_rows_at_any_settings(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    workshop.write_rows(tmp_path)
    texts = [line.split("\t")[0] for line in (tmp_path / "train.tsv").read_text().splitlines()[1:]]
    given = ["--init-from", str(write_bert(tmp_path, texts, 80)), "--data.text", "sentence"]
    for split in ("train", "dev"):
        given += [f"--data.{split}", str(tmp_path / f"{split}.tsv")]
    options = SimpleNamespace(workload="sst2", target=None, cold=True, rival_python=sys.executable)
    bench = turns.prepare(options, [*given, "--optim.learning-rate", "1e-9"], tmp_path)
    bench.workload.write(bench.config, tmp_path, 1)
    script = [sys.executable, str(turns.RIVALS / bench.workload.rival)]
    script += bench.workload.arguments(bench.config, tmp_path, 1)
    told = []
    for settings in ("default", "steelman"):
        output, _ = ours.call([*script, *turns.SETTINGS[settings]], {"HF_HUB_OFFLINE": "1"})
        told.append(np.array(json.loads(output.splitlines()[-1])["outputs"])[:, 0])
    assert np.corrcoef(*told)[0, 1] > 0.99
