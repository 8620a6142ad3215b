"""BERT (Devlin et al., 2019), and what shares its classes: MiniLM, MacBERT, most encoders."""

from __future__ import annotations

from typing import Any

from research.models.pretrained import heads
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.transformer import Spec

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


# The other way round, with the name that is most in use.
NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def trunk_rules(prefix: str) -> tuple[Rule, ...]:
    """The trunk's tensors, all but the pooler's, as BERT and its kin name them."""
    block, layer = "backbone/block_{i}", f"{prefix}.encoder.layer.{{i}}"
    return (
        Rule("backbone/embed/table", f"{prefix}.embeddings.word_embeddings.weight"),
        Rule("backbone/embed_positions/table", f"{prefix}.embeddings.position_embeddings.weight"),
        Rule("backbone/embed_types/table", f"{prefix}.embeddings.token_type_embeddings.weight"),
        *norm("backbone/embedding_norm", f"{prefix}.embeddings.LayerNorm"),
        *dense(f"{block}/attention/query", f"{layer}.attention.self.query"),
        *dense(f"{block}/attention/key", f"{layer}.attention.self.key"),
        *dense(f"{block}/attention/value", f"{layer}.attention.self.value"),
        *dense(f"{block}/attention/out", f"{layer}.attention.output.dense"),
        *norm(f"{block}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *dense(f"{block}/mlp/up", f"{layer}.intermediate.dense"),
        *dense(f"{block}/mlp/down", f"{layer}.output.dense"),
        *norm(f"{block}/mlp_norm", f"{layer}.output.LayerNorm"),
    )


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' BertConfig."""
    config.choice("position_embedding_type", {"absolute": None}, "absolute")
    config.choice("is_decoder", {False: None}, False)
    config.choice("add_cross_attention", {False: None}, False)
    width, count = config.split("hidden_size", "num_attention_heads")
    return Spec(
        vocab_size=config.integer("vocab_size"),
        width=width,
        depth=config.integer("num_hidden_layers"),
        heads=count,
        hidden=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings", 512),
        token_types=config.integer("type_vocab_size", 2),
        norm_epsilon=config.number("layer_norm_eps", 1e-12),
        activation=config.choice("hidden_act", ACTIVATIONS, "gelu"),
        tied=config.choice("tie_word_embeddings", {True: True, False: False}, True),
        dropout=config.number("hidden_dropout_prob", 0.1),
        attention_dropout=config.number("attention_probs_dropout_prob", 0.1),
    )


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.hidden,
        "max_position_embeddings": spec.max_positions,
        "type_vocab_size": spec.token_types,
        "layer_norm_eps": spec.norm_epsilon,
        "hidden_act": NAMES[spec.activation],
        "position_embedding_type": "absolute",
        "tie_word_embeddings": spec.tied,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.attention_dropout,
    }


# The names that tensors had in files of before 2019, and what holds nothing learned.
RENAMES = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
BUFFERS = (r"\.position_ids$", r"\.token_type_ids$")
SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
FAMILY = Family(
    name="bert",
    prefix="bert.",
    rules=(
        *trunk_rules("bert"),
        *dense("backbone/pooler", "bert.pooler.dense"),
        Rule("backbone/unembed/table", "cls.predictions.decoder.weight"),
    ),
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="BertModel", prefixed=False),
    tasks=heads.tasks(
        "Bert",
        words=(
            *dense("transform", "cls.predictions.transform.dense"),
            *norm("norm", "cls.predictions.transform.LayerNorm"),
            # Which of the two transformers adds depends on its version and on whether the
            # decoder is tied; where it keeps both apart, it adds the first.
            Rule("bias", "cls.predictions.decoder.bias"),
            Rule("bias", "cls.predictions.bias"),
        ),
    ),
    renames=RENAMES,
    buffers=BUFFERS,
    tied=(r"^cls\.predictions\.decoder\.weight$",),
    special_tokens=SPECIAL_TOKENS,
)
