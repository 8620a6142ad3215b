"""XLNet (Yang et al., 2019): content and query stream, their heads, and the summary of <cls>."""

from __future__ import annotations

import functools
from typing import Any

from research.errors import ConfigError
from research.models.pretrained.bert import ACTIVATIONS, NAMES
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.pretrained.heads import answering, named, tagging
from research.models.xlnet import XLNet, XLNetSpec

BLOCK, LAYER = "backbone/block_{i}", "transformer.layer.{i}"
RULES = (
    Rule("backbone/embed/table", "transformer.word_embedding.weight"),
    Rule("backbone/unknown", "transformer.mask_emb"),
    Rule(f"{BLOCK}/attention/query/kernel", f"{LAYER}.rel_attn.q", heads=True),
    Rule(f"{BLOCK}/attention/key/kernel", f"{LAYER}.rel_attn.k", heads=True),
    Rule(f"{BLOCK}/attention/value/kernel", f"{LAYER}.rel_attn.v", heads=True),
    Rule(f"{BLOCK}/attention/relative/kernel", f"{LAYER}.rel_attn.r", heads=True),
    Rule(f"{BLOCK}/attention/out/kernel", f"{LAYER}.rel_attn.o", transposed=True, heads=True),
    Rule(f"{BLOCK}/attention/content_bias", f"{LAYER}.rel_attn.r_w_bias"),
    Rule(f"{BLOCK}/attention/place_bias", f"{LAYER}.rel_attn.r_r_bias"),
    Rule(f"{BLOCK}/attention/type_bias", f"{LAYER}.rel_attn.r_s_bias"),
    Rule(f"{BLOCK}/attention/kinds", f"{LAYER}.rel_attn.seg_embed"),
    *norm(f"{BLOCK}/attention_norm", f"{LAYER}.rel_attn.layer_norm"),
    *dense(f"{BLOCK}/mlp/up", f"{LAYER}.ff.layer_1"),
    *dense(f"{BLOCK}/mlp/down", f"{LAYER}.ff.layer_2"),
    *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.ff.layer_norm"),
    Rule("backbone/unembed/table", "lm_loss.weight"),
)
SUMMARY = dense("backbone/pooler", "sequence_summary.summary")


def to_spec(config: Settings) -> XLNetSpec:
    """The trunk that a config.json describes; defaults are those of transformers' XLNetConfig."""
    config.choice("bi_data", {False: None}, False)
    config.choice("same_length", {False: None}, False)
    config.choice("clamp_len", {-1: None, 0: None}, -1)
    config.choice("untie_r", {True: None}, True)
    # How a classifier's vector is made: see `Pooled`.
    config.choice("summary_type", {"last": None}, "last")
    config.choice("summary_use_proj", {True: None}, True)
    config.choice("summary_activation", {"tanh": None}, "tanh")
    width, heads = config.integer("d_model"), config.integer("n_head")
    if width % heads or config.integer("d_head", width // heads) != width // heads:
        raise ConfigError(
            f"{config.path}: d_model {width} is not n_head {heads} times d_head "
            f"{config.values.get('d_head')}"
        )
    return XLNetSpec(
        vocab_size=config.integer("vocab_size"),
        width=width,
        depth=config.integer("n_layer"),
        heads=heads,
        hidden=config.integer("d_inner"),
        causal=config.choice("attn_type", {"bi": False, "uni": True}, "bi"),
        norm_epsilon=config.number("layer_norm_eps", 1e-12),
        activation=config.choice("ff_activation", ACTIVATIONS, "gelu"),
        tied=config.choice("tie_word_embeddings", {True: True, False: False}, True),
        dropout=config.number("dropout", 0.1),
    )


def to_config(spec: XLNetSpec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return {
        "vocab_size": spec.vocab_size,
        "d_model": spec.width,
        "n_layer": spec.depth,
        "n_head": spec.heads,
        "d_head": spec.width // spec.heads,
        "d_inner": spec.hidden,
        "attn_type": "uni" if spec.causal else "bi",
        "layer_norm_eps": spec.norm_epsilon,
        "ff_activation": NAMES[spec.activation],
        "tie_word_embeddings": spec.tied,
        "dropout": spec.dropout,
        "untie_r": True,
    }


def pooled(task: Any) -> dict[str, Any]:
    """The check that the vector under the head is the summary of the last token."""
    if task.pool != "last" or not task.pooler:
        raise ConfigError(
            f"export: XLNet's classes put a head on the pooled last token, but the task has "
            f"pool={task.pool!r} and pooler={task.pooler}"
        )
    return {"summary_type": "last", "summary_last_dropout": task.dropout}


def labelled(task: Any) -> dict[str, Any]:
    """The names of the head's outputs; of a regression's one, that which transformers gives it."""
    return pooled(task) | named(task)


def sequence_classification(problem: str) -> Architecture:
    """The one class that has three losses."""
    return Architecture(
        name="XLNetForSequenceClassification",
        rules=(*SUMMARY, *dense("head", "logits_proj")),
        facts=labelled,
        problem=problem,
    )


FAMILY = Family(
    name="xlnet",
    prefix="transformer.",
    rules=RULES,
    to_spec=to_spec,
    to_config=to_config,
    spec=XLNetSpec,
    build=XLNet,
    trunk=Architecture(name="XLNetModel", prefixed=False),
    tasks={
        "Classify": sequence_classification("single_label_classification"),
        "MultiLabel": sequence_classification("multi_label_classification"),
        "Regress": sequence_classification("regression"),
        "MultipleChoice": Architecture(
            name="XLNetForMultipleChoice",
            rules=(*SUMMARY, *dense("head", "logits_proj")),
            facts=pooled,
        ),
        "Answer": Architecture(
            name="XLNetForQuestionAnsweringSimple",
            rules=dense("span", "qa_outputs"),
            facts=functools.partial(answering, "XLNetForQuestionAnsweringSimple"),
        ),
        "Tag": Architecture(
            name="XLNetForTokenClassification",
            rules=dense("head", "classifier"),
            facts=functools.partial(tagging, "XLNetForTokenClassification"),
        ),
        "PermutationLM": Architecture(
            name="XLNetLMHeadModel", rules=(Rule("bias", "lm_loss.bias"),)
        ),
    },
    tied=(r"^lm_loss\.weight$",),
    special_tokens={
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "<sep>",
        "pad_token": "<pad>",
        "cls_token": "<cls>",
        "mask_token": "<mask>",
    },
    # The classes sum up the last token, which padding must not be.
    tokenizer={"padding_side": "left"},
)
