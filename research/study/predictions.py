"""What a model predicted of a split: classes and their confusions, numbers, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from research import metrics
from research.study import plot
from research.study.page import Beside, Block, Details, Figure
from research.study.records import number
from research.study.table import Cell, Table

SHOWN_MISTAKES = 20
SHOWN_CONFUSIONS = 15


def class_blocks(split: str, details: dict[str, Any]) -> list[Block]:
    """Of a split's details: scores by class, the confusion matrix, what is most confused."""
    labels = [str(label) for label in details["labels"]]
    matrix = np.asarray(details["confusion"], np.int64)
    columns: dict[str, Sequence[Any]] = {"class": labels, "examples": matrix.sum(1).tolist()}
    rates = metrics.precision_recall_f1(matrix)
    columns |= {name: r.tolist() for name, r in zip(("precision", "recall", "F1"), rates)}
    if "pr_auc" in details:
        # Not a number for a class without an example.
        areas = [number(area) for area in details["pr_auc"]]
        columns["PR-AUC"] = [area if area == area else None for area in areas]
    by_class = Table("", tuple(columns), tuple(zip(*columns.values())))
    drawn = plot.confusion_matrix(matrix, labels, title=f"Confusion matrix, {split}")
    caption = f"{split}: rows are labels, columns predictions, shaded by share of the row."
    if len(labels) <= 10:
        return [Beside([Figure(drawn, caption), by_class])]
    folded = Details(f"{split}: {len(labels)} classes one by one", [by_class])
    return [Figure(drawn, caption, wide=True), *confused_pairs(matrix, labels), folded]


def confused_pairs(matrix: npt.NDArray[np.int64], labels: Sequence[str]) -> list[Block]:
    """The largest cells off the diagonal, for a matrix too large to search by eye."""
    off = matrix * ~np.eye(len(matrix), dtype=bool)
    if len(labels) <= 10 or not off.any():
        return []
    largest = np.argsort(off, axis=None, kind="stable")[::-1][:SHOWN_CONFUSIONS]
    rows = tuple(
        (labels[row], labels[column], int(off[row, column]), float(off[row, column] / total))
        for row, column in zip(*np.unravel_index(largest, off.shape))
        if off[row, column] and (total := matrix[row].sum())
    )
    columns = ("label", "predicted", "examples", "share of label")
    return [Table("Most often confused", columns, rows)]


def mistake_table(mistakes: Sequence[dict[str, Any]]) -> Table:
    """The wrong predictions the model was surest of, or those furthest from a number."""
    measure = "probability" if "probability" in mistakes[0] else "error"
    worst = sorted(mistakes, key=lambda mistake: -number(mistake[measure]))
    rows = tuple(
        (
            number(mistake[measure]),
            _cell(mistake["label"]),
            _cell(mistake["prediction"]),
            _cut(mistake.get("text", ""), 300),
        )
        for mistake in worst[:SHOWN_MISTAKES]
    )
    title = "Most confident mistakes" if measure == "probability" else "Largest errors"
    return Table(title, (measure, "label", "predicted", "text"), rows)


def scatter(split: str, points: dict[str, list[float]]) -> Block:
    """Predicted numbers over true ones."""
    drawn = plot.scatter(
        f"Predictions, {split}",
        [number(value) for value in points["label"]],
        [number(value) for value in points["prediction"]],
        xlabel="label",
        ylabel="predicted",
    )
    return Figure(drawn, f"{split}: {len(points['label'])} examples; on the line all is right.")


def _cell(value: Any) -> Cell:
    return value if isinstance(value, int | float) else str(value)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
