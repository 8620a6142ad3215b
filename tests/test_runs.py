"""Laws of a run directory: one writer, whole files, metrics that a resume cannot tell apart."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from research import runs
from research.errors import ConfigError, LockedError, StorageError
from research.runs import RunDirectory, StopSignal

ROOT = Path(__file__).parent.parent

HOLD = """
import sys, time
from research.runs import RunDirectory
with RunDirectory.open(sys.argv[1]):
    print("held", flush=True)
    {then}
    time.sleep(60)
"""


def hold(path: Path, then: str = "") -> subprocess.Popen[str]:
    """A process that holds the run at `path`."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then=then), str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


def test_second_writer_is_refused_by_name_and_a_killed_one_blocks_nobody(tmp_path):
    holder = hold(tmp_path / "run")
    try:
        start = time.monotonic()
        with pytest.raises(LockedError, match=rf"process {holder.pid} on "):
            RunDirectory.open(tmp_path / "run").__enter__()
        assert time.monotonic() - start < 2
    finally:
        end(holder)
    with RunDirectory.open(tmp_path / "run") as run:
        assert f"process {os.getpid()} on " in (run.path / "lock").read_text()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    # The child speaks, so it is past the hook that runs in it at its birth.
    fork = "import os; os.fork() or print(os.getpid(), flush=True); time.sleep(60)"
    holder = hold(tmp_path, fork)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        os.kill(child, 0)
        with RunDirectory.open(tmp_path) as run:
            assert run.path == tmp_path
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_of_racing_writers_exactly_one_wins(tmp_path):
    code = HOLD.format(then="sys.stdin.read(); sys.exit()")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    deadline = time.monotonic() + 20
    while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    answers = [racer.communicate() for racer in racers]
    assert sorted(out for out, _ in answers) == ["", "", "", "held\n"]
    assert sum("LockedError" in err for _, err in answers) == 3


def test_the_lock_is_free_after_the_block(tmp_path):
    for _ in range(3):
        with RunDirectory.open(tmp_path / "deep" / "run") as run:
            assert run.config is None
            assert run.result() is None
            with pytest.raises(LockedError), RunDirectory.open(run.path):
                pass


def test_what_is_written_is_read_back(tmp_path):
    config = {"name": "a\u2028b", "optim": {"rate": 1e-3, "betas": [0.9, 0.999]}, "none": None}
    result = {"name": "inf", "metrics": {"dev/loss": math.inf, "dev/nan": math.nan, "n": 1.5}}
    with RunDirectory.open(tmp_path) as run:
        run.write_config(config)
        run.write_result(result)
        assert run.config == runs.read_config(tmp_path) == config
        found = runs.read_result(tmp_path)
        assert found is not None
        assert found["name"] == "inf"
        assert found["metrics"]["dev/loss"] == math.inf
        assert math.isnan(found["metrics"]["dev/nan"])
    strict = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert strict["metrics"]["dev/nan"] == "nan"
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"lock", "config.json", "result.json"}


def write_lines(run: RunDirectory, steps: range) -> None:
    for step in steps:
        values = {"loss": 1 / step if step % 3 else math.nan, "k\u2028": -math.inf}
        run.append_metrics(step, "train", values, time=step / 8)
        if step % 2 == 0:
            run.append_metrics(step, "dev", {"accuracy": step / 100}, time=step / 8)


def test_metrics_come_back_with_non_finite_values(tmp_path):
    with RunDirectory.open(tmp_path) as run:
        run.append_metrics(3, "nan", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 2}, 0.5)
        (row,) = run.read_metrics()
        assert math.isnan(row.pop("a"))
        assert row == {
            "step": 3,
            "split": "nan",
            "time": 0.5,
            "b": math.inf,
            "c": -math.inf,
            "d": 2,
        }
        with pytest.raises(ValueError, match="'split'"):
            run.append_metrics(3, "train", {"split": 1.0}, time=0.5)


def test_a_resumed_metrics_file_equals_the_uninterrupted_one_wherever_it_was_cut(tmp_path):
    with RunDirectory.open(tmp_path / "whole") as run:
        write_lines(run, range(1, 9))
        whole = (run.path / "metrics.jsonl").read_bytes()
    for saved in (0, 3, 4):
        with RunDirectory.open(tmp_path / str(saved)) as run:
            write_lines(run, range(1, saved + 1))
            least = len((run.path / "metrics.jsonl").read_bytes()) if saved else 0
            for cut in range(max(least - 1, 0), len(whole), 7):
                (run.path / "metrics.jsonl").write_bytes(whole[:cut])
                run.truncate_metrics(saved)
                write_lines(run, range(saved + 1, 9))
                assert (run.path / "metrics.jsonl").read_bytes() == whole, (saved, cut)


@pytest.mark.parametrize("line", ["{", '{"step":1,"step":2}', '{"step":1,"x":NaN}', "[1]", "{}"])
def test_a_damaged_line_inside_the_metrics_is_named(tmp_path, line):
    with RunDirectory.open(tmp_path) as run:
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
        with pytest.raises(StorageError, match=r"metrics\.jsonl:2: "):
            run.truncate_metrics(2)


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    for read in (runs.read_config, runs.read_result, runs.read_metrics):
        with pytest.raises(ConfigError, match=r"is not a run: config\.json is missing"):
            read(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StorageError, match=r"config\.json"):
        runs.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert runs.read_result(tmp_path) is None
    assert runs.read_metrics(tmp_path) == []


def test_the_log_has_a_time_on_each_entry(tmp_path):
    with RunDirectory.open(tmp_path) as run:
        run.log("first")
        run.log("second")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["first", "second"]
    assert all(time.strptime(line.split(" ")[0], "%Y-%m-%dT%H:%M:%SZ") for line in lines)


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="taken"):
        RunDirectory.open(tmp_path / "taken" / "run").__enter__()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with RunDirectory.open(tmp_path / "run") as run:
        run.write_config({"a": 1})
        run.append_metrics(1, "train", {"loss": 1.0}, time=0.0)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
            with pytest.raises(StorageError, match=r"config\.json: File too large"):
                run.write_config({"a": "b" * 100})
            with pytest.raises(StorageError, match=r"metrics\.jsonl: "):
                run.append_metrics(2, "train", {"loss": 1.0}, time=0.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert run.config == {"a": 1}
        assert [row["step"] for row in run.read_metrics()] == [1]
        assert not list(run.path.glob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_the_old_handlers_return(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_interrupt_ends_at_once_but_not_a_second_termination():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_no_handler_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_the_environment_is_json_and_names_what_figures_depend_on():
    found = runs.environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) >= {"python", "jax", "jaxlib", "flax", "optax", "numpy", "graft"}
    assert found["device"]["count"] >= 1
    assert found["cpu"]["cores"] == os.cpu_count()


def test_the_code_fingerprint_changes_with_names_and_bytes_of_python_files_alone(tmp_path):
    def fingerprint_of(files: dict[str, str]) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return runs.code_fingerprint(root)

    first = fingerprint_of({"a.py": "x", "b/c.py": "y"})
    assert fingerprint_of({"b/c.py": "y", "a.py": "x", "d.txt": "z"}) == first
    others = [{"a.py": "xy", "b/c.py": ""}, {"a.py": "x", "b/d.py": "y"}, {"a.py": "x"}]
    assert len({first, *map(fingerprint_of, others)}) == 4
    assert runs.code_fingerprint() == runs.code_fingerprint(ROOT / "research")


def test_peak_memory_counts_a_buffer_that_was_filled():
    code = """
from research.runs import peak_memory_mb
before = peak_memory_mb()
buffer = bytearray(b"x") * 200_000_000
print(before, peak_memory_mb())
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after = map(float, answer.stdout.split())
    assert 1 < before < 190
    assert 200 < after < before + 210
