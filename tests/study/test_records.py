"""A run directory is read as it was written, in whatever state a crash left it."""

import json
import math

import pytest

from research.errors import ConfigError, StorageError
from research.study import records


def write_lines(file, rows, end="\n"):
    file.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end
    )


def test_history_by_split_and_name_with_what_json_cannot_say(tmp_path):
    rows = [
        {"step": 1, "split": "train", "time": 0.1, "loss": 2.0, "note": "text", "flag": True},
        {"step": 2, "split": "train", "time": 0.2, "loss": None},
        {"step": 3, "split": "train", "time": 0.3, "loss": "inf", "rate": "-inf"},
        {"step": 3, "split": "dev", "time": 0.3, "loss": "nan", "line\u2028break": 1},
        '{"step": 4, "split": "train", "loss": NaN}',
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    history = records.read_history(tmp_path / "metrics.jsonl")
    steps, values = history["train"]["loss"]
    assert steps.tolist() == [1, 2, 3, 4]
    assert values[0] == 2 and math.isnan(values[1]) and values[2] == math.inf
    assert math.isnan(values[3])
    assert history["train"]["rate"][1].tolist() == [-math.inf]
    assert set(history["train"]) == {"loss", "rate"}
    assert set(history["dev"]) == {"loss", "line\u2028break"}


def test_a_step_logged_twice_counts_once_and_in_order(tmp_path):
    rows = [{"step": step, "split": "train", "loss": step / 10} for step in (10, 20, 30)]
    rows += [{"step": step, "split": "train", "loss": step / 100} for step in (20, 30)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    steps, values = records.read_history(tmp_path / "metrics.jsonl")["train"]["loss"]
    assert (steps.tolist(), values.tolist()) == ([10, 20, 30], [1.0, 0.2, 0.3])


def test_a_torn_last_line_is_left_out_but_no_other(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = {"step": 1, "split": "train", "loss": 1.0}
    whole = '{"step": 2, "split": "train", "é": 2.0}'.encode()
    for cut in range(len(whole)):
        file.write_bytes(f"{json.dumps(good)}\n".encode() + whole[:cut])
        assert records.read_history(file)["train"]["loss"][0].tolist() == [1]
    write_lines(file, [good, '{"step": 2', good])
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2: "):
        records.read_history(file)
    write_lines(file, [good, [1]])
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2: "):
        records.read_history(file)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        records.read(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StorageError, match=r"config\.json is not JSON"):
        records.read(tmp_path)
    (tmp_path / "config.json").write_text("3")
    with pytest.raises(StorageError, match="int; expected a JSON object"):
        records.read(tmp_path)


def test_an_unfinished_run_shows_its_last_metrics_tracked_first(tmp_path):
    config = {"name": "half", "track": "dev/f1"}
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "fingerprint": "0"}))
    write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "split": "dev", "loss": 0.9, "accuracy": 0.5, "f1": 0.3},
            {"step": 2, "split": "dev", "loss": 0.8, "accuracy": 0.6, "f1": 0.4},
            {"step": 2, "split": "train", "loss": 0.7},
        ],
    )
    record = records.read(tmp_path)
    assert (record.name, record.result, record.audit) == ("half", {}, {})
    assert record.metrics["dev/f1"] == 0.4 and record.metrics["train/loss"] == 0.7
    assert record.scores() == ["dev/f1", "dev/accuracy", "dev/loss"]


def test_flatten_gives_every_leaf_its_dotted_key():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 2}, {"e": 3}], "f": {}, "g": None}
    flat = {"a.b": 1, "a.c": [1, 2], "d.0.e": 2, "d.1.e": 3, "f": {}, "g": None}
    assert records.flatten(nested) == flat


@pytest.mark.parametrize("name", ["dev/loss", "perplexity", "test/brier", "calibration_error"])
def test_less_is_better_of_losses(name):
    assert not records.rises(name) and records.rises("dev/accuracy")
