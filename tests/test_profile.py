"""Profiles: every moment of a step is counted once, under the kind of operation that it went to."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import workshop
from hypothesis import given
from hypothesis import strategies as st

from research import initialize
from research.bench import profile
from research.bench.profile import IDLE, kind_of, kinds_of, shares

SPANS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from("abc")), min_size=1, max_size=9
)


@given(SPANS)
def test_every_moment_is_shared_by_what_runs_in_it(drawn: list[tuple[int, int, str]]) -> None:
    spans = [(float(start), float(start + length), kind) for start, length, kind in drawn]
    expected: dict[str, float] = defaultdict(float)
    first, last = min(s for s, _, _ in spans), max(e for _, e, _ in spans)
    for tick in range(int(first), int(last)):
        running = [kind for start, end, kind in spans if start <= tick < end]
        for kind in running or [IDLE]:
            expected[kind] += 1 / max(1, len(running))
    found = {kind: 1e9 * seconds for kind, seconds in shares(spans).items() if seconds > 1e-18}
    assert found == pytest.approx(dict(expected))
    assert sum(found.values()) == pytest.approx(last - first)


def test_kinds_are_told_by_what_jax_calls_an_operation() -> None:
    trunk = "jit(step)/jvp(Classify)/Classify.encode/backbone.at/backbone.stack/block_0/"
    back = trunk.replace("jvp(Classify)", "transpose(jvp(Classify))")
    told = {
        kind_of("dot", trunk + "mlp/up/dot_general", product=True): "matrix products",
        kind_of("dot", back + "attention/query/dot_general", product=True): "matrix products",
        kind_of("dot", trunk + "attention/btghk,bsgk->bghts/dot", product=True): "attention",
        kind_of("fusion", trunk + "attention/exp", product=False): "attention",
        kind_of(
            "fusion", trunk + "mlp_norm/mul", product=False
        ): "norms, activations, dropout, loss",
        kind_of("scatter", back + "embed/jit(_take)/add", product=False): "embedding gradient",
        kind_of("gather", trunk + "embed/jit(_take)/gather", product=False): "embedding",
        kind_of("fusion", "jit(step)/mul", product=False): "optimizer",
        kind_of("copy", "", product=False): "copies",
        kind_of("all-reduce", back + "add", product=False): "collectives",
    }
    assert all(found == expected for found, expected in told.items())


def test_products_are_found_in_a_compiled_program() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w).sum()

    arrays = jnp.ones((64, 48)), jnp.ones((96, 64))
    kinds = kinds_of(jax.jit(jax.grad(loss)).lower(*arrays).compile().as_text() or "")
    assert list(kinds.values()).count("matrix products") >= 2
    assert "norms, activations, dropout, loss" in kinds.values()


def test_a_profile_adds_up_to_the_steps(tmp_path: Path) -> None:
    workshop.write_rows(tmp_path)
    config = initialize.resolve(workshop.config(tmp_path))
    told = profile.profile(config, tmp_path / "trace")
    milliseconds = {str(kind): float(str(spent)) for kind, spent, _ in told.rows}
    total = milliseconds.pop("all")
    assert sum(milliseconds.values()) == pytest.approx(total)
    assert {"matrix products", "attention", "optimizer", "embedding gradient"} <= set(milliseconds)
