"""ALBERT (Lan et al., 2020): one block for all layers, token vectors narrower than the trunk."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.models.pretrained import bert, heads
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.transformer import Spec

BLOCK = "backbone/block_0"
LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' AlbertConfig."""
    config.choice("num_hidden_groups", {1: None}, 1)
    config.choice("inner_group_num", {1: None}, 1)
    return dataclasses.replace(
        bert.to_spec(config),
        embed_width=config.integer("embedding_size", 128),
        shared=True,
        activation=config.choice("hidden_act", bert.ACTIVATIONS, "gelu_new"),
        dropout=config.number("hidden_dropout_prob", 0.0),
        attention_dropout=config.number("attention_probs_dropout_prob", 0.0),
    )


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return bert.to_config(spec) | {
        "embedding_size": spec.embed_width or spec.width,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    }


FAMILY = Family(
    name="albert",
    prefix="albert.",
    rules=(
        Rule("backbone/embed/table", "albert.embeddings.word_embeddings.weight"),
        Rule("backbone/embed_positions/table", "albert.embeddings.position_embeddings.weight"),
        Rule("backbone/embed_types/table", "albert.embeddings.token_type_embeddings.weight"),
        *norm("backbone/embedding_norm", "albert.embeddings.LayerNorm"),
        *dense("backbone/embed_project", "albert.encoder.embedding_hidden_mapping_in"),
        *dense(f"{BLOCK}/attention/query", f"{LAYER}.attention.query"),
        *dense(f"{BLOCK}/attention/key", f"{LAYER}.attention.key"),
        *dense(f"{BLOCK}/attention/value", f"{LAYER}.attention.value"),
        *dense(f"{BLOCK}/attention/out", f"{LAYER}.attention.dense"),
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.attention.LayerNorm"),
        *dense(f"{BLOCK}/mlp/up", f"{LAYER}.ffn"),
        *dense(f"{BLOCK}/mlp/down", f"{LAYER}.ffn_output"),
        *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.full_layer_layer_norm"),
        *dense("backbone/pooler", "albert.pooler"),
        Rule("backbone/unembed/table", "predictions.decoder.weight"),
    ),
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="AlbertModel", prefixed=False),
    tasks=heads.tasks(
        "Albert",
        dropout="classifier_dropout_prob",
        choice_dropout="classifier_dropout_prob",
        tag_dropout="classifier_dropout_prob",
        words=(
            *dense("transform", "predictions.dense"),
            *norm("norm", "predictions.LayerNorm"),
            Rule("bias", "predictions.decoder.bias"),
            Rule("bias", "predictions.bias"),
        ),
    ),
    renames=bert.RENAMES,
    buffers=bert.BUFFERS,
    tied=(r"^predictions\.decoder\.weight$",),
    special_tokens=bert.SPECIAL_TOKENS | {"unk_token": "<unk>", "pad_token": "<pad>"},
)
