"""What tells one Transformer from another: numbers and choices, and no name of a family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from research.errors import ConfigError
from research.models import layers, products
from research.models.attention import Backend


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The numbers and choices that tell one Transformer from another.

    `kv_heads` below `heads` is grouped-query attention; `gated` is the GLU form of the MLP;
    `norm_first` is pre-norm, with a last norm after the stack, and without `first_norm` none before
    the first attention; `scan` compiles one block instead of `depth`; `remat` keeps only the
    blocks' inputs for the backward pass, or beside them what it names: "attention", its queries,
    keys, values and outputs, or "mlp", the products within the MLP (Chen et al., 2016).

    Vectors of tokens are `embed_width` wide, which a projection brings to `width` (Lan et al.,
    2020); `shared` is one block for all layers; positions begin at `position_offset`. Positions up
    to `window` apart attend, turned by `local_theta`; all do in each `global_every`-th block, the
    first included. `qkv_bias` is `bias` where None; `qk_norm` norms every query and key head before
    it is rotated (Henry et al., 2020); `rope_scaling` as in `layers.slowed`. `pooler` is an
    activation, with `pooler_norm` after it; `head_bias` is that of the dense layer under a head.
    `attention` names the kernel that attends, see research/models/attention.py.
    """

    vocab_size: int
    width: int = 256
    embed_width: int | None = None
    depth: int = 4
    shared: bool = False
    heads: int = 4
    hidden: int = 1024
    kv_heads: int | None = None
    head_width: int | None = None
    causal: bool = False
    positions: Literal["learned", "rotary", "none"] = "learned"
    max_positions: int = 512
    position_offset: int = 0
    rope_theta: float = 10000.0
    rope_scaling: layers.RopeScaling | None = None
    window: int | None = None
    global_every: int | None = None
    local_theta: float | None = None
    token_types: int = 0
    norm: layers.Norm = "layer"
    norm_first: bool = False
    first_norm: bool = True
    norm_bias: bool = True
    norm_epsilon: float = 1e-12
    embed_norm: bool = True
    activation: layers.Activation = "gelu"
    gated: bool = False
    bias: bool = True
    qkv_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = True
    pooler: Literal["tanh"] | layers.Activation = "tanh"
    pooler_norm: bool = False
    head_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    attention: Literal["auto"] | Backend = "auto"
    scan: bool = False
    remat: bool | Literal["attention", "mlp"] = False
    dtype: products.Dtype = "auto"

    def make_norm(self, name: str | None = None) -> nn.Module:
        """The norm this trunk uses, over the last axis."""
        if self.norm == "rms":
            return layers.RMSNorm(self.norm_epsilon, name=name)
        return layers.LayerNorm(self.norm_epsilon, self.norm_bias, name=name)

    def is_global(self, number: Any) -> Any:
        """Whether a block ignores the window; of a traced number, a traced answer."""
        if self.window is None:
            return True
        return False if self.global_every is None else number % self.global_every == 0


def check_tables(trunk: Any, encoded: Any) -> None:
    """Raises ConfigError for encoded examples that ask a trunk for a position or a token type which
    its tables do not have: JAX would read another row, and say nothing."""
    spec = getattr(trunk, "spec", None)
    if not isinstance(spec, Spec):
        return
    longest, types = int(encoded.lengths.max()), 1 + int(encoded.types.max())
    if spec.positions == "learned" and longest > spec.max_positions:
        raise ConfigError(
            f"an example has {longest} tokens, but the trunk has {spec.max_positions} positions: "
            f"lower data.max_length"
        )
    if 0 < spec.token_types < types:
        raise ConfigError(
            f"the tokenizer gives its tokens {types} types, but the trunk's table has "
            f"{spec.token_types}: their texts would be told apart by a vector that is not there"
        )
