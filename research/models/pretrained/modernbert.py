"""ModernBERT (Warner et al., 2024): pre-norm, rotary, gated, and local attention in most blocks."""

from __future__ import annotations

from typing import Any

from research.errors import ConfigError
from research.models.pretrained import bert, heads
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.transformer import Spec

BLOCK, LAYER = "backbone/block_{i}", "model.layers.{i}"
FULL, LOCAL = "full_attention", "sliding_attention"
BOTH = {True: True, False: False}
# The dense layer and the norm under every one of its heads.
POOLER = (*dense("backbone/pooler", "head.dense"), *norm("backbone/pooler/norm", "head.norm"))


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of ModernBertConfig."""
    width, count = config.split("hidden_size", "num_attention_heads")
    depth = config.integer("num_hidden_layers")
    bias = config.choice("attention_bias", BOTH, False)
    config.choice("mlp_bias", {bias: None}, False)
    config.choice("decoder_bias", {True: None}, True)
    config.choice("classifier_activation", {"gelu": None}, "gelu")
    config.choice("hidden_activation", {"gelu": None}, "gelu")
    dropout = config.number("mlp_dropout", 0.0)
    config.choice("embedding_dropout", {dropout: None, int(dropout): None}, 0.0)
    return Spec(
        vocab_size=config.integer("vocab_size"),
        width=width,
        depth=depth,
        heads=count,
        hidden=config.integer("intermediate_size", 1152),
        positions="rotary",
        max_positions=config.integer("max_position_embeddings", 8192),
        rope_theta=theta(config, FULL, "global_rope_theta", 160000.0),
        local_theta=theta(config, LOCAL, "local_rope_theta", 10000.0),
        window=config.integer("local_attention", 128) // 2,
        global_every=global_every(config, depth),
        norm_first=True,
        first_norm=False,
        norm_bias=config.choice("norm_bias", BOTH, False),
        norm_epsilon=config.number("norm_eps", 1e-5),
        gated=True,
        bias=bias,
        tied=config.choice("tie_word_embeddings", BOTH, True),
        pooler="gelu",
        pooler_norm=True,
        head_bias=config.choice("classifier_bias", BOTH, False),
        dropout=dropout,
        attention_dropout=config.number("attention_dropout", 0.0),
    )


def theta(config: Settings, kind: str, older: str, usual: float) -> float:
    """The base of the rotary frequencies of one kind of block, under today's key or the older."""
    rope = config.part("rope_parameters").part(kind)
    rope.choice("rope_type", {"default": None}, "default")
    return rope.number("rope_theta", config.number(older, usual))


def global_every(config: Settings, depth: int) -> int:
    """Every which block attends globally."""
    kinds = config.values.get("layer_types")
    every = config.values.get("global_attn_every_n_layers")
    if kinds is None or every is not None:
        every = config.integer("global_attn_every_n_layers", 3)
    else:
        later = [i for i, kind in enumerate(kinds) if kind == FULL and i]
        every = later[0] if later else depth
    if kinds is not None and list(kinds) != layer_types(every, depth):
        raise ConfigError(
            f"{config.path}: layer_types is {kinds}, supported: {FULL} in every n-th block, the "
            f"first included, and {LOCAL} in all others"
        )
    return every


def layer_types(every: int | None, depth: int) -> list[str]:
    """What each block attends to."""
    return [LOCAL if every is None or i % every else FULL for i in range(depth)]


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    thetas = {FULL: spec.rope_theta, LOCAL: spec.local_theta or spec.rope_theta}
    return {
        # Its defaults are ids of its own vocabulary, which need not be this one's.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.hidden,
        "max_position_embeddings": spec.max_positions,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": value} for kind, value in thetas.items()
        },
        "local_attention": 2 * (spec.window or 0),
        "layer_types": layer_types(spec.global_every, spec.depth),
        "global_attn_every_n_layers": spec.global_every,
        "norm_bias": spec.norm_bias,
        "norm_eps": spec.norm_epsilon,
        "hidden_activation": bert.NAMES[spec.activation],
        "attention_bias": spec.bias,
        "mlp_bias": spec.bias,
        "decoder_bias": True,
        "classifier_bias": spec.head_bias,
        "tie_word_embeddings": spec.tied,
        "embedding_dropout": spec.dropout,
        "mlp_dropout": spec.dropout,
        "attention_dropout": spec.attention_dropout,
    }


FAMILY = Family(
    name="modernbert",
    prefix="model.",
    rules=(
        Rule("backbone/embed/table", "model.embeddings.tok_embeddings.weight"),
        *norm("backbone/embedding_norm", "model.embeddings.norm"),
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.attn_norm", first=1),
        *dense(f"{BLOCK}/attention/query", f"{LAYER}.attn.Wqkv", part=(0, 3)),
        *dense(f"{BLOCK}/attention/key", f"{LAYER}.attn.Wqkv", part=(1, 3)),
        *dense(f"{BLOCK}/attention/value", f"{LAYER}.attn.Wqkv", part=(2, 3)),
        *dense(f"{BLOCK}/attention/out", f"{LAYER}.attn.Wo"),
        *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.mlp_norm"),
        *dense(f"{BLOCK}/mlp/gate", f"{LAYER}.mlp.Wi", part=(0, 2)),
        *dense(f"{BLOCK}/mlp/up", f"{LAYER}.mlp.Wi", part=(1, 2)),
        *dense(f"{BLOCK}/mlp/down", f"{LAYER}.mlp.Wo"),
        *norm("backbone/final_norm", "model.final_norm"),
        Rule("backbone/unembed/table", "decoder.weight"),
    ),
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="ModernBertModel", prefixed=False),
    tasks=heads.tasks(
        "ModernBert",
        pooler=POOLER,
        choice_pooler=POOLER,
        token_pooler=POOLER,
        mean=True,
        words=(
            *dense("transform", "head.dense"),
            *norm("norm", "head.norm"),
            Rule("bias", "decoder.bias"),
        ),
    ),
    buffers=(r"rotary_emb\.", r"inv_freq$"),
    tied=(r"^decoder\.weight$",),
    special_tokens=bert.SPECIAL_TOKENS,
)
