"""ELECTRA (Clark et al., 2020): its discriminators, and its generators as masked models."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.models.pretrained import bert, heads
from research.models.pretrained.family import Architecture, Family, Rule, Settings, dense, norm
from research.models.transformer import Spec


def to_spec(config: Settings) -> Spec:
    """The trunk that a config.json describes; defaults are those of transformers' ElectraConfig."""
    # Its heads have gelu whatever the trunk has.
    config.choice("hidden_act", {"gelu": None}, "gelu")
    config.choice("summary_type", {"first": None}, "first")
    config.choice("summary_use_proj", {True: None}, True)
    config.choice("summary_activation", {"gelu": None}, "gelu")
    spec = bert.to_spec(config)
    width = config.integer("embedding_size", 128)
    return dataclasses.replace(
        spec, embed_width=None if width == spec.width else width, pooler="gelu"
    )


def to_config(spec: Spec) -> dict[str, Any]:
    """The keys of config.json that the trunk decides."""
    return bert.to_config(spec) | {"embedding_size": spec.embed_width or spec.width}


FAMILY = Family(
    name="electra",
    prefix="electra.",
    rules=(
        *bert.trunk_rules("electra"),
        *dense("backbone/embed_project", "electra.embeddings_project"),
        Rule("backbone/unembed/table", "generator_lm_head.weight"),
    ),
    to_spec=to_spec,
    to_config=to_config,
    trunk=Architecture(name="ElectraModel", prefixed=False),
    tasks={
        **heads.tasks(
            "Electra",
            head="classifier.out_proj",
            pooler=dense("backbone/pooler", "classifier.dense"),
            choice_pooler=dense("backbone/pooler", "sequence_summary.summary"),
            choice_dropout="summary_last_dropout",
            words=(
                *dense("transform", "generator_predictions.dense"),
                *norm("norm", "generator_predictions.LayerNorm"),
                Rule("bias", "generator_lm_head.bias"),
            ),
        ),
        # The discriminator; the generator is a model of its own there.
        "ReplacedTokens": Architecture(
            name="ElectraForPreTraining",
            rules=(
                *dense("detector", "discriminator_predictions.dense"),
                *dense("detection", "discriminator_predictions.dense_prediction"),
            ),
        ),
    },
    renames=bert.RENAMES,
    buffers=bert.BUFFERS,
    tied=(r"^generator_lm_head\.weight$",),
    special_tokens=bert.SPECIAL_TOKENS,
)
