"""Prints how far every family of Hugging Face is from transformers, and whether it comes back.

    python tests/parity/table.py        (needs torch and transformers)

Of each family a small model with random weights, every parameter far from its initial value: the
largest difference of any vector under or above any block, and of any logit, to transformers in
float32; and whether every tensor of our export has the bits of the original. Models with a head of
classes for encoders, of words for decoders and XLNet.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

try:
    import test_decoder_parity as decoders
    import test_encoders as encoders
    import test_xlnet_parity as xlnet
    import torch
    import transformers
except pytest.skip.Exception as missing:
    sys.exit(f"skipped: {missing}")

from research.models import pretrained
from research.study.table import Table
from research.tasks.causal import CausalLM
from research.tasks.classify import Classify
from research.tasks.permutation import PermutationLM

ENCODERS = [kind for kind in encoders.KINDS if kind not in ("electra-wide", "modernbert-mean")]


def everything(task: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The vectors under and above every block, and the logits."""
    if isinstance(task, PermutationLM):
        streams = task.backbone.streams(batch)
        states = jax.numpy.concatenate([streams.inputs, streams.content[None]])
        return states, task.logits(streams.content)
    states = task.backbone.layers(batch)
    words = isinstance(task, CausalLM)
    return states, task.backbone.logits(states[-1]) if words else task.logits(batch)


def load(directory: Path, task: Any, batch: Any, unread: str) -> Any:
    """All parameters, none of them drawn and no tensor left over but those that begin so."""

    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, batch, method=everything)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    params, account = pretrained.load(directory, abstract, fresh={}.__getitem__)
    assert not account.fresh and all(name.startswith(unread) for name in account.unused), account
    return params


def comes_back(model: Any, task: Any, params: Any, folder: Path, tokenizer: Path) -> bool:
    """Whether transformers reads our export with every tensor's bits, and nothing missing."""
    assert pretrained.save(folder / "out", task, params, tokenizer) == ()
    again, report = type(model).from_pretrained(folder / "out", output_loading_info=True)
    theirs = again.state_dict()
    same = all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    return same and not any(report.values())


def encoder(family: str, folder: Path) -> tuple[Any, ...]:
    model = encoders.random_model(family, "ForSequenceClassification")
    model.save_pretrained(folder / "in")
    inputs = encoders.inputs_of(family)
    task = Classify(backbone=encoders.exact(folder / "in"), labels=encoders.LABELS)
    padding = encoders.KINDS[family][1].get("pad_token_id", 0)
    file = encoders.tokenizer_file(folder / "t.json", padding)
    real = np.asarray(inputs["attention_mask"], bool)
    return model, task, encoders.batch_of(inputs), inputs, real, real, file


def decoder(family: str, folder: Path) -> tuple[Any, ...]:
    model = decoders.random_model(decoders.CONFIGS[family])
    model.save_pretrained(folder / "in")
    ids = torch.randint(3, 39, (3, 11), generator=torch.Generator().manual_seed(3))
    task = CausalLM(backbone=encoders.exact(folder / "in"))
    file = decoders.tokenizer_file(folder)
    real = np.ones(ids.shape, bool)
    return model, task, decoders.batch_of(ids), {"input_ids": ids}, real, real, file


def permuter(_: str, folder: Path) -> tuple[Any, ...]:
    model = xlnet.random_model(transformers.XLNetLMHeadModel)
    model.save_pretrained(folder / "in")
    inputs = xlnet.inputs_of()
    task = PermutationLM(backbone=xlnet.exact(folder / "in"))
    batch = xlnet.batch_of(inputs)
    ours = np.asarray(batch["segments"]) > 0
    real = np.asarray(inputs["attention_mask"], bool)
    return model, task, batch, inputs, ours, real, xlnet.words_of(folder)


def compare(family: str, make: Any) -> tuple[str, str, str, str]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, task, batch, inputs, ours, real, file = make(family, folder)
        with torch.no_grad():
            expected = model(**inputs, output_hidden_states=True)
        params = load(folder / "in", task, batch, "mask_emb")
        apply = jax.jit(lambda p, b: task.apply({"params": p}, b, method=everything))
        states, logits = (np.asarray(found) for found in apply(params, batch))
        hidden = torch.stack(expected.hidden_states).numpy()
        if isinstance(task, PermutationLM):
            hidden = hidden[: len(states)]
        apart = np.abs(states[:, ours] - hidden[:, real]).max()
        wanted = expected.logits.numpy()
        if wanted.ndim == 3:
            logits, wanted = logits[ours], wanted[real]
        far = np.abs(logits.reshape(wanted.shape) - wanted).max()
        back = comes_back(model, task, params, folder, file)
        return family, f"{apart:.1e}", f"{far:.1e}", "bit for bit" if back else "no"


def main() -> None:
    cases = [(family, encoder) for family in ENCODERS]
    cases += [("xlnet", permuter), *((family, decoder) for family in decoders.CONFIGS)]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with jax.default_matmul_precision("highest"):
        rows = tuple(compare(*case) for case in cases)
    versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers"
    title = f"Largest difference to transformers ({versions} {transformers.__version__})"
    columns = ("family", "vectors of any block", "logits", "comes back")
    print(Table(title=title, columns=columns, rows=rows).to_markdown())


if __name__ == "__main__":
    main()
