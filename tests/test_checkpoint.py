"""Laws of checkpoints: whole or absent, bit-exact, found damaged before they are used."""

import random
import shutil
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import checkpoint, manifest
from research.checkpoint import Checkpoints, load_tree
from research.errors import ConfigError, StorageError

ROOT = Path(__file__).parent.parent


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


def make_state(seed: int = 0, width: int = 8) -> State:
    """A state with the kinds of leaves and containers that training has."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "backbone": {"embed": {"table": jax.random.normal(keys[0], (11, width))}},
        "head": {
            "kernel": jax.random.normal(keys[1], (width, 3), jnp.bfloat16),
            "bias": jnp.array([jnp.nan, -0.0, jnp.inf]),
            "lora_a": jnp.zeros((0, 4)),
        },
    }
    transform = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adamw(1e-3), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    )
    opt_state = (transform.init(params), None, {"mask": jnp.array([True, False])}, ())
    return State(step=jnp.int32(seed), params=params, opt_state=opt_state)


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_state_comes_back_bit_for_bit_with_its_meta(tmp_path):
    state = make_state(3)
    meta = {"score": float("nan"), "worst": float("-inf"), "names": ["a\u2028", {"b": [1, None]}]}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        checkpoints.save(3, state, meta)
        restored = checkpoints.restore(abstract(state))
    assert restored is not None
    assert restored.step == 3
    assert_same_bits(restored.state, state)
    assert np.isnan(restored.meta.pop("score"))
    assert restored.meta == {name: meta[name] for name in ("worst", "names")}
    assert all(leaf.sharding.device_set for leaf in jax.tree.leaves(restored.state))


def test_a_state_donated_while_it_is_saved_is_saved_as_it_was(tmp_path):
    state = {"a": jax.random.normal(jax.random.key(0), (1 << 20,)), "n": jnp.arange(7)}
    wanted = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = jax.block_until_ready(overwrite(state))
        restored = checkpoints.restore(abstract(state))
    assert restored is not None
    assert_same_bits(restored.state, wanted)


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = {"a": jnp.arange(3)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(7):
            checkpoints.save(step, state, {}, best=step in (1, 2), wait=True)
        assert manifest.steps(tmp_path) == [2, 5, 6]
        assert (checkpoints.best, checkpoint.best(tmp_path), manifest.latest(tmp_path)) == (2, 2, 6)
        checkpoints.save(6, state, {"seen": 1}, best=True)
        checkpoints.save(7, state, {}, wait=True)
        checkpoints.save(8, state, {}, wait=True)
    assert manifest.steps(tmp_path) == [6, 7, 8]
    assert manifest.verify(tmp_path / "6")["meta"] == {"seen": 1}
    assert checkpoint.best(tmp_path) == 6
    with pytest.raises(ConfigError, match="keep"):
        Checkpoints(tmp_path, keep=0)
    assert (checkpoint.best(tmp_path / "no"), manifest.latest(tmp_path / "no")) == (None, None)


def test_unfinished_folders_go_and_everything_else_stays(tmp_path):
    for name in ("7.saving", "7.saving.orbax-checkpoint-tmp", "5.deleting", "9.damaged", "mine"):
        (tmp_path / name / "inner").mkdir(parents=True)
    Checkpoints(tmp_path).close()
    assert {folder.name for folder in tmp_path.iterdir()} == {"9.damaged", "mine"}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with steps 1 and 2; each of 60 cases damages a copy."""
    directory = tmp_path_factory.mktemp("steps")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"step": step}, wait=True)
    return directory


def damage(folder: Path, rng: random.Random, kind: str) -> str:
    """Damage one file that has bytes (any file, where it is to be deleted)."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    file = rng.choice([file for file in files if kind == "delete" or file.stat().st_size])
    data = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncate":
        file.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    return file.name


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete", "empty"])
def test_any_damage_is_found_set_aside_and_the_older_step_taken(two_steps, tmp_path, kind):
    rng = random.Random(kind)
    template = abstract(make_state())
    for case in range(15):
        directory = tmp_path / str(case)
        shutil.copytree(two_steps, directory)
        name = damage(directory / "2", rng, kind)
        reports: list[str] = []
        with Checkpoints(directory, report=reports.append) as checkpoints:
            restored = checkpoints.restore(template)
        assert restored is not None
        assert (restored.step, restored.meta) == (1, {"step": 1}), name
        assert_same_bits(restored.state, make_state(1))
        assert (directory / "2.damaged").is_dir()
        (report,) = reports
        assert name in report


def test_every_flipped_bit_of_a_manifest_is_found(two_steps, tmp_path):
    shutil.copytree(two_steps / "1", tmp_path / "1")
    file = tmp_path / "1" / manifest.NAME
    data = file.read_bytes()
    for place in range(0, len(data), 11):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        file.write_bytes(changed)
        with pytest.raises(StorageError, match=r"MANIFEST\.json"):
            manifest.read(tmp_path / "1")
    file.write_bytes(data)
    assert manifest.read(tmp_path / "1")["step"] == 1


def test_steps_damaged_twice_are_both_kept_and_saved_anew(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    for aside in ("2.damaged", "2.damaged2"):
        (tmp_path / "2" / manifest.NAME).write_text("{}")
        with Checkpoints(tmp_path, report=lambda text: None) as checkpoints:
            checkpoints.save(2, make_state(2), {})
        assert (tmp_path / aside).is_dir()
        assert manifest.verify(tmp_path / "2")["step"] == 2


def test_another_tree_is_refused_with_the_differences(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
        head = {"bias": state.params["head"]["bias"][:2], "scale": jnp.ones(3)}
        other = state.replace(params={**state.params, "head": head})
        with pytest.raises(ConfigError) as refusal:
            checkpoints.restore(abstract(other))
        text = str(refusal.value)
        assert "not in the checkpoint: params/head/scale float32[3]" in text
        assert (
            "only in the checkpoint: params/head/kernel bfloat16[8, 3]; params/head/lora_a" in text
        )
        assert "params/head/bias float32[3] in the checkpoint, float32[2] expected" in text
        cast = abstract(state).replace(step=jax.ShapeDtypeStruct((), jnp.float32))
        with pytest.raises(ConfigError, match="step int32"):
            checkpoints.restore(cast)
        with pytest.raises(ConfigError, match="params/head/scale"):
            checkpoints.save(1, other, {})
        many = {f"p{n:02}": jnp.zeros(1) for n in range(9)}
        with pytest.raises(ConfigError, match=r"p04 float32\[1\]; and 4 more"):
            checkpoints.restore(abstract(many))
    assert manifest.steps(tmp_path) == [1]


@pytest.mark.parametrize("leaf", [3, "text", jax.random.key(0)], ids=["int", "str", "key"])
def test_what_is_no_array_is_refused_at_once(tmp_path, leaf):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="params/a cannot"):
        checkpoints.save(1, {"params": {"a": leaf}}, {})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="same path"):
        checkpoints.save(1, {"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}, {})


def test_a_part_of_a_tree_is_read_without_the_rest(two_steps, tmp_path):
    state = make_state(2)
    assert_same_bits(load_tree(two_steps), state.params)
    assert_same_bits(load_tree(two_steps, "params/head", 1), make_state(1).params["head"])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(load_tree(two_steps)))
    assert set(load_tree(two_steps, "")) == {"step", "params", "opt_state"}
    before = sorted(two_steps.rglob("*"))
    with pytest.raises(ConfigError, match="opt_state, params, step"):
        load_tree(two_steps, "param")
    with pytest.raises(ConfigError, match="no checkpoint of step 9"):
        load_tree(two_steps, step=9)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        load_tree(tmp_path / "absent")
    assert sorted(two_steps.rglob("*")) == before


def test_a_reader_passes_over_damage_and_renames_nothing(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "2", random.Random(0), "flip")
    assert_same_bits(load_tree(tmp_path), make_state(1).params)
    with pytest.raises(StorageError, match="damaged"):
        load_tree(tmp_path, step=2)
    assert manifest.steps(tmp_path) == [1, 2]
