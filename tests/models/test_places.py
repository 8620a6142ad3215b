"""A trunk asked for some of its tokens gives what it gives for all of them, gradients included."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from research.models import layers
from research.models.pooling import Trunk
from research.models.spec import Spec
from research.models.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "width": 8,
    "depth": 3,
    "heads": 2,
    "hidden": 16,
    "max_positions": 16,
}
DROPS: dict[str, Any] = {"dropout": 0.2, "attention_dropout": 0.2}
LLAMA: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rms",
    "norm_first": True,
    "causal": True,
    "gated": True,
    "kv_heads": 1,
}
SPECS = {
    "bert": Spec(**SMALL, **DROPS),
    "llama": Spec(**SMALL, **DROPS, **LLAMA),
    "albert": Spec(**SMALL, **DROPS, shared=True, embed_width=4),
    "local": Spec(**SMALL, **DROPS, window=2, global_every=2),
    "scanned": Spec(**SMALL, **DROPS, scan=True),
    "remat": Spec(**SMALL, **DROPS, remat=True),
}
BATCH = {
    "tokens": np.arange(16).reshape(2, 8) + 5,
    "types": np.zeros((2, 8)),
    "segments": np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0, 0]]),
    "positions": np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 0]]),
    "ids": np.array([[0, 1], [2, -1]]),
    "starts": np.array([[0, 3], [0, 0]]),
    "lengths": np.array([[3, 4], [6, 0]]),
}
ROWS = {name: jnp.asarray(value, jnp.int32) for name, value in BATCH.items()}
PLACES = jnp.array([[0, 3, 6], [5, 0, 0]], jnp.int32)


def graft(params: Any, spec: Spec) -> Any:
    """The same with keys of a prefix in the last block and a low-rank term beside its kernels."""
    flat, last = flatten_dict(params, sep="/"), f"block_{spec.depth - 1}/attention"
    for name in ("key", "value"):
        flat[f"{last}/prefix_{name}"] = jax.random.normal(jax.random.key(7), (2, spec.width))
    for name in ("query", "out"):
        flat[f"{last}/{name}/lora_a"] = jax.random.normal(jax.random.key(8), (spec.width, 2))
        flat[f"{last}/{name}/lora_b"] = jax.random.normal(jax.random.key(9), (2, spec.width))
        flat[f"{last}/{name}/lora_scale"] = jnp.float32(0.5)
        flat[f"{last}/{name}/lora_dropout"] = jnp.float32(0.3)
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("name", [*SPECS, "grafted"])
def test_some_tokens_are_those_of_all(name: str) -> None:
    spec = SPECS.get(name, SPECS["bert"])
    trunk = Transformer(spec)
    noise = layers.token_noise(jax.random.key(1), ROWS)
    params = trunk.init(jax.random.key(0), ROWS)["params"]
    if name == "grafted":
        params = graft(params, spec)
    target = jax.random.normal(jax.random.key(2), (*PLACES.shape, spec.width))

    def some(params: Any) -> tuple[jax.Array, jax.Array]:
        x: Any = trunk.apply({"params": params}, ROWS, PLACES, noise=noise, method="at")
        return jnp.sum(x * target), x

    def all_of_them(params: Any) -> tuple[jax.Array, jax.Array]:
        x: Any = trunk.apply({"params": params}, ROWS, PLACES, noise=noise, method=Trunk.at)
        return jnp.sum(x * target), x

    (_, found), slope = jax.value_and_grad(some, has_aux=True)(params)
    (_, expected), whole = jax.value_and_grad(all_of_them, has_aux=True)(params)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slope, whole)


def test_the_last_block_costs_less_for_some_tokens() -> None:
    trunk = Transformer(Spec(vocab_size=30, width=32, depth=1, heads=2, hidden=128))
    params = trunk.init(jax.random.key(0), ROWS)["params"]

    def flops(method: Any) -> float:
        def call(params: Any) -> Any:
            return trunk.apply({"params": params}, ROWS, PLACES[:, :1], method=method)

        cost: Any = jax.jit(call).lower(params).compile().cost_analysis()
        return float(cost["flops"])

    assert flops("at") < 0.5 * flops(Trunk.at)
