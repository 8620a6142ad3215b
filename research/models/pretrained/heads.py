"""The classes of transformers that put a head on a trunk: named alike and built alike.

The dense layer under a classifier is our trunk's pooler, wherever a family keeps it.
"""

from __future__ import annotations

from typing import Any

from research.errors import ConfigError
from research.models.pretrained.family import Architecture, Rule, dense

PROBLEMS = {
    "Classify": "single_label_classification",
    "MultiLabel": "multi_label_classification",
    "Regress": "regression",
}


def tasks(
    kin: str,
    *,
    words: tuple[Rule, ...],
    head: str = "classifier",
    pooler: tuple[Rule, ...] = (),
    choice_pooler: tuple[Rule, ...] = (),
    dropout: str | None = "classifier_dropout",
    choice_dropout: str | None = "classifier_dropout",
    tag_dropout: str | None = "classifier_dropout",
    token_pooler: tuple[Rule, ...] = (),
    mean: bool = False,
) -> dict[str, Architecture]:
    """What a family's tasks are exported as; `kin` begins the names of its classes.

    `words` are the rules of masked language modelling, `head` the layer that gives the logits of a
    sequence. `pooler` and `choice_pooler` are rules of the layer under it where it is no part of
    the family's trunk, `token_pooler` those of a family that has one for every token. The dropouts
    are keys of config.json, None where the class takes the trunk's. `mean` pooling may be
    expressed.
    """
    decisive = {"classifier_pooling": "cls"} if mean else {}

    def one(name: str, key: str | None, rules: tuple[Rule, ...], **more: Any) -> Architecture:
        def facts(task: Any) -> dict[str, Any]:
            found = pooled(kin + name, task, mean=mean) | dropped(key, task)
            return found | (named(task) if "problem" in more else {})

        return Architecture(name=kin + name, rules=rules, facts=facts, decisive=decisive, **more)

    def tagged(task: Any) -> dict[str, Any]:
        name = f"{kin}ForTokenClassification"
        return tagging(name, task, pooler=bool(token_pooler)) | dropped(tag_dropout, task)

    def answered(task: Any) -> dict[str, Any]:
        return answering(f"{kin}ForQuestionAnswering", task, pooler=bool(token_pooler))

    rules = (*pooler, *dense("head", head))
    return {
        **{
            task: one("ForSequenceClassification", dropout, rules, problem=problem)
            for task, problem in PROBLEMS.items()
        },
        "MultipleChoice": one(
            "ForMultipleChoice", choice_dropout, (*choice_pooler, *dense("head", "classifier"))
        ),
        "Answer": Architecture(
            name=f"{kin}ForQuestionAnswering",
            rules=(*token_pooler, *dense("span", "classifier" if token_pooler else "qa_outputs")),
            facts=answered,
        ),
        "Tag": Architecture(
            name=f"{kin}ForTokenClassification",
            rules=(*token_pooler, *dense("head", "classifier")),
            facts=tagged,
        ),
        "MaskedLM": Architecture(name=f"{kin}ForMaskedLM", rules=words),
    }


def pooled(name: str, task: Any, *, mean: bool) -> dict[str, Any]:
    """The check that the vector under the head is the one that the class takes."""
    pools = {"first": "cls", "mean": "mean"} if mean else {"first": "cls"}
    if task.pool not in pools or not task.pooler:
        raise ConfigError(
            f"export: {name} puts its head on the pooled {'first token' if not mean else 'tokens'},"
            f" but the task has pool={task.pool!r} and pooler={task.pooler}"
        )
    return {"classifier_pooling": pools[task.pool]} if mean else {}


def dropped(key: str | None, task: Any) -> dict[str, Any]:
    """The dropout under the head."""
    return {} if key is None else {key: task.dropout}


def named(task: Any) -> dict[str, Any]:
    """The names of the head's outputs; of a regression's one, that which transformers gives it."""
    labels = getattr(task, "labels", ("LABEL_0",))
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def tagging(name: str, task: Any, *, pooler: bool = False) -> dict[str, Any]:
    """The names of the tags, of a task that chooses each by itself and nothing besides."""
    if task.chained or hasattr(task, "intents"):
        raise ConfigError(
            f"export: {name} chooses every tag by itself and nothing besides, which is Tag, not "
            f"{type(task).__name__}"
        )
    return answering(name, task, pooler=pooler) | named(task)


def answering(name: str, task: Any, *, pooler: bool = False) -> dict[str, Any]:
    """The check that there is a `pooler` under the head of every token, or none."""
    if task.token_pooler != pooler:
        raise ConfigError(
            f"export: {name} has {'a' if pooler else 'no'} dense layer under its head, but the "
            f"task has token_pooler={task.token_pooler}"
        )
    return {}
