"""The strategies: values that are mixed with `|`, such as LoRA(rank=8) | LayerDecay(0.9)."""

from research.adapt import Full, HeadOnly, Strategy
from research.strategies.adapter import Adapter
from research.strategies.blocks import GradualUnfreeze, LayerDecay
from research.strategies.choice import BitFit, Frozen
from research.strategies.ia3 import IA3
from research.strategies.lora import LoRA
from research.strategies.prefix import Prefix, Prompt
from research.strategies.start import DecayToInit, ReinitTop
from research.strategies.words import SeenWords

__all__ = [
    "IA3",
    "Adapter",
    "BitFit",
    "DecayToInit",
    "Frozen",
    "Full",
    "GradualUnfreeze",
    "HeadOnly",
    "LayerDecay",
    "LoRA",
    "Prefix",
    "Prompt",
    "ReinitTop",
    "SeenWords",
    "Strategy",
]
