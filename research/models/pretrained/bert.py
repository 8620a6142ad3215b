"""BERT (Devlin et al., 2019), and what shares its classes: MiniLM, MacBERT, most encoders."""

from __future__ import annotations

from typing import Any

from research.errors import ConfigError
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
BLOCK, LAYER = "backbone/block_{i}", "bert.encoder.layer.{i}"
RULES = (
    Rule("backbone/embed/table", "bert.embeddings.word_embeddings.weight"),
    Rule("backbone/embed_positions/table", "bert.embeddings.position_embeddings.weight"),
    Rule("backbone/embed_types/table", "bert.embeddings.token_type_embeddings.weight"),
    *norm("backbone/embedding_norm", "bert.embeddings.LayerNorm"),
    *dense(f"{BLOCK}/attention/query", f"{LAYER}.attention.self.query"),
    *dense(f"{BLOCK}/attention/key", f"{LAYER}.attention.self.key"),
    *dense(f"{BLOCK}/attention/value", f"{LAYER}.attention.self.value"),
    *dense(f"{BLOCK}/attention/out", f"{LAYER}.attention.output.dense"),
    *norm(f"{BLOCK}/attention_norm", f"{LAYER}.attention.output.LayerNorm"),
    *dense(f"{BLOCK}/mlp/up", f"{LAYER}.intermediate.dense"),
    *dense(f"{BLOCK}/mlp/down", f"{LAYER}.output.dense"),
    *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.output.LayerNorm"),
    *dense("backbone/pooler", "bert.pooler.dense"),
    Rule("backbone/unembed/table", "cls.predictions.decoder.weight"),
)


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' BertConfig."""
    config.choice("position_embedding_type", {"absolute": None}, "absolute")
    config.choice("is_decoder", {False: None}, False)
    config.choice("add_cross_attention", {False: None}, False)
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if width % heads:
        raise ConfigError(
            f"{config.path}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
        )
    return Spec(
        vocab_size=config.integer("vocab_size"),
        width=width,
        depth=config.integer("num_hidden_layers"),
        heads=heads,
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
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.hidden,
        "max_position_embeddings": spec.max_positions,
        "type_vocab_size": spec.token_types,
        "layer_norm_eps": spec.norm_epsilon,
        "hidden_act": names[spec.activation],
        "position_embedding_type": "absolute",
        "tie_word_embeddings": spec.tied,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.attention_dropout,
    }


def pooled(task: Any) -> dict[str, Any]:
    """The check that the vector under the head is the pooled first token."""
    if task.pool != "first" or not task.pooler:
        raise ConfigError(
            f"export: BERT's classes put a head on the pooled first token, but the task has "
            f"pool={task.pool!r} and pooler={task.pooler}"
        )
    return {"classifier_dropout": task.dropout}


def labelled(task: Any) -> dict[str, Any]:
    """The names of the head's outputs; of a regression's one, that which transformers gives it."""
    return pooled(task) | named(getattr(task, "labels", ("LABEL_0",)))


def tagging(task: Any) -> dict[str, Any]:
    """The names of the tags, of a task that chooses each by itself and nothing besides."""
    if task.chained or hasattr(task, "intents"):
        raise ConfigError(
            f"export: BertForTokenClassification chooses every tag by itself and nothing besides, "
            f"which is Tag, not {type(task).__name__}"
        )
    return {"classifier_dropout": task.dropout} | named(task.labels)


def named(labels: tuple[str, ...]) -> dict[str, Any]:
    """The names of a head's outputs."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def sequence_classification(problem: str) -> Architecture:
    """The one class that has three losses."""
    return Architecture(
        name="BertForSequenceClassification",
        rules=dense("head", "classifier"),
        facts=labelled,
        problem=problem,
    )


FAMILY = Family(
    name="bert",
    prefix="bert.",
    rules=RULES,
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="BertModel", prefixed=False),
    tasks={
        "Classify": sequence_classification("single_label_classification"),
        "MultiLabel": sequence_classification("multi_label_classification"),
        "Regress": sequence_classification("regression"),
        "MultipleChoice": Architecture(
            name="BertForMultipleChoice", rules=dense("head", "classifier"), facts=pooled
        ),
        "Answer": Architecture(name="BertForQuestionAnswering", rules=dense("span", "qa_outputs")),
        "Tag": Architecture(
            name="BertForTokenClassification", rules=dense("head", "classifier"), facts=tagging
        ),
        "MaskedLM": Architecture(
            name="BertForMaskedLM",
            rules=(
                *dense("transform", "cls.predictions.transform.dense"),
                *norm("norm", "cls.predictions.transform.LayerNorm"),
                # Which of the two transformers adds depends on its version and on whether the
                # decoder is tied; where it keeps both apart, it adds the first.
                Rule("bias", "cls.predictions.decoder.bias"),
                Rule("bias", "cls.predictions.bias"),
            ),
        ),
    },
    renames=(
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    buffers=(r"\.position_ids$", r"\.token_type_ids$"),
    tied=(r"^cls\.predictions\.decoder\.weight$",),
    special_tokens={
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
)
