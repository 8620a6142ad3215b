"""Floating-point operations of a function, counted in what JAX traced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def flops(jaxpr: Any) -> float:
    """Of the matrix products and convolutions that a (closed) jaxpr's results need, over all
    devices: 2 a multiply and add. Loops count by their turns, a choice by its costliest branch;
    XLA's own count takes every loop once. A loop whose turns are not known counts once.
    """
    whole = getattr(jaxpr, "jaxpr", jaxpr)
    # A gradient that is written out has products for what is frozen too; XLA leaves them out.
    needed: Any = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars))[0]
    total = 0.0
    for equation in needed.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out = params["dimension_numbers"].rhs_spec[0]
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * size * math.prod(kernel) / kernel[out]
        elif name == "cond":
            total += max(flops(branch) for branch in params["branches"])
        else:
            total += params.get("length", 1) * sum(flops(inner) for inner in within(params))
    return total


def within(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value
