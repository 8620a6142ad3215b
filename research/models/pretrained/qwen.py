"""Qwen2, 2.5 (Yang et al., 2024): Llama with biases of queries, keys, values; Qwen3: norms."""

from __future__ import annotations

from typing import Any

from research.models.pretrained import llama
from research.models.pretrained.family import Settings
from research.models.transformer import Spec

SPECIAL = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")


def to_spec2(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' Qwen2Config."""
    config.choice("use_sliding_window", {False: None}, False)
    return llama.decoder(config, qkv_bias=True)


def to_spec3(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' Qwen3Config."""
    config.choice("use_sliding_window", {False: None}, False)
    config.choice("attention_bias", {False: None}, False)
    return llama.decoder(config, qk_norm=True, head_width=config.integer("head_dim", 128))


def to_config2(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return llama.describe(spec) | {"use_sliding_window": False}


def to_config3(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return llama.describe(spec) | {"use_sliding_window": False, "attention_bias": False}


QWEN2 = llama.family("qwen2", "Qwen2", to_spec2, to_config2, SPECIAL)
QWEN3 = llama.family("qwen3", "Qwen3", to_spec3, to_config3, SPECIAL)
