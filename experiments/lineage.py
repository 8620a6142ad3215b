"""From counting to Transformers: what did each generation of language models buy? On one text.

    launch.py study experiments/lineage.py                            the standard library's English
    ... --small                                                       a few minutes on two cores
    ... --data wikitext-2/train.txt --held-out wikitext-2/test.txt    any text, one passage a line

Unigrams, Kneser-Ney 3- and 5-grams (1995), Bengio's network (2003), an LSTM (2010) and a
Transformer (2017), from left to right and, with a measure of its own, by masks (2019), each at
three sizes of the training text. What makes perplexities comparable: one byte-level BPE, trained on
the training text, without unknown tokens; texts cut into blocks of `block` tokens after one start
token; every token after the start is predicted by every model, from the start and the tokens before
it in its block. Bits per byte are over the bytes of the same texts.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.lineage_page import (
    CAUSAL,
    COUNTED,
    FEEDFORWARD,
    LSTM,
    MASKED,
    TRAINED,
    Score,
    page,
)
from research import metrics, runs
from research.config import Config
from research.data.bpe import train_bpe
from research.data.sources import read_rows
from research.data.texts import Texts
from research.data.vocabulary import tokenizer_of
from research.errors import DataError
from research.evaluate import HeldOut
from research.evaluators.likelihood import MinimalPairs, likelihoods
from research.infer.draw import draw
from research.infer.loaded import load
from research.models import ngram
from research.models.feedforward import Feedforward, FeedforwardSpec
from research.models.lstm import Lstm, LstmSpec
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.study.page import Page
from research.study.runner import PLANNED, Runner
from research.tasks.causal import CausalLM
from research.tasks.lm import MaskedLM
from research.train import Result

# Of a few tried for each the best on dev of WikiText-2, 120 steps at a width of 64, because one for
# all would favour whoever it suits: 2e-3, 8e-3 and 1.6e-2; 2e-3 and 8e-3; 2e-3 and 5e-3.
RATES = {LSTM: 1.6e-2, FEEDFORWARD: 8e-3, CAUSAL: 5e-3, MASKED: 5e-3}


@dataclass(frozen=True)
class Setting:
    """What all models share: data without a limit, texts of training, bytes of test, pairs."""

    data: Texts
    rows: int
    bytes: int
    pairs: MinimalPairs | None

    def score(self, outputs: dict[str, Any], **facts: Any) -> Score:
        """Raises DataError where a model was asked for other tokens than the others."""
        nats, found = float(np.sum(outputs["nll"])), int(np.sum(outputs["count"]))
        if found != (wanted := predicted(self.data, "test")):
            raise DataError(f"{self.data.test}: {found} tokens were predicted, expected {wanted}")
        return Score(
            perplexity=metrics.perplexity(nats / found),
            bits_per_byte=metrics.bits_per_byte(nats, self.bytes),
            **facts,
        )

    def text(self, tokens: np.ndarray) -> str:
        """Tokens as text."""
        return str(tokenizer_of(self.data.needed_tokenizer())[0].decode(tokens.tolist()))


def predicted(data: Texts, split: str) -> int:
    """Tokens of a split that are predicted: all but each block's start."""
    encoded = data.examples(split).encoded
    return len(encoded.tokens) - len(encoded.row_of)


def study(
    run: Runner,
    *,
    data: str = "stdlib:passages",
    held_out: str = "",
    held_out_rows: int = 300,
    sizes: tuple[float, ...] = (0.1, 0.32, 1.0),
    seeds: int = 3,
    steps: int = 2000,
    vocabulary: int = 4000,
    width: int = 128,
    block: int = 64,
    pairs: str = "",
    pairs_limit: int = 20,
    small: bool = False,
) -> Page:
    """`data` and `held_out` are sources of texts; of `data` a fifth is held out where `held_out` is
    empty. `sizes` are shares of the training texts, `steps` those of every trained model, the best
    of which on dev is tested. `pairs`: BLiMP's archive, `pairs_limit` pairs of each paradigm.
    `small` bounds the others, and trains far too little to tell neural models from each other.
    """
    if small:
        seeds, steps, held_out_rows = min(seeds, 2), min(steps, 60), 40
        vocabulary, width, block = min(vocabulary, 2000), min(width, 64), min(block, 32)
    train, dev, test = split(data, held_out, held_out_rows)
    setting = prepare(run.path / "corpus", train, dev, test, vocabulary, block)
    if pairs:
        setting = dataclasses.replace(setting, pairs=MinimalPairs(source=pairs, limit=pairs_limit))
    scores: dict[tuple[str, float], list[Score]] = {}
    tokens: dict[float, int] = {}
    for share in sizes:
        part = dataclasses.replace(setting.data, limit=max(1, round(share * setting.rows)))
        tokens[share] = predicted(part, "train")
        results = {
            arm: [run(training(arm, part, seed, steps, width, block)) for seed in range(seeds)]
            for arm in TRAINED
        }
        if run.dry:
            continue
        for arm, order in COUNTED.items():
            scores[arm, share] = [count(setting, part, order)]
        for arm, found in results.items():
            scores[arm, share] = [learned(setting, result) for result in found]
    if run.dry:
        return PLANNED
    return page(
        scores, tokens, f"{predicted(setting.data, 'test'):,} test tokens, {setting.bytes:,} bytes"
    )


def split(data: str, held_out: str, most: int) -> tuple[list[str], list[str], list[str]]:
    """Texts of train, in a mixed order, dev and test, of which up to `most` each.

    Held out of `data` are two tenths in a hundred stretches, because neighbours resemble each other
    and distant texts do not; `held_out` is cut in two.
    """
    texts = [row["text"] for row in read_rows(data, need=("text",))]
    if held_out:
        other = [row["text"] for row in read_rows(held_out, need=("text",))]
        dev, test = other[: len(other) // 2], other[len(other) // 2 :]
    else:
        kind = np.arange(len(texts)) * 100 // len(texts) % 10
        kind = kind if len(texts) >= 100 else np.arange(len(texts)) % 10
        dev, test = ([text for text, k in zip(texts, kind) if k == wanted] for wanted in (8, 9))
        texts = [text for text, k in zip(texts, kind) if k < 8]
    order = np.argsort(np.random.Philox(0).random_raw(len(texts)), kind="stable")
    spread = [np.linspace(0, len(part) - 1, min(most, len(part))) for part in (dev, test)]
    dev, test = ([part[int(i)] for i in at] for part, at in zip((dev, test), spread))
    return [texts[i] for i in order], dev, test


def prepare(
    folder: Path, train: list[str], dev: list[str], test: list[str], vocabulary: int, block: int
) -> Setting:
    """The texts as files, and the tokenizer of the training texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("train", train), ("dev", dev), ("test", test)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        runs.write_atomic(folder / f"{name}.jsonl", lines.encode())
    tokenizer = train_bpe(train, vocabulary, folder / "tokenizer.json")
    data = Texts(
        train=str(folder / "train.jsonl"),
        dev=str(folder / "dev.jsonl"),
        test=str(folder / "test.jsonl"),
        label=None,
        tokenizer=str(tokenizer),
        max_length=block + 1,
        long="split",
        shapes=1,
    )
    size = sum(len(text.encode()) for text in test)
    return Setting(data=data, rows=len(train), bytes=size, pairs=None)


def count(setting: Setting, data: Texts, order: int) -> Score:
    """An n-gram model of the texts, tested."""
    encoded = data.examples("train").encoded
    began = time.perf_counter()
    model = ngram.fit(
        *ngram.without_first(encoded.tokens, encoded.offsets),
        order=order,
        vocab_size=data.vocabulary.size,
    )
    seconds = time.perf_counter() - began
    pairs = setting.pairs
    return setting.score(
        model.outputs(data.examples("test")),
        pairs=pairs
        and pairs.grade(model.outputs(pairs.batches(data).examples)).numbers["accuracy"],
        parameters=model.parameters,
        seconds=seconds,
        sample=setting.text(model.sample(data.max_length - 1)),
    )


def training(arm: str, data: Texts, seed: int, steps: int, width: int, block: int) -> Config:
    """One trained model."""
    size = data.vocabulary.size
    backbone: nn.Module
    if arm == FEEDFORWARD:
        backbone = Feedforward(
            FeedforwardSpec(vocab_size=size, embed_width=width // 2, hidden=width, dropout=0.1)
        )
    elif arm == LSTM:
        backbone = Lstm(LstmSpec(vocab_size=size, width=width + width // 4, dropout=0.1))
    else:
        spec = Spec(
            vocab_size=size,
            width=width,
            depth=2,
            heads=4,
            hidden=4 * width,
            max_positions=block + 1,
            causal=arm == CAUSAL,
            norm_first=True,
            activation="relu",
            attention_dropout=0.0,
        )
        backbone = Transformer(spec)
    task = MaskedLM(backbone=backbone) if arm == MASKED else CausalLM(backbone=backbone)
    return Config(
        name=f"{TRAINED[arm]}-{data.limit}-{seed}",
        task=task,
        data=data,
        optim=Optim(learning_rate=RATES[arm], warmup=0.1, weight_decay=0.01),
        steps=steps,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        eval_every=max(1, steps // 6),
        save_every=max(1, steps // 6),
        track="dev/loss",
        seed=seed,
    )


def learned(setting: Setting, result: Result) -> Score:
    """A trained model: the parameters that were best on dev, tested."""
    loaded, config = load(result.path), result.config
    # A run's own copy of the tokenizer would be another one to what keeps the encoded pairs.
    model = dataclasses.replace(loaded.model(), data=config.data)
    masked, pairs = isinstance(model.task, MaskedLM), setting.pairs
    with jax.set_mesh(model.mesh):
        outputs = likelihoods(model, model.open("test", 128), pseudo=masked)
        scores = pairs and dataclasses.replace(pairs, pseudo=masked)(model)
    start = config.data.vocabulary.cls
    return setting.score(
        outputs,
        pairs=scores and scores.numbers["accuracy"],
        parameters=sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        seconds=result.summary["seconds"]["train"],
        sample=setting.text(draw(model, int(start or 0), config.data.max_length - 1)),
    )
