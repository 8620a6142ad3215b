"""What strategies added to a tree, folded into the parameters that it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research.adapt import ADDED, UNREAD


def merge(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree that computes the same without the leaves of LoRA, DoRA and IA3, as numpy arrays; what
    the step alone reads is left out. Adapters, prefixes and prompts are no change of a kernel and
    stay (see `unmerged`)."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    for place in [path.removesuffix("kernel") for path in flat if path.endswith("/kernel")]:
        found = {name: flat.pop(f"{place}{name}", None) for name in MERGED}
        flat[f"{place}kernel"] = kernel = folded(flat[f"{place}kernel"], found)
        if (out := found["ia3_out"]) is not None:
            flat[f"{place}kernel"] = kernel * out[..., None, :]
            if f"{place}bias" in flat:
                flat[f"{place}bias"] = flat[f"{place}bias"] * out
    return unflatten_dict({p: x for p, x in flat.items() if not UNREAD.search(p)}, sep="/")


MERGED = (
    *("lora_a", "lora_b", "lora_scale", "lora_dropout", "lora_magnitude"),
    *("ia3_in", "ia3_out"),
)


def folded(kernel: np.ndarray, found: Mapping[str, Any]) -> np.ndarray:
    """[..., D, F] with the low-rank term, its columns' lengths, and the scale of its input."""
    if (a := found["lora_a"]) is not None:
        kernel = kernel + found["lora_scale"][..., None, None] * (a @ found["lora_b"])
    if (magnitude := found["lora_magnitude"]) is not None:
        norm = np.linalg.norm(kernel, axis=-2)
        kernel = kernel * (magnitude / norm)[..., None, :]
    if (scale := found["ia3_in"]) is not None:
        kernel = kernel * scale[..., None]
    return kernel


def unmerged(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of what strategies added and `merge` cannot fold."""
    return tuple(path for path in flatten_dict(params, sep="/") if ADDED.search(path))
