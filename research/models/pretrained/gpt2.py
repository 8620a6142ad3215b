"""GPT-2 (Radford et al., 2019): kernels as ours, those of query, key and value in one tensor."""

from __future__ import annotations

from typing import Any

from research.errors import ConfigError
from research.models.pretrained.bert import ACTIVATIONS, NAMES
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.pretrained.llama import TIED, architectures
from research.models.transformer import Spec

BLOCK, LAYER = "backbone/block_{i}", "transformer.h.{i}"
FUSED = f"{LAYER}.attn.c_attn"
RULES = (
    Rule("backbone/embed/table", "transformer.wte.weight"),
    Rule("backbone/embed_positions/table", "transformer.wpe.weight"),
    *norm(f"{BLOCK}/attention_norm", f"{LAYER}.ln_1"),
    *dense(f"{BLOCK}/attention/query", FUSED, transposed=False, part=(0, 3)),
    *dense(f"{BLOCK}/attention/key", FUSED, transposed=False, part=(1, 3)),
    *dense(f"{BLOCK}/attention/value", FUSED, transposed=False, part=(2, 3)),
    *dense(f"{BLOCK}/attention/out", f"{LAYER}.attn.c_proj", transposed=False),
    *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.ln_2"),
    *dense(f"{BLOCK}/mlp/up", f"{LAYER}.mlp.c_fc", transposed=False),
    *dense(f"{BLOCK}/mlp/down", f"{LAYER}.mlp.c_proj", transposed=False),
    *norm("backbone/final_norm", "transformer.ln_f"),
    Rule("backbone/unembed/table", "lm_head.weight"),
)


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' GPT2Config."""
    config.choice("scale_attn_weights", {True: None}, True)
    config.choice("scale_attn_by_inverse_layer_idx", {False: None}, False)
    config.choice("add_cross_attention", {False: None}, False)
    width, heads = config.integer("n_embd", 768), config.integer("n_head", 12)
    if width % heads:
        raise ConfigError(f"{config.path}: n_embd {width} is not a multiple of n_head {heads}")
    dropout = config.number("resid_pdrop", 0.1)
    if config.number("embd_pdrop", 0.1) != dropout:
        raise ConfigError(f"{config.path}: embd_pdrop and resid_pdrop differ, supported: one rate")
    return Spec(
        vocab_size=config.integer("vocab_size", 50257),
        width=width,
        depth=config.integer("n_layer", 12),
        heads=heads,
        hidden=config.optional("n_inner") or 4 * width,
        causal=True,
        max_positions=config.integer("n_positions", 1024),
        norm_first=True,
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        embed_norm=False,
        activation=config.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tied=config.choice("tie_word_embeddings", {True: True, False: False}, True),
        dropout=dropout,
        attention_dropout=config.number("attn_pdrop", 0.1),
    )


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return {
        "vocab_size": spec.vocab_size,
        "n_embd": spec.width,
        "n_layer": spec.depth,
        "n_head": spec.heads,
        "n_inner": spec.hidden,
        "n_positions": spec.max_positions,
        "layer_norm_epsilon": spec.norm_epsilon,
        "activation_function": NAMES[spec.activation],
        "tie_word_embeddings": spec.tied,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.attention_dropout,
    }


FAMILY = Family(
    name="gpt2",
    prefix="transformer.",
    rules=RULES,
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="GPT2Model", prefixed=False),
    # The one decoder here whose language model is not named after its task.
    tasks=architectures("GPT2") | {"CausalLM": Architecture(name="GPT2LMHeadModel")},
    buffers=(r"\.attn\.bias$", r"\.attn\.masked_bias$"),
    tied=TIED,
    special_tokens={
        "unk_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
    },
)
