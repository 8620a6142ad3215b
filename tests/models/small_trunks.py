"""Two small trunks that differ in every choice, and one batch in two layouts."""

from __future__ import annotations

import dataclasses

import jax
import layouts
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research.models.transformer import Spec

V = 50
BERT = Spec(
    vocab_size=V,
    width=16,
    depth=2,
    heads=4,
    hidden=24,
    max_positions=16,
    token_types=2,
    dropout=0.3,
    attention_dropout=0.2,
    dtype="float32",
)
LLAMA = dataclasses.replace(
    BERT,
    kv_heads=2,
    causal=True,
    positions="rotary",
    token_types=0,
    norm="rms",
    norm_first=True,
    embed_norm=False,
    activation="silu",
    gated=True,
    bias=False,
)
KEY = jax.random.key(5)
TEXTS = layouts.examples([5, 3, 7, 1, 4], vocab_size=V)
# Of one shape, so that each program is compiled once.
PADDED = layouts.layout([[text] for text in TEXTS], 14, places=3)
ROWS = [[TEXTS[3], TEXTS[2], TEXTS[4]], [], [TEXTS[1], TEXTS[0]], [], []]
PACKED = layouts.layout(ROWS, 14)


def random_params(module, seed: int = 0, **options):
    """Weights that make every parameter matter: none zero, none one."""
    shapes = jax.eval_shape(
        lambda key: module.init({"params": key, "noise": key}, PADDED, **options), KEY
    )
    rng = np.random.default_rng(seed)
    flat = {
        path: path.endswith("scale") + rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(shapes["params"], sep="/").items()
    }
    return unflatten_dict(flat, sep="/")
