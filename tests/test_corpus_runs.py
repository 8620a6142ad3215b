"""Pre-training on corpora: packed blocks give what padded pieces give; a run goes end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import workshop

from research import initialize
from research.config import build, describe, load_config, override
from research.data.corpus import Corpus
from research.data.duplicates import Exact, MinHash
from research.data.quality import Length
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.lm import MaskedLM
from research.train import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus_runs")
    workshop.write_rows(path)
    for name in ("train", "dev"):
        rows = (path / f"{name}.tsv").read_text().splitlines()[1:]
        (path / f"{name}.txt").write_text("\n".join(row.split("\t")[0] for row in rows))
    return path


def config(folder: Path):
    made = load_config("configs/pretrain_mlm.py", [])
    spec = Spec(vocab_size=80, width=16, depth=1, heads=2, hidden=32, max_positions=32)
    data = Corpus(
        mixture=((str(folder / "train.txt"), 2.0), (str(folder / "train.tsv"), 1.0)),
        dev=str(folder / "dev.txt"),
        text="sentence",
        tokenizer=str(folder / "tokenizer.json"),
        max_length=16,
        filters=(Length(fewest=2),),
        words=True,
    )
    return dataclasses.replace(
        made,
        task=made.task.clone(backbone=Transformer(spec)),
        data=data,
        optim=Optim(learning_rate=1e-2),
        evals=(HeldOut(batch_size=4),),
        steps=4,
        batch_size=4,
        log_every=2,
    )


def test_a_run_goes_end_to_end_and_its_config_can_be_read_back(folder: Path) -> None:
    tiny = config(folder)
    for finder in (None, Exact(), MinHash()):
        data = dataclasses.replace(tiny.data, duplicates=finder)
        assert build(json.loads(json.dumps(describe(data)))) == data
        assert override(data, ["--max-length", "24"], "x") == dataclasses.replace(
            data, max_length=24
        )
    result = run(tiny, folder / "runs")
    assert np.isfinite(result.metrics["dev/loss"])
    summary = json.loads((result.path / "audit.json").read_text())["summary"]
    assert summary["padding"] < 0.2


def test_packed_blocks_give_the_loss_and_gradient_of_padded_pieces(folder: Path) -> None:
    data = dataclasses.replace(
        config(folder).data, mixture=(), train=str(folder / "train.txt"), filters=()
    )
    spec = Spec(vocab_size=80, width=16, depth=1, heads=2, hidden=32, max_positions=32)
    task = MaskedLM(backbone=Transformer(spec), rate=0.5, vocab_size=80, mask_id=4)
    found = []
    for layout in ("packed", "padded"):
        batch = dataclasses.replace(data, layout=layout).open("train", 6).batch(1)
        params = initialize.initialize(task, batch, jax.random.key(0))

        def loss(params, batch=batch):
            noise = {"noise": jax.random.key(3)}
            return task.apply({"params": params}, batch, train=True, rngs=noise)["loss"].total

        found.append((batch["tokens"].shape, jax.value_and_grad(loss)(params)))
    (packed, one), (padded, other) = found
    assert packed[0] < padded[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), one, other)
