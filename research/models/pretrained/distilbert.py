"""DistilBERT (Sanh et al., 2019): BERT without types of tokens and without its pooler."""

from __future__ import annotations

from typing import Any

from research.models.pretrained import bert, heads
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.transformer import Spec

BLOCK, LAYER = "backbone/block_{i}", "distilbert.transformer.layer.{i}"


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers."""
    width, count = config.split("dim", "n_heads")
    return Spec(
        vocab_size=config.integer("vocab_size"),
        width=width,
        depth=config.integer("n_layers"),
        heads=count,
        hidden=config.integer("hidden_dim"),
        max_positions=config.integer("max_position_embeddings", 512),
        activation=config.choice("activation", bert.ACTIVATIONS, "gelu"),
        tied=config.choice("tie_word_embeddings", {True: True, False: False}, True),
        pooler="relu",
        dropout=config.number("dropout", 0.1),
        attention_dropout=config.number("attention_dropout", 0.1),
    )


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return {
        "vocab_size": spec.vocab_size,
        "dim": spec.width,
        "n_layers": spec.depth,
        "n_heads": spec.heads,
        "hidden_dim": spec.hidden,
        "max_position_embeddings": spec.max_positions,
        "activation": bert.NAMES[spec.activation],
        "tie_word_embeddings": spec.tied,
        "dropout": spec.dropout,
        "attention_dropout": spec.attention_dropout,
    }


FAMILY = Family(
    name="distilbert",
    prefix="distilbert.",
    rules=(
        Rule("backbone/embed/table", "distilbert.embeddings.word_embeddings.weight"),
        Rule("backbone/embed_positions/table", "distilbert.embeddings.position_embeddings.weight"),
        *norm("backbone/embedding_norm", "distilbert.embeddings.LayerNorm"),
        *dense(f"{BLOCK}/attention/query", f"{LAYER}.attention.q_lin"),
        *dense(f"{BLOCK}/attention/key", f"{LAYER}.attention.k_lin"),
        *dense(f"{BLOCK}/attention/value", f"{LAYER}.attention.v_lin"),
        *dense(f"{BLOCK}/attention/out", f"{LAYER}.attention.out_lin"),
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.sa_layer_norm"),
        *dense(f"{BLOCK}/mlp/up", f"{LAYER}.ffn.lin1"),
        *dense(f"{BLOCK}/mlp/down", f"{LAYER}.ffn.lin2"),
        *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.output_layer_norm"),
        Rule("backbone/unembed/table", "vocab_projector.weight"),
    ),
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="DistilBertModel", prefixed=False),
    tasks=heads.tasks(
        "DistilBert",
        pooler=dense("backbone/pooler", "pre_classifier"),
        choice_pooler=dense("backbone/pooler", "pre_classifier"),
        dropout="seq_classif_dropout",
        choice_dropout="seq_classif_dropout",
        tag_dropout=None,
        words=(
            *dense("transform", "vocab_transform"),
            *norm("norm", "vocab_layer_norm"),
            Rule("bias", "vocab_projector.bias"),
        ),
    ),
    renames=bert.RENAMES,
    buffers=bert.BUFFERS,
    tied=(r"^vocab_projector\.weight$",),
    special_tokens=bert.SPECIAL_TOKENS,
)
