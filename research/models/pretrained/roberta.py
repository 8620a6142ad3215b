"""RoBERTa (Liu et al., 2019), and XLM-R (Conneau et al., 2020), which is computed alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.errors import ConfigError
from research.models.pretrained import bert, heads
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.transformer import Spec

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; the first position follows the id of the padding."""
    # The head of its masked language model has gelu whatever the trunk has.
    config.choice("hidden_act", {"gelu": None}, "gelu")
    rows = config.integer("max_position_embeddings", 512)
    offset = int(config.number("pad_token_id", 1)) + 1
    if rows <= offset:
        raise ConfigError(
            f"{config.path}: max_position_embeddings is {rows}, of which pad_token_id leaves none"
        )
    spec = bert.to_spec(config)
    return dataclasses.replace(spec, position_offset=offset, max_positions=rows - offset)


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return bert.to_config(spec) | {
        "max_position_embeddings": spec.max_positions + spec.position_offset,
        "pad_token_id": spec.position_offset - 1,
    }


def family(name: str, kin: str) -> Family:
    """The table of one of the two."""
    return Family(
        name=name,
        prefix="roberta.",
        rules=(
            *bert.trunk_rules("roberta"),
            *dense("backbone/pooler", "roberta.pooler.dense"),
            Rule("backbone/unembed/table", "lm_head.decoder.weight"),
        ),
        to_spec=to_spec,
        to_config=to_config,
        trunk=Architecture(name=f"{kin}Model", prefixed=False),
        tasks=heads.tasks(
            kin,
            head="classifier.out_proj",
            pooler=dense("backbone/pooler", "classifier.dense"),
            choice_dropout=None,
            words=(
                *dense("transform", "lm_head.dense"),
                *norm("norm", "lm_head.layer_norm"),
                Rule("bias", "lm_head.decoder.bias"),
                Rule("bias", "lm_head.bias"),
            ),
        ),
        renames=bert.RENAMES,
        buffers=bert.BUFFERS,
        tied=(r"^lm_head\.decoder\.weight$",),
        special_tokens=SPECIAL_TOKENS,
    )


# A trunk does not tell which of the two it was: both are exported as the first.
FAMILY, XLM_FAMILY = family("roberta", "Roberta"), family("xlm-roberta", "XLMRoberta")
