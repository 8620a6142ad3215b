"""Pages are made from a run directory alone, whole or half, and say what it holds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from research.errors import ConfigError, StorageError
from research.study import curves, records, report, sections
from research.study.page import Beside, Details, Facts, Figure, Page
from research.study.statistics import Summary, paired_test
from research.study.table import Table, show


def make_run(
    root: Path,
    name: str,
    *,
    classes: int = 2,
    seed: int = 0,
    rate: float = 3e-5,
    score: float = 0.9,
    finished: bool = True,
) -> Path:
    """A run directory as the trainer writes it."""
    path = root / name
    path.mkdir()
    config = {
        "type": "research.config:Config",
        "name": name,
        "optim": {"type": "research.optim:Optim", "learning_rate": rate},
        "track": "dev/accuracy",
        "seed": seed,
    }
    (path / "config.json").write_text(json.dumps({"config": config, "fingerprint": "f" * 16}))
    rows = []
    for step in range(1, 41):
        means = {"loss": 1 / step, "grad_norm": 0.5 * step if step != 7 else "inf"}
        rows.append({"step": step, "split": "train", "time": step, **means, "learning_rate": rate})
        if step % 10 == 0:
            values = {"loss": 2 / step, "accuracy": score * step / 40, "perplexity": 90.0 / step}
            rows.append({"step": step, "split": "dev", "time": step, **values})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = [
        {"path": f"trunk/block_{i}/{leaf}", "shape": shape, "dtype": "float32", "parameters": size,
         "learns": leaf == "bias", "multiplier": 1.0, "decay": 0.01, "sharding": [None]}
        for i in range(12)
        for leaf, shape, size in (("kernel", [8, 8], 64), ("bias", [8], 8))
    ]  # fmt: skip
    audit = {"summary": {"parameters": 864, "mesh": {"data": 2}}, "parameters": parameters}
    (path / "audit.json").write_text(json.dumps(audit))
    if finished:
        labels = [f"class<{i}>" for i in range(classes)]
        matrix = np.eye(classes, dtype=int) * 9
        matrix[0, 1] = 4
        mistakes = [
            {"text": f"text {p} <b>" + "x" * 400, "label": "a", "prediction": "b", "probability": p}
            for p in (0.6, 0.99, 0.8)
        ]
        details = {"labels": labels, "confusion": matrix.tolist(), "mistakes": mistakes}
        result = {
            "name": name,
            "status": "done",
            "metrics": {
                "train/loss": 0.025,
                "dev/loss": 0.05,
                "dev/accuracy": score,
                "dev/perplexity": 2.25,
                "dev/f": None,
            },
            "details": {"dev": details, "probe": {"by_domain": {"x": {"n": 3}, "y": {"n": 4}}}},
            "steps": 40,
            "examples": 1280,
            "tokens": 9999,
            "seconds": {"total": 245.0, "train": 200.0, "compile": 45.0},
            "peak_memory_mb": 1234.6,
            "fingerprints": {"data": "abc", "tokenizer": None},
            "versions": {"jax": "0.10"},
            "device": {"kind": "cpu", "count": 1},
        }
        (path / "result.json").write_text(json.dumps(result))
    return path


def test_a_run_page_says_all_that_the_directory_holds(tmp_path):
    page = report.run_page(make_run(tmp_path, "one"))
    text = page.text()
    head = text.index("dev/accuracy")
    assert head < text.index("Loss: ") < text.index("Final metrics") < text.index("class<0>")
    for part in ("0.9000", "4 min 05 s", "1,235 MB", "version jax", "fingerprint data", "3e-05"):
        assert part in text
    for part in ("compile", "81.6%", "by_domain", "trunk/block_{0…11}/kernel", "mesh.data"):
        assert part in text
    assert "tokenizer" not in text
    html = page.html()
    assert html.count("<svg ") == 6  # loss, scores, perplexity, gradient norm, rate, confusion
    assert "class&lt;0&gt;" in html and "class<0>" not in html


def test_scores_by_class_are_those_of_the_matrix(tmp_path):
    blocks = sections.detail_blocks("dev", json.loads(
        (make_run(tmp_path, "one") / "result.json").read_text()
    )["details"]["dev"])  # fmt: skip
    beside, mistakes = blocks
    assert isinstance(beside, Beside) and isinstance(mistakes, Table)
    figure, by_class = beside.blocks
    assert isinstance(figure, Figure) and isinstance(by_class, Table)
    assert by_class.rows == (
        ("class<0>", 13, 1.0, 9 / 13, 18 / 22),
        ("class<1>", 9, 9 / 13, 1.0, 18 / 22),
    )
    assert [row[0] for row in mistakes.rows] == [0.99, 0.8, 0.6]
    assert all(len(str(row[3])) == 300 for row in mistakes.rows)


def test_of_many_classes_the_most_confused_come_first(tmp_path):
    run = make_run(tmp_path, "one", classes=30)
    details = records.read(run).result["details"]["dev"]
    figure, confused, folded, _ = sections.detail_blocks("dev", details)
    assert isinstance(figure, Figure) and figure.wide
    assert isinstance(confused, Table) and isinstance(folded, Details)
    assert confused.rows == (("class<0>", "class<1>", 4, 4 / 13),)


@pytest.mark.parametrize("missing", ["metrics.jsonl", "audit.json", "result.json", "all"])
def test_a_run_page_does_without(tmp_path, missing):
    run = make_run(tmp_path, "one")
    for name in ("metrics.jsonl", "audit.json", "result.json"):
        if missing in (name, "all"):
            (run / name).unlink()
    page = report.run_page(run)
    assert page.html().startswith("<!doctype html>")
    assert ("no result" in page.text()) == (missing in ("result.json", "all"))


def test_values_that_are_not_finite_are_drawn_as_gaps(tmp_path):
    run = make_run(tmp_path, "one", finished=False)
    rows = [
        {"step": step, "split": split, "loss": "nan", "accuracy": value}
        for step in range(40)
        for split, value in (("train", None), ("dev", "inf"))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for page in (report.run_page(run), report.compare_page([run, run])):
        assert "no finite value" in page.html()


def test_pages_are_equal_to_the_byte_and_written_whole(tmp_path):
    run = make_run(tmp_path, "one")
    first = report.write_page(report.run_page(run), tmp_path / "out" / "deep")
    again = report.write_page(report.run_page(run), tmp_path / "again")
    assert first.read_bytes() == again.read_bytes()
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == ["report.html", "report.md"]
    assert (first.parent / "report.md").read_text("utf-8").startswith("# one\n")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="file"):
        report.write_page(Page("t", "", []), blocked)


def test_a_comparison_names_only_the_keys_that_differ(tmp_path):
    runs = [make_run(tmp_path, f"r{i}", rate=rate) for i, rate in enumerate((1e-5, 3e-5))]
    page = report.compare_page(runs)
    table = page.blocks[1]
    assert isinstance(table, Table)
    assert table.columns[:2] == ("run", "optim.learning_rate")
    assert [row[:3] for row in table.rows] == [("r0", "1e-05", 0.9), ("r1", "3e-05", 0.9)]
    assert "seed" not in table.columns
    assert page.html().count("<svg ") == 4  # train loss, accuracy, dev loss, perplexity
    with pytest.raises(ConfigError, match="at least one"):
        report.compare_page([])


def test_seeds_of_one_config_are_an_arm_with_a_paired_test(tmp_path):
    generator = np.random.default_rng(0)
    scores = {rate: generator.normal(0.8 + 1e3 * rate, 0.01, 5) for rate in (1e-5, 5e-5)}
    runs = [
        make_run(tmp_path, f"{rate}-{seed}", seed=seed, rate=rate, score=float(values[seed]))
        for rate, values in scores.items()
        for seed in range(5)
    ]
    tables = [b for b in report.compare_page(runs).blocks if isinstance(b, Table)]
    _, by_arm, tests = tables
    assert [row[:2] for row in by_arm.rows] == [
        (f"optim.learning_rate {rate!r}", Summary.of(values)) for rate, values in scores.items()
    ]
    wanted = paired_test(scores[5e-5], scores[1e-5])
    assert tests.rows[0][1:4] == (wanted.difference, wanted.dz, 5)
    assert tests.rows[0][4:] == (wanted.p, wanted.p, 0.0625, wanted.t_p)


def test_a_run_compared_with_itself_is_one_arm_of_two(tmp_path):
    run = make_run(tmp_path, "one")
    text = report.compare_page([run, run]).text()
    assert "2 runs compared" in text


def test_smoothing_keeps_a_constant_and_what_a_span_of_one_leaves():
    values = np.array([3.0, 1.0, np.nan, 5.0])
    assert curves.smooth(np.full(9, 2.5), 4).tolist() == [2.5] * 9
    assert curves.smooth(values, 1)[[0, 1, 3]].tolist() == [3.0, 1.0, 5.0]
    weights = np.array([0.5**3, 0.5**2, 0.5, 1.0])[-2:]
    expected = (weights * [3.0, 1.0]).sum() / weights.sum()
    assert curves.smooth(values, 2)[1] == pytest.approx(expected)
    assert np.isnan(curves.smooth(np.array([np.nan, 1.0]), 3)[0])


def test_mean_curve_is_over_the_steps_that_all_have():
    first = (np.array([1.0, 2, 3]), np.array([1.0, 2, 3]))
    second = (np.array([2.0, 3, 4]), np.array([4.0, np.inf, 9]))
    line = curves.mean_curve("arm", [first, second], noisy=False)
    assert np.asarray(line.x).tolist() == [2, 3]
    assert np.asarray(line.y)[0] == 3 and np.isnan(np.asarray(line.y)[1])
    assert np.asarray(line.high)[0] == pytest.approx(3 + np.sqrt(2))


@pytest.mark.parametrize(
    ("paths", "merged"),
    [
        (["a/b"], "a/b"),
        (["l_0/w", "l_1/w", "l_2/w"], "l_{0…2}/w"),
        (["l_0/w", "l_2/w"], "l_{0,2}/w"),
        (["l_9/w", "l_10/w"], "l_{9…10}/w"),
        (["1/2", "1/3"], "1/{2…3}"),
    ],
)
def test_paths_alike_but_for_numbers_are_one(paths, merged):
    assert sections.merge_paths(paths) == merged


def test_audit_rows_are_one_only_where_all_else_is_equal(tmp_path):
    audit = records.read(make_run(tmp_path, "one")).audit
    for row in audit["parameters"]:
        if "block_11" in row["path"]:
            row["multiplier"] = 0.5
    facts, folded = sections.audit_blocks(audit)
    assert isinstance(facts, Facts) and facts.values["mesh.data"] == 2
    (table,) = folded.blocks
    assert [row[0] for row in table.rows] == [
        "trunk/block_{0…10}/kernel",
        "trunk/block_{0…10}/bias",
        "trunk/block_11/kernel",
        "trunk/block_11/bias",
    ]
    assert sum(row[3] for row in table.rows) == 864
    assert sections.audit_blocks({}) == []
    assert "trunk/block_11/bias" in report.audit_page(audit).text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (59.99, "1 min 00 s"), (245, "4 min 05 s"), (3599.8, "1 h 00 min"),
     (7384, "2 h 03 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_the_template_is_in_the_package():
    assert re.search(
        r"<!doctype html>", (Path(report.__file__).parent / "page.html.j2").read_text()
    )
    assert show(None) == "–"


def test_numbers_are_a_scatter_and_the_largest_errors():
    details = {
        "points": {"label": [1.0, 4.0], "prediction": [1.5, 2.0]},
        "mistakes": [
            {"id": 0, "label": 1.0, "prediction": 1.5, "error": 0.5, "text": "near"},
            {"id": 1, "label": 4.0, "prediction": 2.0, "error": 2.0, "text": "far"},
        ],
    }
    figure, table = sections.detail_blocks("dev", details)
    assert isinstance(figure, Figure) and isinstance(table, Table)
    assert table.rows == ((2.0, 4.0, 2.0, "far"), (0.5, 1.0, 1.5, "near"))
    empty = {"points": {"label": [1.0], "prediction": ["nan"]}}
    assert isinstance(sections.detail_blocks("dev", empty)[0], Figure)


def test_areas_are_a_column_of_the_classes():
    details = {"labels": ["a", "b"], "confusion": [[1, 0], [1, 2]], "pr_auc": [0.5, "nan"]}
    (beside,) = sections.detail_blocks("dev", details)
    by_class = beside.blocks[1]
    assert by_class.columns[-1] == "PR-AUC"
    assert [row[-1] for row in by_class.rows] == [0.5, None]
