"""SeenWords: what the whole table's training gives, at the cost of the words that there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict, unflatten_dict
from test_step import MASKED, PACKED, SPEC, start

from research import audit, initialize, replay, runs, sharding, train
from research.adapt import Strategy
from research.checkpoint import load_tree
from research.data.tokenize import Encoded
from research.errors import ConfigError, NonFiniteError
from research.models.transformer import Transformer
from research.optim import Optim
from research.optimizers import Lion
from research.replicate import replicate
from research.sharding import MeshSpec
from research.step import TrainState, abstract_state, init_state, make_step, train_step
from research.strategies import DecayToInit, Frozen, Full, LayerDecay, LoRA, SeenWords
from research.strategies.words import TABLE
from research.tasks.classify import Classify

TASK = Classify(backbone=Transformer(SPEC), labels=("a", "b", "c"))
TEXT = np.unique(PACKED["tokens"][PACKED["segments"] > 0])
# Those of the texts, and one that no text has.
SPARE = np.setdiff1d(np.arange(SPEC.vocab_size), TEXT)[3]
WORDS = np.union1d(TEXT, SPARE).astype(np.int32)
OTHERS = np.setdiff1d(np.arange(SPEC.vocab_size), WORDS)
OPTIM = Optim(learning_rate=1e-2, warmup=0, weight_decay=0.0)


def train_some(
    adapt: Strategy, optim: Optim, task: Any = TASK, steps: int = 4, **options: Any
) -> TrainState:
    params = flatten_dict(start(task), sep="/")
    grown = params | adapt.growth(params, jax.random.key(1))
    rules = adapt.rules(grown)
    tx = optim.build(10, rules)
    words = WORDS if rules[TABLE].seen else None
    state = init_state(unflatten_dict(grown, sep="/"), tx, rules, optim.ema, words)
    options |= {"ema": optim.ema, "sharpness": optim.sharpness}
    step = jax.jit(
        lambda state: train_step(task, tx, rules, state, PACKED, jax.random.key(7), **options)[0]
    )
    for _ in range(steps):
        state = step(state)
    return state


@pytest.mark.parametrize(
    ("adapt", "optim", "microbatches"),
    [
        (Full(), OPTIM, 1),
        (Full(), OPTIM, 2),
        (LayerDecay(0.5) | DecayToInit(0.1), OPTIM, 1),
        (Full(), dataclasses.replace(OPTIM, sharpness=0.05, ema=0.9), 1),
        (Full(), dataclasses.replace(OPTIM, rule=Lion(), learning_rate=1e-3), 1),
    ],
    ids=["plain", "micro-batches", "decay", "sharp and averaged", "lion"],
)
def test_it_is_training_of_the_whole_table(
    adapt: Strategy, optim: Optim, microbatches: int
) -> None:
    all_of_it = train_some(adapt, optim, microbatches=microbatches)
    seen = train_some(adapt | SeenWords(), optim, microbatches=microbatches)
    for name in ("params", "result"):
        expected, found = (flatten_dict(getattr(x, name), sep="/") for x in (all_of_it, seen))
        assert expected.keys() == found.keys()
        for path in sorted(expected):
            # A bias of keys has no gradient but rounding, which an optimizer makes steps of.
            if not path.endswith("key/bias"):
                np.testing.assert_allclose(
                    found[path], expected[path], rtol=0, atol=2e-5, err_msg=path
                )
    before, after = (flatten_dict(p, sep="/")[TABLE] for p in (start(TASK), seen.params))
    np.testing.assert_array_equal(after[OTHERS], before[OTHERS])
    assert (np.abs(after[TEXT] - before[TEXT]).max(axis=1) > 1e-3).all()


def test_the_optimizer_holds_their_rows_alone_and_decay_spares_the_others() -> None:
    seen = train_some(SeenWords(), dataclasses.replace(OPTIM, weight_decay=0.5))
    assert seen.opt_state.mu[TABLE].shape == (len(WORDS), SPEC.width)
    before, after = (flatten_dict(p, sep="/")[TABLE] for p in (start(TASK), seen.params))
    np.testing.assert_array_equal(after[OTHERS], before[OTHERS])
    assert (np.abs(after[SPARE]) < np.abs(before[SPARE])).all()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("axes", [(4, 1, 1), (2, 2, 1), (2, 2, 2)])
def test_a_mesh_changes_nothing(axes: tuple[int, int, int]) -> None:
    def losses(spec: MeshSpec, devices: int) -> list[float]:
        mesh = spec.build(jax.devices()[:devices])
        with jax.set_mesh(mesh):
            params = initialize.abstract_params(TASK, PACKED, mesh, SeenWords())
            abstract, create = abstract_state(OPTIM, SeenWords(), 10, params, mesh, len(WORDS))
            where = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
            state = create(jax.device_put(start(TASK), where), words=WORDS)
            program, found = make_step(TASK, OPTIM, SeenWords(), 10, 1), []
            for _ in range(3):
                state, means = program(state, sharding.put(PACKED, mesh), jax.random.key(7))
                found.append(float(means["loss"].value))
        return found

    data, fsdp, tensor = axes
    spread = losses(MeshSpec(data=data, fsdp=fsdp, tensor=tensor), data * fsdp * tensor)
    np.testing.assert_allclose(spread, losses(MeshSpec(data=1), 1), rtol=1e-5)


def test_words_are_those_of_the_texts_and_few_numbers_of_them() -> None:
    rng = np.random.default_rng(0)
    sizes = set()
    for count in range(1, 200, 7):
        tokens = rng.integers(0, 500, count).astype(np.int32)
        none: Any = np.zeros(0)
        facts: Any = {"lost": 0, "truncated": 0, "blank": none, "fingerprint": ""}
        arrays = {"types": none, "words": none, "offsets": none, "row_of": none}
        found = Encoded(tokens=tokens, **arrays, **facts).seen
        assert found.dtype == np.int32 and (np.diff(found) > 0).all()
        assert np.isin(tokens, found).all() and found[-1] == tokens.max()
        assert len(found) < 1.26 * len(np.unique(tokens)) + 8
        sizes.add(len(found))
    assert len(sizes) < 20


def test_where_it_has_no_meaning_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="scored against it"):
        train_some(SeenWords(), OPTIM, MASKED)
    for other in (LoRA(rank=2), Frozen(("embed/table",))):
        for both in (other | SeenWords(), SeenWords() | other):
            with pytest.raises(ConfigError, match="does not learn"):
                train_some(both, OPTIM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words")
    workshop.write_rows(path)
    return path


def test_a_run_stops_and_goes_on_bit_for_bit_and_says_what_learns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workshop.config(folder, adapt=SeenWords(), evals=(), track=None)
    whole = train.run(config, folder / "whole")

    resumed = workshop.stopped_and_resumed(config, folder / "stopped", 5, monkeypatch)
    last, other = (load_tree(r.path / "checkpoints", "", 12) for r in (resumed, whole))
    jax.tree.map(np.testing.assert_array_equal, last, other)
    count, width = len(last["words"]), 16
    assert flatten_dict(last["opt_state"]["mu"], sep="/")[TABLE].shape == (count, width)
    assert count < 60
    with jax.set_mesh(config.mesh.build()):
        found = initialize.examine(config)
    told = {row["path"]: row for row in found["parameters"]}
    assert told[TABLE]["rows"] == count and audit.moving(told[TABLE]) == count * width
    assert found["summary"]["learning"] == found["summary"]["parameters"] - (80 - count) * width


def test_replicates_are_the_runs_alone_and_a_bad_step_is_taken_again(folder: Path) -> None:
    config = workshop.config(folder, adapt=SeenWords(), evals=(), track=None)
    configs = [dataclasses.replace(config, name=f"seed{n}", seed=n) for n in (0, 1)]
    together = replicate(configs, folder / "together")
    alone = train.run(configs[1], folder / "alone")
    ours, theirs = (
        [row["loss"] for row in runs.read_metrics(r.path)] for r in (together[1], alone)
    )
    assert len(ours) == 4 and ours == pytest.approx(theirs, rel=1e-5)

    hot = dataclasses.replace(
        config, name="hot", optim=dataclasses.replace(config.optim, learning_rate=1e30, clip=None)
    )
    with pytest.raises(NonFiniteError):
        train.run(hot, folder)
    assert not np.isfinite(replay.replay(folder / "hot")["loss"])
