"""Several processes train one run: as one process does, until one of them is stopped or dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch
from research import hosts, manifest, runs
from research.errors import ConfigError

SCENARIOS = (
    *("one", "two", "stopped", "first_dies", "last_dies", "one_goes_on"),
    *("other_seed", "no_data", "full", "infinite", "replayed"),
)
LAUNCHERS = (
    *("GRAFT_COORDINATOR", "GRAFT_PROCESSES", "GRAFT_PROCESS", "SLURM_STEP_NUM_TASKS"),
    *("OMPI_COMM_WORLD_SIZE", "TPU_ML_PLATFORM", "TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES"),
    *("TPU_WORKER_HOSTNAMES", "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, Any]:
    """How each scenario of together.py ended."""
    tests = Path(__file__).parent
    cache = Path.home() / ".cache" / "graft" / "tests"
    answer = subprocess.run(
        [sys.executable, str(tests / "together.py"), str(folder), *SCENARIOS],
        env=os.environ | {"PYTHONPATH": str(tests.parent), "GRAFT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    return {row["name"]: row for row in rows}


@pytest.fixture
def bare(monkeypatch) -> None:
    """No launcher has started this process."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def assert_same_lines(one: Path, other: Path) -> None:
    """metrics.jsonl of two runs: all counts equal, all other numbers to 1e-5."""
    first, second = runs.read_metrics(one), runs.read_metrics(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second):
        for name in ("step", "split", "examples", "tokens"):
            assert a.get(name) == b.get(name)
        assert a.keys() == b.keys()
        numbers = {name: a[name] for name in a.keys() - {"time", "split"}}
        assert {name: b[name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5)


def test_two_processes_train_what_one_trains(folder, ended):
    assert (ended["one"]["codes"], ended["two"]["codes"]) == ([0], [0, 0])
    assert_same_lines(folder / "one" / "tiny", folder / "two" / "tiny")
    one, two = (runs.read_result(folder / name / "tiny") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-5)
    assert (two["examples"], two["tokens"]) == (one["examples"], one["tokens"])
    assert two["fingerprints"] == one["fingerprints"]
    assert two["device"]["count"] == one["device"]["count"] == 2


def test_each_process_packs_its_own_rows_of_the_batch(folder, ended):
    def ids(name: str) -> dict[int, list[int]]:
        lines = (folder / f"{name}.ids").read_text().splitlines()
        return dict(json.loads(line) for line in lines)

    whole, first, second = ids("one.0"), ids("two.0"), ids("two.1")
    assert len(whole) == 24
    assert all(first[step] and second[step] for step in whole)
    assert {step: first[step] + second[step] for step in whole} == whole


def test_only_the_first_process_writes_and_speaks(folder, ended):
    first, second = ended["two"]["told"]
    assert "page: " in first
    assert [line for line in second.splitlines() if not line.startswith("[Gloo]")] == []
    run = folder / "two" / "tiny"
    assert (run / "report.html").is_file()
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert (run / "log.txt").read_text().count("opened") == 1


def test_a_stop_of_one_process_stops_all_at_the_same_step(folder, ended):
    assert ended["stopped"]["codes"] == [143, 143]
    said = {told.splitlines()[-1] for told in ended["stopped"]["told"]}
    assert len(said) == 1
    assert said.pop().endswith("told to stop, saved at step 4")
    assert "resumed at step 4" in (folder / "cut" / "tiny" / "log.txt").read_text()


@pytest.mark.parametrize("name", ["first_dies", "last_dies"])
def test_a_process_that_dies_ends_the_other_within_a_minute(ended, name):
    codes, dead = ended[name]["codes"], 0 if name == "first_dies" else 1
    assert codes[dead] == -9
    # JAX may end a process by itself where the first one has died.
    assert codes[1 - dead] == 5 or (name == "first_dies" and codes[1] == -6)
    assert ended[name]["apart"] < 60


def test_what_was_cut_off_goes_on_in_one_process_with_equal_losses(folder, ended):
    assert ended["one_goes_on"]["codes"] == [0]
    log = (folder / "cut" / "tiny" / "log.txt").read_text()
    # By two processes after the stop and after the first death, then by one.
    assert log.count("resumed at step") == 3
    assert_same_lines(folder / "one" / "tiny", folder / "cut" / "tiny")
    saved = [manifest.steps(folder / name / "tiny" / "checkpoints") for name in ("one", "cut")]
    assert saved[0] == saved[1]


def test_a_disk_that_one_process_finds_full_ends_both(ended):
    assert ended["full"]["codes"] == [5, 6]
    assert ended["full"]["apart"] < 60
    assert ended["full"]["told"][1].endswith("graft: process 1: the disk is full\n")


def test_what_no_process_can_train_ends_all_and_is_replayed_by_one(ended):
    assert ended["infinite"]["codes"] == [3, 3]
    assert ended["replayed"]["codes"] == [0]
    assert json.loads(ended["replayed"]["told"][0])["skipped"] == 1.0


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("other_seed", 2, "process 1 has another config than process 0: seed: 0 -> 1"),
        ("no_data", 7, "absent.tsv: no such file"),
    ],
)
def test_what_is_wrong_in_one_process_is_told_in_all_before_compiling(ended, name, code, reason):
    assert ended[name]["codes"] == [code, code]
    for told in ended[name]["told"]:
        assert told.endswith(f"{reason}\n")
        assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--processes", "2"], "--coordinator and --process must be given too"),
        (["--coordinator", "here:1", "--process", "0"], "--processes must be given too"),
        (["--coordinator", "here", "--processes", "2", "--process", "0"], "is not HOST:PORT"),
        (["--coordinator", "here:1", "--processes", "2", "--process", "2"], "not one of 0 to 1"),
    ],
)
def test_processes_that_cannot_meet_are_told_why(bare, capsys, arguments, reason):
    assert launch.main(["train", "absent.py", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_the_environment_says_what_the_command_line_leaves_open(bare, monkeypatch):
    monkeypatch.setenv("GRAFT_PROCESSES", "two")
    with pytest.raises(ConfigError, match="GRAFT_PROCESSES is 'two'"), hosts.joined():
        pass
    monkeypatch.setenv("GRAFT_PROCESSES", "1")
    with hosts.joined():
        assert hosts.alone()
    monkeypatch.setenv("GRAFT_PROCESSES", "2")
    with pytest.raises(ConfigError, match="--process must"), hosts.joined("here:1"):
        pass


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_launchers_are_known_by_what_they_set(bare, monkeypatch, variables, several):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.launched() is several
