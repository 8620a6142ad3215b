"""Update rules: AdamW by hand, and LAMB, Lion, Muon and Adafactor as optax has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax import contrib

from research.adapt import Flat, Rule

Transform: TypeAlias = optax.GradientTransformationExtraArgs


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def build(
        self, rate: optax.Schedule, learning: Mapping[str, Rule], decay: float, clip: float | None
    ) -> Transform:
        """One pass an array, in place; see `Optim.build`."""

        def init(params: Flat) -> optax.ScaleByAdamState:
            mu, nu = ({path: jnp.zeros_like(leaf) for path, leaf in params.items()} for _ in "mn")
            return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

        def update(
            sums: Flat,
            state: optax.ScaleByAdamState,
            params: Flat,
            *,
            count: jax.Array | float = 1.0,
            finite: jax.Array | bool = True,
        ) -> tuple[Flat, optax.ScaleByAdamState]:
            # All that is the same for every element is worked out once, `finite` included: what is
            # left is one pass an array, in place. A `where` over old and new would copy both.
            scale = shrink(sums, count, clip)
            step = state.count + 1
            scale, speed = jnp.where(finite, jnp.array([scale, rate(state.count)]), 0.0)
            old1, old2 = jnp.where(finite, jnp.array([self.beta1, self.beta2]), 1.0)
            new1, new2 = (1 - self.beta1) * scale, (1 - self.beta2) * scale**2
            first, second = 1 - self.beta1**step, lax.rsqrt(1 - self.beta2**step)
            mu, nu, updates = {}, {}, {}
            for path, total in sums.items():
                grad = jnp.where(finite, total, 0.0)
                mu[path] = m = old1 * state.mu[path] + new1 * grad
                nu[path] = v = old2 * state.nu[path] + new2 * jnp.square(grad)
                pace = speed * learning[path].multiplier
                updates[path] = -(pace / first) * m / (jnp.sqrt(v) * second + self.epsilon)
                if learning[path].decays:
                    updates[path] -= pace * decay * params[path]
            steps_taken = state.count + jnp.asarray(finite, jnp.int32)
            return updates, optax.ScaleByAdamState(steps_taken, mu, nu)

        return Transform(init, update)


@dataclass(frozen=True, kw_only=True)
class Lamb:
    """AdamW whose step is as long as the array that it moves (You et al., 2020).

    So where weight decay applies; what it spares, norms and biases, moves as by AdamW, as in the
    authors' code. Each layer of a scanned stack has a length of its own.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6

    def build(
        self, rate: optax.Schedule, learning: Mapping[str, Rule], decay: float, clip: float | None
    ) -> Transform:
        """See `Optim.build`."""
        mask = decaying(learning)
        direction = optax.chain(
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(decay, mask),
            by_layer(optax.masked(optax.scale_by_trust_ratio(), mask)),
        )
        return guarded(direction, rate, learning, clip)


@dataclass(frozen=True, kw_only=True)
class Lion:
    """The sign of an interpolated momentum (Chen et al., 2023).

    One array of state instead of two. The authors advise a learning rate 3 to 10 times smaller
    than AdamW's, and a weight decay as many times larger.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    def build(
        self, rate: optax.Schedule, learning: Mapping[str, Rule], decay: float, clip: float | None
    ) -> Transform:
        """See `Optim.build`."""
        direction = optax.chain(
            optax.scale_by_lion(self.beta1, self.beta2),
            optax.add_decayed_weights(decay, decaying(learning)),
        )
        return guarded(direction, rate, learning, clip)


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Momentum made orthogonal, for hidden kernels (Jordan et al., 2024).

    By Newton-Schulz `iterations`. Embeddings, heads, norms and biases move by AdamW of `beta1`,
    `beta2` and `epsilon`. An update is scaled to the root mean square `rms`; 0.2 is that of AdamW's
    updates, whose learning rate and weight decay then serve (Liu et al., 2025). Momentum is
    Nesterov's, with optax's bias corrections. Each layer of a scanned stack is a matrix of its own.
    """

    momentum: float = 0.95
    iterations: int = 5
    rms: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def build(
        self, rate: optax.Schedule, learning: Mapping[str, Rule], decay: float, clip: float | None
    ) -> Transform:
        """See `Optim.build`."""
        matrices = contrib.scale_by_muon(
            ns_steps=self.iterations,
            beta=self.momentum,
            weight_dimension_numbers=lambda flat: {
                path: contrib.MuonDimensionNumbers(-2, -1) for path in flat
            },
        )
        rest = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)

        def init(params: Flat) -> dict[str, Any]:
            hidden, others = part(params, is_hidden)
            return {"hidden": matrices.init(hidden), "rest": rest.init(others)}

        def update(
            grads: Flat, state: dict[str, Any], params: Flat | None = None
        ) -> tuple[Flat, dict[str, Any]]:
            hidden, others = part(grads, is_hidden)
            made, orthogonal = matrices.update(hidden, state["hidden"])
            moved, adam = rest.update(others, state["rest"])
            scaled = {path: x * (self.rms * max(x.shape[-2:]) ** 0.5) for path, x in made.items()}
            return scaled | moved, {"hidden": orthogonal, "rest": adam}

        direction = optax.chain(
            optax.GradientTransformation(init, update),
            optax.add_decayed_weights(decay, decaying(learning)),
        )
        return guarded(direction, rate, learning, clip)


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Second moments of rows and columns, not of elements (Shazeer & Stern, 2018).

    Matrices with a side below `smallest` keep one for every element; there is no momentum. At step
    t moments keep 1 - t^-decay of what they were; an update's root mean square is `threshold` at
    most. Where `relative`, the learning rate is a share of an array's own root mean square (1e-3 at
    least): 1e-3 to 1e-2 is usual. Each layer of a scanned stack is an array of its own.
    """

    decay: float = 0.8
    threshold: float = 1.0
    smallest: int = 128
    relative: bool = True

    def build(
        self, rate: optax.Schedule, learning: Mapping[str, Rule], decay: float, clip: float | None
    ) -> Transform:
        """See `Optim.build`."""
        moments = optax.scale_by_factored_rms(
            decay_rate=self.decay, min_dim_size_to_factor=self.smallest
        )
        parts = [moments, optax.clip_by_block_rms(self.threshold)]
        if self.relative:
            parts.append(optax.scale_by_param_block_rms(1e-3))
        direction = optax.chain(
            by_layer(optax.chain(*parts)),
            optax.add_decayed_weights(decay, decaying(learning)),
        )
        return guarded(direction, rate, learning, clip)


UpdateRule = AdamW | Lamb | Lion | Muon | Adafactor


def shrink(sums: Flat, count: jax.Array | float, clip: float | None) -> Any:
    """What sums of gradients are multiplied with: 1 / count, less where their mean is clipped."""
    scale: Any = 1.0 / count
    if clip is not None:
        scale *= jnp.minimum(1.0, clip / (optax.tree.norm(sums) * scale))
    return scale


def guarded(
    direction: optax.GradientTransformation,
    rate: optax.Schedule,
    learning: Mapping[str, Rule],
    clip: float | None,
) -> Transform:
    """An optax transformation under the contract of `Optim.build`."""
    chained = optax.chain(direction, optax.scale_by_learning_rate(rate))

    def update(
        sums: Flat,
        state: Any,
        params: Flat,
        *,
        count: jax.Array | float = 1.0,
        finite: jax.Array | bool = True,
    ) -> tuple[Flat, Any]:
        scale = shrink(sums, count, clip)
        grads = {path: jnp.where(finite, total * scale, 0.0) for path, total in sums.items()}
        moved, new = chained.update(grads, state, params)
        updates = {
            path: jnp.where(finite, move * learning[path].multiplier, 0.0)
            for path, move in moved.items()
        }
        return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    return Transform(chained.init, update)


def decaying(learning: Mapping[str, Rule]) -> Callable[[Flat], dict[str, bool]]:
    """optax's mask of what weight decay applies to."""
    return lambda params: {path: learning[path].decays for path in params}


def is_stack(path: str, leaf: Any) -> bool:
    """Whether an array holds one of every layer of a scanned stack, along its first axis."""
    return "/blocks/" in f"/{path}"


def is_hidden(path: str, leaf: Any) -> bool:
    """Whether an array is a matrix between hidden vectors, [D, F], or a scanned stack of such."""
    named = re.search(r"(^|/)backbone/(?!.*pooler/).*kernel$", path)
    return bool(named) and leaf.ndim == 2 + is_stack(path, leaf)


def part(flat: Flat, where: Callable[[str, Any], bool]) -> tuple[Flat, Flat]:
    """Those that `where` says yes to, and the others."""
    yes = {path: leaf for path, leaf in flat.items() if where(path, leaf)}
    return yes, {path: leaf for path, leaf in flat.items() if path not in yes}


def by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with each layer of a scanned stack as an array of its own."""

    def axes(stacks: Flat) -> Any:
        one = jax.eval_shape(lambda flat: {path: leaf[0] for path, leaf in flat.items()}, stacks)
        return jax.tree.map(lambda leaf: 0 if leaf.ndim else None, jax.eval_shape(tx.init, one))

    def init(params: Flat) -> dict[str, Any]:
        stacks, others = part(params, is_stack)
        state = {"arrays": tx.init(others)}
        if stacks:
            state["stacks"] = jax.vmap(tx.init, out_axes=axes(stacks))(stacks)
        return state

    def update(
        grads: Flat, state: dict[str, Any], params: Flat | None = None
    ) -> tuple[Flat, dict[str, Any]]:
        assert params is not None
        (stacks, others), (deep, flat) = part(grads, is_stack), part(params, is_stack)
        updates, arrays = tx.update(others, state["arrays"], flat)
        if not stacks:
            return updates, {"arrays": arrays}
        where = axes(stacks)
        mapped = jax.vmap(tx.update, in_axes=(0, where, 0), out_axes=(0, where))
        layers, new = mapped(stacks, state["stacks"], deep)
        return updates | layers, {"arrays": arrays, "stacks": new}

    return optax.GradientTransformation(init, update)
