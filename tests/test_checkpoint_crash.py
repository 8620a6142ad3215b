"""Checkpoints under full disks, kills in mid-save, unclean ends and other meshes."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import manifest
from research.checkpoint import Checkpoints
from research.errors import StorageError

ROOT = Path(__file__).parent.parent


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_failed_background_save_is_raised_once_and_the_older_step_stays(tmp_path):
    state = {"a": jax.random.normal(jax.random.key(0), (1 << 18,))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
            checkpoints.save(2, state, {})
            with pytest.raises(StorageError, match=r"/2: the checkpoint could not be written"):
                for _ in range(500):
                    checkpoints.poll()
                    time.sleep(0.02)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        checkpoints.poll()
        assert {folder.name for folder in tmp_path.iterdir()} == {"1"}
        restored = checkpoints.restore(abstract(state))
        assert restored is not None
        assert_same_bits(restored.state, state)
        checkpoints.save(2, state, {}, wait=True)
    assert manifest.steps(tmp_path) == [1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("wait", [True, False], ids=["waiting", "background"])
def test_a_full_disk_is_an_error_within_a_step_and_costs_only_that_step(small_disk, wait):
    states = [{"a": jax.random.normal(jax.random.key(n), (700_000,))} for n in range(3)]
    with pytest.raises(StorageError, match="could not be written"), Checkpoints(small_disk) as c:
        for step, state in enumerate(states):
            c.save(step, state, {}, wait=wait)
    with Checkpoints(small_disk) as checkpoints:
        restored = checkpoints.restore(abstract(states[0]))
        assert restored is not None
        assert_same_bits(restored.state, states[restored.step])
        assert manifest.steps(small_disk) == list(range(restored.step + 1))
        assert not list(small_disk.glob("*.*"))


def test_an_error_of_the_block_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch):
    def refuse(folder: Path, content: dict[str, Any]) -> None:
        raise OSError("no space")

    monkeypatch.setattr(manifest, "write", refuse)
    with pytest.raises(KeyError) as caught, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3)}, {})
        raise KeyError("first")
    assert caught.value.args == ("first",)
    assert "could not be written: OSError: no space" in caught.value.__notes__[0]
    with pytest.raises(StorageError, match="no space"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


SAVE_FOREVER = """
import sys, itertools, jax, jax.numpy as jnp
from research.checkpoint import Checkpoints
state = {"params": {"a": jnp.zeros(200_000), "b": jnp.zeros((3, 4))}, "step": jnp.int32(0)}
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in itertools.count(checkpoints.best or 0):
        filled = jax.tree.map(lambda leaf: leaf + step, state)
        checkpoints.save(step, filled, {"step": step}, best=step % 3 == 0)
        print(step, flush=True)
"""


def test_whatever_exists_after_a_kill_in_mid_save_verifies(tmp_path):
    rng = random.Random(0)
    template = {
        "params": {
            "a": jax.ShapeDtypeStruct((200_000,), jnp.float32),
            "b": jax.ShapeDtypeStruct((3, 4), jnp.float32),
        },
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    for _ in range(4):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        assert saver.stdout is not None
        for _ in range(4):
            begun = int(saver.stdout.readline())
        time.sleep(rng.random() / 5)
        saver.kill()
        saver.communicate()
        stored = manifest.steps(tmp_path)
        assert stored[-1] >= begun - 1
        assert all(manifest.verify(tmp_path / str(step))["step"] == step for step in stored)
        with Checkpoints(tmp_path, report=pytest.fail) as checkpoints:
            restored = checkpoints.restore(template)
        assert restored is not None
        assert restored.step == stored[-1] == restored.meta["step"]
        assert all((np.asarray(x) == restored.step).all() for x in jax.tree.leaves(restored.state))
        assert not list(tmp_path.glob("*.*"))


MESHES = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from research.checkpoint import Checkpoints
values = {"w": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32),
          "b": np.arange(8, dtype=np.float32), "step": np.int32(5)}
specs = {"w": PartitionSpec("data", None), "b": PartitionSpec("data"), "step": PartitionSpec()}
turned = specs | {"w": PartitionSpec(None, "data")}
def placed(count, specs):
    mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
for before in (1, 2, 4, 8):
    with Checkpoints(f"{sys.argv[1]}/{before}") as checkpoints:
        checkpoints.save(5, jax.device_put(values, placed(before, specs)), {})
        for after in (1, 2, 4, 8):
            if after == before:
                continue
            shardings = placed(after, turned)
            state = checkpoints.restore({name: jax.ShapeDtypeStruct(
                value.shape, value.dtype, sharding=shardings[name])
                for name, value in values.items()}).state
            for name, value in values.items():
                assert state[name].sharding == shardings[name], (before, after, name)
                assert np.asarray(state[name]).tobytes() == value.tobytes(), (before, after, name)
            print(before, after)
"""


def test_a_state_moves_between_meshes_of_1_2_4_and_8_devices(tmp_path):
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", MESHES, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | flags,
    )
    assert answer.returncode == 0, answer.stderr
    assert len(set(answer.stdout.splitlines())) == 12


END = """
import sys, jax.numpy as jnp
from research.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
{save}
"""
STATE = '{"a": jnp.zeros(5_000_000)}'
CLOSED = f"with checkpoints:\n    checkpoints.save(1, {STATE}, {{}})\n    raise SystemExit(3)"
UNCLOSED = f"checkpoints.save(1, {STATE}, {{}})\nraise SystemExit(3)"


@pytest.mark.parametrize("save", [CLOSED, UNCLOSED], ids=["closed", "unclosed"])
def test_a_process_that_ends_in_mid_save_ends_soon_and_leaves_a_whole_step_or_none(tmp_path, save):
    answer = subprocess.run(
        [sys.executable, "-c", END.format(save=save), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert answer.returncode == 3, answer.stderr
    stored = manifest.steps(tmp_path)
    assert stored == [1] if save == CLOSED else stored in ([], [1])
    assert all(manifest.verify(tmp_path / str(step))["step"] == step for step in stored)
