"""Plans of studies name what is then run; what was run comes again, or is found out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from workshop import config as tiny
from workshop import write_rows

import launch
from research.errors import ConfigError
from research.study import plan
from research.study.page import Page
from research.study.reproduce import interval, reproduce
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify

STUDY = """
import dataclasses
from pathlib import Path
from research.study.page import Page
from research.study.runner import PLANNED
from workshop import config

def study(run, *, folder: str = "", seeds: int = 2):
    rates = []
    for seed in range(seeds):
        for rate in (1e-2, 1e-3):
            one = config(Path(folder), name=f"rate-{rate}-{seed}", seed=seed, steps=4)
            optim = dataclasses.replace(one.optim, learning_rate=rate)
            rates.append(run(dataclasses.replace(one, optim=optim)).metrics["dev/accuracy"])
    return PLANNED if run.dry else Page("Rates", str(rates), [])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four runs, planned and then made; a chain of two."""
    path = tmp_path_factory.mktemp("plan")
    write_rows(path)
    (path / "rates.py").write_text(STUDY)
    return path


def command(folder: Path, *more: str) -> int:
    work = ["--workdir", str(folder / "runs"), "--folder", str(folder)]
    return launch.main(["study", str(folder / "rates.py"), *work, *more])


def test_a_plan_trains_nothing_and_names_what_is_then_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder, "--dry-run") == 0
    said = capsys.readouterr().out
    assert not list((folder / "runs").rglob("result.json"))
    assert "4 runs in 2 arms" in said and "lower bound" in said
    assert "optim.learning_rate: 0.01 -> 0.001" in said
    assert command(folder) == 0
    made = {path.parent.name for path in (folder / "runs" / "rates").glob("*/result.json")}
    assert made == {"rate-0.01-0", "rate-0.001-0", "rate-0.01-1", "rate-0.001-1"}
    assert all(name in said for name in made)
    page = (folder / "runs" / "rates" / "report.md").read_text()
    assert "All 4 runs" in page and "optim.learning_rate: 0.01 -\\> 0.001" in page
    capsys.readouterr()
    assert command(folder, "--dry-run") == 0
    assert "The rate is that of 4 finished runs of this study" in capsys.readouterr().out


def test_expected_flops_are_those_of_the_cells_that_the_steps_have(folder: Path) -> None:
    """By hand: 6 a weight of the blocks and token, and the products of attention."""
    config = tiny(folder, data=dataclasses.replace(tiny(folder).data, layout="padded"))
    resolved, summary, cells = plan.examined(config, {})
    width, hidden, length = 16, 32, summary["shapes"][0][1]
    weights = 4 * width * width + 2 * width * hidden
    assert summary["flops_per_token"] == 6 * weights + 12 * width * length
    batches = resolved.data.open("train", 8, steps=12, seed=0)
    real = np.mean([batches.batch(step)["tokens"].size for step in range(12)])
    np.testing.assert_allclose(cells, real, rtol=0.1)


def test_a_run_that_starts_from_a_planned_one_is_planned_with_its_trunk(tmp_path: Path) -> None:
    write_rows(tmp_path)
    runner = Runner(tmp_path / "chain", dry=True)
    first = runner(tiny(tmp_path, name="first-0"))
    data = dataclasses.replace(tiny(tmp_path).data, tokenizer=None)
    second = tiny(tmp_path, name="second-0", task=Classify(), data=data)
    runner(dataclasses.replace(second, init_from=str(first.path)))
    page: Page = plan.plan(runner)
    assert "2 runs in 2 arms" in page.text() and np.isnan(first.metrics["dev/accuracy"])
    assert not PLANNED.blocks


def test_a_run_comes_again_to_the_last_digit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(folder)
    report = folder / "runs" / "rates" / "report.html"
    capsys.readouterr()
    assert launch.main(["reproduce", str(report), "rate-0.01-1"]) == 0
    said = capsys.readouterr().out
    assert "equal" in said and "OUTSIDE" not in said and "differs" not in said
    # A number that was never the run's is found out, where the arm's spread has no room for it.
    rows = [json.loads(line) for line in report.with_name("results.jsonl").read_text().splitlines()]
    for row, loss in zip(rows, (0.1, 0.3, 0.1001, 0.3001)):
        row["metrics"]["dev/loss"] = loss
    report.with_name("results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = reproduce(report, "1")
    assert {s.name: s.verdict for s in found.scores}["dev/loss"] == "OUTSIDE" and not found.agrees
    with pytest.raises(ConfigError, match="no row 'rate-9'; expected a run's name"):
        reproduce(report, "rate-9")


def test_the_interval_holds_one_more_number_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        *known, one = chance.normal(size=5)
        low, high = interval(known)
        inside.append(low <= one <= high)
    # 0.95, and three standard errors of 400 draws.
    assert abs(np.mean(inside) - 0.95) < 3 * (0.95 * 0.05 / 400) ** 0.5
    np.testing.assert_allclose(interval([0.0, 1.0, 2.0]), (-3.968, 5.968), atol=1e-3)
    assert np.isnan(interval([1.0])).all()
