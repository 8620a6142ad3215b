"""Pre-training from nothing, beside a plain loop of PyTorch over the same class and tokens.

Those of two CPU cores are small; those of one GPU are the shapes that others report figures of, on
whole blocks of the English that every Python carries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.bench import ours
from research.bench.workloads import dump, tokens_of_train
from research.config import Config
from research.data.vocabulary import load_tokenizer
from research.models.pretrained import electra
from research.models.pretrained.export import family_for
from research.strategies import LoRA


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One objective on both sides.

    `config` is a file of configs/. The rival is the class of transformers that the task is exported
    as, of the same sizes and drawn anew, on the same tokens in the same order; `kind` says how it
    makes its inputs of them. `same` are overrides that make our objective the rival's. `metric` is
    the mean of the loss over all steps: who learns nothing is fast for nothing.
    """

    config: str
    kind: str
    same: tuple[str, ...] = ()
    metric: str = "train/loss"
    against: str = "PyTorch"
    rival: str = "torch_pretrain.py"
    ours = staticmethod(ours.train)

    def lengths(self, config: Config) -> np.ndarray:
        """Tokens of each example of train."""
        return tokens_of_train(config)

    def write(self, config: Config, folder: Path, seed: int) -> None:
        """The tokens of every step, one a line, the tokenizer, and config.json of the class."""
        stream = config.data.open("train", config.batch_size, steps=config.steps, seed=seed)
        encoded = stream.examples.encoded

        def tokens(example: int) -> list[int]:
            here = slice(encoded.offsets[example], encoded.offsets[example + 1])
            found: list[int] = encoded.tokens[here].tolist()
            return found

        steps = range(config.steps or 0)
        rows = ({"tokens": [tokens(int(i)) for i in stream.examples_of(step)]} for step in steps)
        dump(folder / f"train{seed}.jsonl", rows)
        load_tokenizer(config.data.needed_tokenizer()).save(str(folder / "tokenizer.json"))
        for name, values in sizes(config.task).items():
            (folder / name).write_text(json.dumps(values), encoding="utf-8")

    def arguments(self, config: Config, folder: Path, seed: int) -> list[str]:
        """What the rival's script is called with."""
        optim = config.optim
        found = [self.kind, str(folder), "--seed", str(seed), "--warmup", str(optim.warmup)]
        found += ["--learning-rate", str(optim.learning_rate), "--clip", str(optim.clip or 0)]
        found += ["--weight-decay", str(optim.weight_decay)]
        adapt = config.adapt
        if isinstance(adapt, LoRA):
            found += ["--lora-rank", str(adapt.rank), "--lora-alpha", str(adapt.alpha)]
        return found

    def grade(self, outputs: float, folder: Path) -> float:
        """The rival's mean loss, which it tells."""
        return outputs


def sizes(task: Any) -> dict[str, dict[str, Any]]:
    """config.json of the class that a task is exported as, and of a generator beside it."""
    family = family_for(task.backbone.spec)
    values = family.to_config(task.backbone.spec)
    found = {"config.json": {**values, "architectures": [family.architecture(task).name]}}
    if hasattr(task, "generator"):
        types = {"type_vocab_size": task.backbone.spec.token_types}
        found["generator.json"] = electra.to_config(task.generator.spec) | types
    return found


def flags(of: str, **values: object) -> tuple[str, ...]:
    """Overrides of the fields of one part of a config."""
    return tuple(word for name, value in values.items() for word in (f"--{of}.{name}", str(value)))


def blocks(batch_size: int) -> tuple[str, ...]:
    """Overrides: 40 steps on blocks that are one example each, and need no files."""
    files = {"train": "stdlib:passages", "dev": "stdlib:areas-dev", "tokenizer": "stdlib:6000"}
    data = flags("data", **files, segments="blocks", end=None)
    return (*data, "--steps", "40", "--batch-size", str(batch_size))


TOKENS = ("--task.unit", "token", "--task.backbone.spec.token-types", "2")
GPT2 = flags(
    "task.backbone.spec", width=768, depth=12, heads=12, hidden=3072, scan=False, remat=False
)
LORA = ("--adapt", "lora", "--adapt.rank", "16")
PRETRAINING = {
    "mlm": Pretraining(config="pretrain_mlm", kind="masked", same=TOKENS),
    "clm": Pretraining(config="pretrain_clm", kind="causal"),
    "plm": Pretraining(config="pretrain_plm", kind="permutation", same=("--task.spans", "5")),
    "rtd": Pretraining(config="pretrain_rtd", kind="replaced"),
    "bert_large": Pretraining(config="bert_large", kind="masked", same=(*blocks(64), *TOKENS)),
    "gpt2": Pretraining(config="gpt2_xl", kind="causal", same=(*blocks(32), *GPT2)),
    "gpt2_xl": Pretraining(config="gpt2_xl", kind="causal", same=blocks(16)),
    "llama_8b": Pretraining(config="llama_8b", kind="causal", same=blocks(4)),
    "llama_8b_lora": Pretraining(config="llama_8b", kind="causal", same=(*blocks(4), *LORA)),
}
