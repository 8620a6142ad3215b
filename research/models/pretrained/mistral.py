"""Mistral (Jiang et al., 2023): Llama whose tokens attend to a window of those before them."""

from __future__ import annotations

from typing import Any

from research.models.pretrained import llama
from research.models.pretrained.family import Settings
from research.models.transformer import Spec


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' MistralConfig."""
    tokens = config.optional("sliding_window", 4096)
    kv_heads = config.optional("num_key_value_heads", 8)
    # sliding_window counts the token itself.
    return llama.decoder(config, kv_heads=kv_heads, window=None if tokens is None else tokens - 1)


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    tokens = None if spec.window is None else spec.window + 1
    return llama.describe(spec) | {"sliding_window": tokens}


FAMILY = llama.family("mistral", "Mistral", to_spec, to_config, llama.SPECIAL)
