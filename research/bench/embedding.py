"""Sentences to vectors, beside transformers as sentence-transformers calls it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.bench.ours import ROOT, Figures, call
from research.bench.workloads import dump, tokens_of_train
from research.config import Config, load_config
from research.journal import process_age


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Vectors of the texts of train, in another order every round, by both sides.

    `config` is a file of configs/; a text's vector is the mean over its tokens, of unit length. The
    score is the mean cosine between a side's vectors and ours: 1 where both compute the same.
    """

    config: str
    same: tuple[str, ...] = ()
    metric: str = "cosine with ours"
    against: str = "transformers"
    rival: str = "transformers_embed.py"

    def lengths(self, config: Config) -> np.ndarray:
        """Tokens of each text."""
        return tokens_of_train(config)

    def write(self, config: Config, folder: Path, seed: int) -> None:
        """The texts, one row a line."""
        stream = config.data.open("train", config.batch_size, steps=1, seed=seed)
        source, row_of = stream.examples.source, stream.examples.encoded.row_of
        rows = ({"text": source[row_of[i]][0]} for i in stream.permutation(0))
        dump(folder / f"train{seed}.jsonl", rows)

    def ours(self, bench: Any, seed: int, start: str) -> Figures:
        """`launch.py bench encode`, whose caches a `start` called cold fills."""
        command = [sys.executable, str(ROOT / "launch.py"), "bench", "encode"]
        command += [
            str(bench.folder / name) for name in ("config.py", f"train{seed}.jsonl", "ours")
        ]
        environment = {"GRAFT_CACHE": str(bench.folder / f"cache{seed}")}
        output, total = call([*command, *bench.overrides], environment)
        return json.loads(output.splitlines()[-1]) | {"total_seconds": total, "score": 1.0}

    def arguments(self, config: Config, folder: Path, seed: int) -> list[str]:
        """What the rival's script is called with."""
        found = [str(config.init_from), str(folder / f"train{seed}.jsonl"), str(folder / "theirs")]
        return [*found, "--max-length", str(config.data.max_length)]

    def grade(self, outputs: str, folder: Path) -> float:
        """The mean cosine between the rival's vectors, in that file, and ours."""
        theirs = np.load(outputs, allow_pickle=False)
        mine = np.load(folder / "ours.npy", allow_pickle=False)
        return float((mine * theirs).sum(-1).mean())


def encode(arguments: list[str]) -> None:
    """`bench encode CONFIG TEXTS VECTORS [OVERRIDES]`: writes the vectors, prints the figures."""
    import jax

    from research import audit, evaluate, initialize, runs, sharding

    file, texts, target, *overrides = arguments
    config = initialize.resolve(load_config(file, overrides, "launch.py bench encode"))
    mesh = config.mesh.build()
    lines = Path(texts).read_text("utf-8").splitlines()
    with jax.set_mesh(mesh):
        began = time.monotonic()
        rows = [json.loads(line)["text"] for line in lines]
        multiple = sharding.row_shards(mesh)
        batches = config.data.encode_rows(rows, config.batch_size, multiple=multiple)
        tokenized = time.monotonic() - began
        shapes = sharding.abstract_rows(batches.batch(0), mesh)
        abstract = initialize.abstract_params(config.task, shapes, mesh)
        params = initialize.starting_params(config, abstract, shapes, lambda _: None)
        model = evaluate.Model(config.task, params, config.data, mesh)
        program = evaluate.make_forward(config.task, means=False, method="encode")
        jax.block_until_ready(
            program(params, sharding.put(batches.batch(0), mesh), jax.random.key(0))
        )
        first, compiling, began = process_age(), program.seconds, time.monotonic()
        outputs = evaluate.forward(model, batches, means=False, method="encode")[1]
        taken = time.monotonic() - began - (program.seconds - compiling) + tokenized
    np.save(f"{target}.npy", outputs["vectors"], allow_pickle=False)
    leaves = audit.audit(config, abstract, mesh, batches)["parameters"]
    tokens = int(batches.lengths.sum())
    reach = float((batches.lengths.astype(float) ** 2).sum() / tokens)
    found = {
        "examples_per_second": len(rows) / taken,
        "tokens_per_second": tokens / taken,
        "padding": batches.padding,
        "compiled": len(program.executables),
        "first_step_seconds": first,
        "peak_memory_mb": runs.peak_memory_mb(),
        # A third of a training step's: without the backward pass.
        "flops_per_token": audit.flops_per_token(leaves, config.task.backbone.spec, int(reach)) / 3,
    }
    print(json.dumps(found))


EMBEDDING = {"embed": Encoding(config="simcse", same=("--data.max-length", "128"))}
