"""Llama (Touvron et al., 2023), and what the tables of decoders made like it share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from research.errors import ConfigError
from research.models.layers import RopeScaling
from research.models.pretrained.bert import ACTIVATIONS, NAMES
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.pretrained.heads import named
from research.models.transformer import Spec

BLOCK, LAYER = "backbone/block_{i}", "model.layers.{i}"
# The biases are Qwen2's and the norms of queries and keys Qwen3's; a trunk without has no such
# parameters.
RULES = (
    Rule("backbone/embed/table", "model.embed_tokens.weight"),
    *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
    *dense(f"{BLOCK}/attention/query", f"{LAYER}.self_attn.q_proj"),
    *dense(f"{BLOCK}/attention/key", f"{LAYER}.self_attn.k_proj"),
    *dense(f"{BLOCK}/attention/value", f"{LAYER}.self_attn.v_proj"),
    *norm(f"{BLOCK}/attention/query_norm", f"{LAYER}.self_attn.q_norm"),
    *norm(f"{BLOCK}/attention/key_norm", f"{LAYER}.self_attn.k_norm"),
    *dense(f"{BLOCK}/attention/out", f"{LAYER}.self_attn.o_proj"),
    *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.post_attention_layernorm"),
    *dense(f"{BLOCK}/mlp/gate", f"{LAYER}.mlp.gate_proj"),
    *dense(f"{BLOCK}/mlp/up", f"{LAYER}.mlp.up_proj"),
    *dense(f"{BLOCK}/mlp/down", f"{LAYER}.mlp.down_proj"),
    *norm("backbone/final_norm", "model.norm"),
    Rule("backbone/unembed/table", "lm_head.weight"),
)
BUFFERS = (r"\.rotary_emb\.inv_freq$",)
TIED = (r"^lm_head\.weight$",)


def rope(config: Settings) -> tuple[float, RopeScaling | None]:
    """Theta and scaling of the rotary positions, as transformers 5 writes them or as 4 did."""
    values = config.values
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"{config.path}: rope_parameters is {given!r}, expected an object")
    table = {"rope_theta": values.get("rope_theta", 10000.0), "rope_type": given.get("type")}
    inner = Settings(path=config.path, values={**table, **given})
    theta = inner.number("rope_theta", 10000.0)
    inner.choice("partial_rotary_factor", {1.0: None}, 1.0)
    if not inner.choice("rope_type", {None: False, "default": False, "llama3": True}, None):
        return theta, None
    return theta, (
        inner.number("factor", 8.0),
        inner.number("low_freq_factor", 1.0),
        inner.number("high_freq_factor", 4.0),
        inner.integer("original_max_position_embeddings"),
    )


def decoder(config: Settings, **fields: Any) -> Spec:
    """The trunk that the keys describe which Llama, Mistral and Qwen have in common."""
    theta, scaling = rope(config)
    heads = config.integer("num_attention_heads")
    width, head_width = config.integer("hidden_size"), config.optional("head_dim")
    if head_width is None and width % heads:
        raise ConfigError(
            f"{config.path}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
        )
    kv_heads = config.optional("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ConfigError(
            f"{config.path}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    described: dict[str, Any] = {
        "vocab_size": config.integer("vocab_size"),
        "width": width,
        "depth": config.integer("num_hidden_layers"),
        "heads": heads,
        "hidden": config.integer("intermediate_size"),
        "kv_heads": kv_heads,
        "head_width": head_width,
        "causal": True,
        "positions": "rotary",
        "max_positions": config.integer("max_position_embeddings", 2048),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm": "rms",
        "norm_first": True,
        "norm_epsilon": config.number("rms_norm_eps", 1e-6),
        "embed_norm": False,
        "activation": config.choice("hidden_act", ACTIVATIONS, "silu"),
        "gated": True,
        "bias": False,
        "tied": config.choice("tie_word_embeddings", {True: True, False: False}, False),
        "dropout": 0.0,
        "attention_dropout": config.number("attention_dropout", 0.0),
    }
    return Spec(**described | fields)


def describe(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that `decoder` reads."""
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if spec.rope_scaling is not None:
        factor, low, high, original = spec.rope_scaling
        rotary |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads or spec.heads,
        **({} if spec.head_width is None else {"head_dim": spec.head_width}),
        "intermediate_size": spec.hidden,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_epsilon,
        "hidden_act": NAMES[spec.activation],
        "tie_word_embeddings": spec.tied,
        "attention_dropout": spec.attention_dropout,
        # transformers 5 reads the first, 4 and older readers the others.
        "rope_parameters": rotary,
        "rope_theta": spec.rope_theta,
        "rope_scaling": rotary if spec.rope_scaling is not None else None,
    }


def last_token(task: Any) -> dict[str, Any]:
    """The names of the labels, of a head as transformers' decoders have it."""
    if task.pool != "last" or task.pooler or task.head_bias:
        raise ConfigError(
            f"export: decoders' classes put a head without bias on the last token, but the task "
            f"has pool={task.pool!r}, pooler={task.pooler} and head_bias={task.head_bias}"
        )
    return named(task)


def architectures(prefix: str) -> dict[str, Architecture]:
    """The classes of a decoder, by the tasks that they compute."""
    return {
        "CausalLM": Architecture(name=f"{prefix}ForCausalLM"),
        "Classify": Architecture(
            name=f"{prefix}ForSequenceClassification",
            rules=dense("head", "score"),
            facts=last_token,
            problem="single_label_classification",
        ),
    }


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' LlamaConfig."""
    config.choice("attention_bias", {False: None}, False)
    config.choice("mlp_bias", {False: None}, False)
    return decoder(config)


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return describe(spec) | {"attention_bias": False, "mlp_bias": False}


def family(
    name: str,
    kin: str,
    to_spec: Callable[[Settings], Spec],
    to_config: Callable[[Spec], dict[str, Any]],
    special_tokens: Mapping[str, str],
) -> Family:
    """The table of a decoder with Llama's tensors, whose classes' names begin with `kin`."""
    return Family(
        name=name,
        prefix="model.",
        rules=RULES,
        to_spec=to_spec,
        to_config=to_config,
        trunk=Architecture(name=f"{kin}Model", prefixed=False),
        tasks=architectures(kin),
        buffers=BUFFERS,
        tied=TIED,
        special_tokens=special_tokens,
    )


SPECIAL = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}
FAMILY = family("llama", "Llama", to_spec, to_config, SPECIAL)
