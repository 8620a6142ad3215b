"""Attention by every kernel: that of a loop over examples, forward and backward, or a refusal."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trunks import LLAMA, PACKED, PADDED, random_params

from research import activations, sharding
from research.errors import ConfigError
from research.models import attention, kernels
from research.models.attention import Rows, Seen, attend, attention_mask, refusal
from research.models.transformer import Transformer
from research.sharding import MeshSpec

T, H, G, K = 128, 4, 2, 16
PACKED_ROWS = [[40, 3, 60], [128], [1, 100, 20]]
LONE_ROWS = [[100], [128], [0]]
ORDERS = [(False, None), (True, None), (False, 5), (True, 5)]


def arrays_of(rows: list[list[int]]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Segments and positions [B, T] of examples of these lengths, query, key, value, direction."""
    batch = {name: np.zeros((len(rows), T), np.int32) for name in ("segments", "positions")}
    for b, row in enumerate(rows):
        start = 0
        for m, length in enumerate(row):
            batch["segments"][b, start : start + length] = m + 1
            batch["positions"][b, start : start + length] = np.arange(length)
            start += length
    rng = np.random.default_rng(0)
    shapes = [(len(rows), T, heads, K) for heads in (H, G, G, H)]
    return batch, [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_loop(
    batch: dict[str, Any], arrays: list[np.ndarray], causal: bool, window: int | None
) -> list[np.ndarray]:
    """Output and gradients by query, key and value, in float64, example after example."""
    query, key, value, direction = (np.asarray(x, np.float64) for x in arrays)
    out, by_query, by_key, by_value = (np.zeros_like(x) for x in (query, query, key, value))
    for b, segments in enumerate(batch["segments"]):
        for m in range(1, segments.max() + 1):
            cells = np.flatnonzero(segments == m)
            apart = cells[:, None] - cells[None, :]
            seen = np.abs(apart) <= (T if window is None else window)
            seen &= (apart >= 0) | (not causal)
            for h in range(H):
                at, g = (b, cells, h), (b, cells, h * G // H)
                scores = np.where(seen, query[at] @ key[g].T / np.sqrt(K), -np.inf)
                p = np.exp(scores - scores.max(axis=1, keepdims=True))
                p /= p.sum(axis=1, keepdims=True)
                slope = p * (direction[at] @ value[g].T)
                slope = (slope - p * slope.sum(axis=1, keepdims=True)) / np.sqrt(K)
                out[at] = p @ value[g]
                by_query[at] = slope @ key[g]
                by_key[g] += slope.T @ query[at]
                by_value[g] += p.T @ direction[at]
    return [out, by_query, by_key, by_value]


def outcome(function: Any, batch: dict[str, Any], arrays: list[Any]) -> list[np.ndarray]:
    """The same four of a function of (query, key, value), at tokens; padding is asked nothing."""
    real = (batch["segments"] > 0)[..., None, None]

    @jax.jit
    def run(query: Any, key: Any, value: Any, direction: Any) -> Any:
        out, back = jax.vjp(function, query, key, value)
        return jnp.where(real, out, 0.0), *back(jnp.where(real, direction, 0.0).astype(out.dtype))

    return [np.asarray(x, np.float32) for x in run(*arrays)]


def check(function: Any, rows: list[list[int]], causal: bool, window: int | None, atol=2e-5):
    batch, arrays = arrays_of(rows)
    expected = by_loop(batch, arrays, causal, window)
    for found, right in zip(outcome(functools.partial(function, batch), batch, arrays), expected):
        np.testing.assert_allclose(found, right, atol=atol, rtol=0)


def seen_of(batch: dict[str, Any], rows: Rows) -> Seen:
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    mask = attention_mask(batch, causal=rows.causal)
    if rows.window is not None:
        mask &= attention.within(batch["positions"], batch["positions"], rows.window)
    return Seen(mask, batch["positions"], batch["segments"], rows)


def by_name(backend: Any, causal: bool, window: int | None, dtype: Any = np.float32) -> Any:
    rows = Rows(causal=causal, window=window, alone=backend == "cudnn", in_order=True, whole=True)

    def run(batch: dict[str, Any], *arrays: Any) -> Any:
        cast = [x.astype(dtype) for x in arrays]
        return attend(*cast, seen_of(batch, rows), backend=backend).astype(np.float32)

    return run


@pytest.mark.parametrize(("causal", "window"), ORDERS)
def test_einsum_is_a_loop_over_examples(causal: bool, window: int | None) -> None:
    check(by_name("xla", causal, window), PACKED_ROWS, causal, window)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (False, 5), (True, 5)])
def test_splash_is_a_loop_over_examples_in_interpret_mode(causal, window) -> None:
    def run(batch: dict[str, Any], *arrays: Any) -> Any:
        segments = jnp.asarray(batch["segments"])
        return kernels.splash(*arrays, segments, causal=causal, window=window, interpret=True)

    check(run, PACKED_ROWS, causal, window)


def test_splash_fills_rows_up_and_runs_on_shards_of_rows_and_heads() -> None:
    """100 cells, rows over `data` and heads over `tensor`: a kernel is not partitioned for us."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: tests/conftest.py simulates them")
    batch, arrays = arrays_of([[40, 3, 57], [100]])
    batch, arrays = {k: x[:, :100] for k, x in batch.items()}, [x[:, :100] for x in arrays]
    run = functools.partial(kernels.splash, causal=True, window=None, interpret=True)

    def of(*arrays: Any) -> Any:
        return run(*arrays, jnp.asarray(batch["segments"]))

    seen = seen_of(batch, Rows(causal=True))
    expected = outcome(lambda *arrays: attend(*arrays, seen), batch, arrays)
    with jax.set_mesh(MeshSpec(data=2, tensor=2).build(jax.devices()[:4])):
        for found, right in zip(outcome(of, batch, arrays), expected):
            np.testing.assert_allclose(found, right, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("causal", "window"), [o for o in ORDERS if o != (False, 5)])
def test_what_cudnn_is_told_is_a_loop_over_examples(causal, window) -> None:
    """Lengths, order and window in JAX's own words; the kernel itself needs a GPU, see below."""

    def run(batch: dict[str, Any], *arrays: Any) -> Any:
        segments = jnp.asarray(batch["segments"])
        more: Any = {"causal": causal, "window": window, "implementation": "xla"}
        return kernels.cudnn(*arrays, segments, **more)

    check(run, LONE_ROWS, causal, window)


@pytest.mark.skipif(sharding.platform() != "gpu", reason="cuDNN runs on NVIDIA GPUs alone")
@pytest.mark.parametrize(("causal", "window"), [o for o in ORDERS if o != (False, 5)])
def test_cudnn_is_a_loop_over_examples_on_a_gpu(causal, window) -> None:
    check(by_name("cudnn", causal, window, jnp.bfloat16), LONE_ROWS, causal, window, atol=0.05)


@pytest.mark.skipif(
    sharding.platform() != "gpu" or importlib.util.find_spec("tokamax") is None,
    reason="tokamax's kernels run on NVIDIA GPUs, where it is installed",
)
@pytest.mark.parametrize(("causal", "window"), ORDERS)
def test_tokamax_is_a_loop_over_examples_on_a_gpu(causal, window) -> None:
    check(by_name("tokamax", causal, window, jnp.bfloat16), PACKED_ROWS, causal, window, atol=0.05)


@pytest.mark.skipif(sharding.platform() != "tpu", reason="compiled splash runs on TPUs alone")
@pytest.mark.parametrize(("causal", "window"), ORDERS)
def test_splash_is_a_loop_over_examples_on_a_tpu(causal, window) -> None:
    check(by_name("splash", causal, window, jnp.bfloat16), PACKED_ROWS, causal, window, atol=0.05)


QUERY = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16)
KNOWN = Rows(causal=True, alone=True, in_order=True, whole=True)
FULL = dataclasses.replace(KNOWN, causal=False)
REFUSED: list[tuple[Any, Rows, dict[str, Any], str]] = [
    ("cudnn", dataclasses.replace(KNOWN, alone=False), {}, "segments"),
    ("cudnn", dataclasses.replace(FULL, window=8), {}, "window"),
    ("cudnn", KNOWN, {"dropped": True}, "attention_dropout"),
    ("cudnn", KNOWN, {"dtype": jnp.float32}, "16 bits"),
    ("cudnn", KNOWN, {"width": 36}, "128 wide"),
    ("cudnn", KNOWN, {"platform": "tpu"}, "gpu"),
    ("cudnn", KNOWN, {"platform": "gpu", "parts": 2}, "mesh.sequence"),
    ("tokamax", KNOWN, {"dropped": True}, "attention_dropout"),
    ("tokamax", KNOWN, {}, "not installed"),
    ("splash", KNOWN, {"dropped": True}, "attention_dropout"),
    ("splash", KNOWN, {"platform": "cpu"}, "tpu"),
    ("splash", dataclasses.replace(KNOWN, ahead=True), {}, "prefix"),
    ("splash", dataclasses.replace(KNOWN, added=True), {}, "prefix"),
    ("splash", dataclasses.replace(KNOWN, in_order=False), {}, "prompt"),
    ("splash", dataclasses.replace(FULL, in_order=False, window=8), {}, "prompt"),
    ("splash", dataclasses.replace(KNOWN, window=8, settled=False), {}, "scan"),
]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the dispatcher believe in a platform and in a mesh."""

    def on(platform: str, parts: int = 1) -> None:
        monkeypatch.setattr(sharding, "platform", lambda: platform)
        monkeypatch.setattr(activations, "sequence_shards", lambda tokens=0: parts)

    return on


@pytest.mark.parametrize(("backend", "rows", "more", "said"), REFUSED)
def test_what_a_kernel_cannot_do_is_refused_and_auto_passes_it_by(
    backend, rows, more, said, pretend
) -> None:
    pretend(more.get("platform", attention.NEEDS[backend]), more.get("parts", 1))
    query = jax.ShapeDtypeStruct(
        (*QUERY.shape[:3], more.get("width", 64)), more.get("dtype", QUERY.dtype)
    )
    if backend == "tokamax" and importlib.util.find_spec("tokamax") and not more:
        pytest.skip("tokamax is installed here")
    reason = refusal(backend, query, rows, more.get("dropped", False))
    assert reason is not None and said in reason
    assert attention.preferred(query, rows, more.get("dropped", False)) != backend


def test_auto_takes_a_kernel_for_long_rows_that_it_can_do(pretend) -> None:
    short = jax.ShapeDtypeStruct((2, 512, 4, 64), jnp.bfloat16)
    packed = dataclasses.replace(KNOWN, alone=False)
    pretend("gpu")
    assert attention.preferred(QUERY, KNOWN, False) == "cudnn"
    assert attention.preferred(short, KNOWN, False) == "xla"
    assert attention.preferred(QUERY, packed, False) == "xla"
    pretend("tpu")
    assert attention.preferred(QUERY, packed, False) == "splash"
    pretend("cpu")
    assert attention.preferred(QUERY, KNOWN, False) == "xla"


def test_a_trunk_says_what_it_asks_of_its_kernel(pretend, monkeypatch) -> None:
    """All blocks of a decoder by splash give its vectors by einsum; a learned prefix is refused."""
    spec = dataclasses.replace(LLAMA, attention="splash")
    params = random_params(Transformer(LLAMA))
    expected = Transformer(LLAMA).apply({"params": params}, PACKED)
    pretend("tpu")
    ran = []

    def interpreted(*arguments: Any, **more: Any) -> Any:
        ran.append(more)
        return original(*arguments, **more, interpret=True)

    original = kernels.splash
    monkeypatch.setattr(kernels, "splash", interpreted)
    found = Transformer(spec).apply({"params": params}, PACKED)
    assert ran == [{"causal": True, "window": None}] * spec.depth
    real = np.asarray(PACKED["segments"])[..., None] > 0
    np.testing.assert_allclose(np.where(real, found - expected, 0), 0, atol=1e-5)
    shown = PADDED | {"prefix": jnp.ones_like(PADDED["tokens"])}
    with pytest.raises(ConfigError, match=r"attention is 'splash', but it cannot show a prefix"):
        Transformer(spec).apply({"params": params}, shown)
    noise = jnp.zeros(PADDED["tokens"].shape, jnp.uint32)
    with pytest.raises(ConfigError, match="attention_dropout"):
        Transformer(spec).apply({"params": params}, PADDED, noise=noise)
