"""Growth: points are those of the axis, and what they measure is a run that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.bench import growth
from research.data.texts import Texts
from research.errors import ConfigError


def test_rows_are_distinct_and_have_all_classes(tmp_path: Path) -> None:
    growth.write_rows(tmp_path / "rows.tsv", 60, 12, classes=20)
    data = Texts(train=str(tmp_path / "rows.tsv"), tokenizer=growth.tokenizer(tmp_path))
    batches = data.open("train", 8)
    assert len(data.label_names()) == 20 and batches.rows == 60
    assert len({data.quote("train", i) for i in range(60)}) == 60
    lengths = batches.lengths
    assert lengths.min() > 12 and lengths.max() <= 20


def test_a_page_has_every_point_of_every_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int, str]] = []

    def one(command: list[str], environment: dict[str, str]) -> growth.Point:
        axis, value = command[-3], int(command[-2])
        asked.append((axis, value, environment.get("XLA_FLAGS", "")))
        return {"time": float(value * len(asked)), "peak memory": 7.0}

    monkeypatch.setattr(growth, "one", one)
    flags = ["--only", "rows", "--only", "devices", "--rows", "20000", "--to", str(tmp_path)]
    growth.main(flags)
    assert [(axis, value) for axis, value, _ in asked] == [
        *(("rows", rows) for rows in (1000, 10_000, 20_000) for _ in ("cold", "warm")),
        *(("devices", count) for count in (1, 10)),
    ]
    assert "--xla_force_host_platform_device_count=10" in asked[-1][2]
    kept: dict[str, Any] = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert kept["rows"]["1000"]["time, cold"] == 1000 and kept["rows"]["1000"]["time, warm"] == 2000
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 4 and "Classes" not in html
    assert "20000" in capsys.readouterr().out.replace(",", "")


def test_points_are_figures_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growth.write_rows(tmp_path / "64.tsv", 64, 12)
    growth.point(["rows", "64", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"opening", "peak memory", "held memory"}
    growth.point(["layers", "1", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"a step", "compiling", "peak memory"}
    assert np.isfinite(list(found.values())).all() and found["a step"] > 0


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rows is 10, expected 1000 up"):
        growth.main(["--rows", "10"])
