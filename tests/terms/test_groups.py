"""Group DRO equals the paper's algorithm in numpy over several steps, in any layout."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict
from objectives import CLASSIFY, PACKED, PADDED, batch_of, start

from research import initialize, replicate, train
from research.adapt import Full
from research.checkpoint import load_tree
from research.data.domains import Domains
from research.errors import ConfigError, DataError
from research.optim import Optim
from research.ramps import Constant, Warm
from research.regularize import Objective
from research.sharding import MeshSpec
from research.step import init_state, train_step
from research.tasks.regress import Regress
from research.terms.groups import GroupDRO

DRO = GroupDRO(groups=("x", "y"), pace=0.5)
ALONE = Objective(task=CLASSIFY, terms=DRO, task_weight=0.0)
KEY = jax.random.key(7)
OPTIM = Optim(learning_rate=1e-2, warmup=0, clip=None)


def grouped(batch: dict[str, Any]) -> dict[str, Any]:
    """A group that is not the label: the parity of an example's length."""
    return batch | {"groups": batch["lengths"] % 2}


@functools.cache
def program(task: Any, microbatches: int = 1) -> Any:
    params = jax.device_get(initialize.initialize(task, grouped(PACKED), jax.random.key(0)))
    params |= {"head": start(CLASSIFY)["head"]}
    rules = Full().rules(flatten_dict(params, sep="/"))
    tx = OPTIM.build(10, rules)

    def step(state: Any, batch: Any) -> Any:
        return train_step(task, tx, rules, state, batch, KEY, microbatches=microbatches, steps=10)

    return init_state(params, tx, rules), jax.jit(step)


@functools.cache
def values_of() -> Any:
    """Every example's loss at some parameters under the noise of a step, and sums of their slopes
    by the bias of the head, weighed by what each counts."""

    def logits(bias: Any, params: Any, step: Any) -> Any:
        params = {name: params[name] for name in ("backbone", "head")}
        params["head"] = params["head"] | {"bias": bias}
        rngs = {"noise": jax.random.fold_in(KEY, step)}
        found = CLASSIFY.apply(
            {"params": params}, PACKED, train=True, rngs=rngs, method="noisy_logits"
        )
        at = PACKED["labels"][..., None]
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(found), at, axis=-1)[..., 0]

    def both(params: Any, step: Any) -> Any:
        bias = params["head"]["bias"]
        return logits(bias, params, step), jax.jacobian(logits)(bias, params, step)

    return jax.jit(both)


def told(params: Any, step: int, shares: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Shares after a step, the loss they give, and its gradient by the head's bias: numpy."""
    losses, slopes = (np.asarray(x, np.float64) for x in values_of()(params, step))
    labelled = PACKED["weights"] > 0
    group = 2 * PACKED["labels"] + PACKED["lengths"] % 2
    means, by_bias = np.zeros(6), np.zeros((6, 3))
    for g in set(group[labelled]):
        means[g] = losses[labelled & (group == g)].mean()
        by_bias[g] = slopes[labelled & (group == g)].mean(0)
    grown = shares * np.exp(0.5 * means)
    shares = grown / grown.sum()
    return shares, float(shares @ means), shares @ by_bias


def test_several_steps_are_those_of_the_paper() -> None:
    state, step = program(ALONE)
    shares = np.full(6, 1 / 6)
    for number in range(3):
        before = state
        state, means = step(state, grouped(PACKED))
        shares, loss, slope = told(before.params, number, shares)
        np.testing.assert_allclose(
            np.exp(state.params["group_dro"]["log_shares"]), shares, rtol=1e-5
        )
        np.testing.assert_allclose(means["loss"].value, loss, rtol=1e-5)
        np.testing.assert_allclose(means["group_dro"].value, loss, rtol=1e-5)
        if number == 0:
            found = np.asarray(state.opt_state.mu["head/bias"]) / 0.1
            np.testing.assert_allclose(found, slope, atol=1e-5)
    assert shares.max() > 1.3 / 6
    assert "group_dro/log_shares" not in state.opt_state.mu
    assert "carried" not in means
    assert (
        float(means["group_dro_0_a_x"].count)
        == ((PACKED["weights"] > 0) & (PACKED["labels"] == 0) & (PACKED["lengths"] % 2 == 0)).sum()
    )


@pytest.mark.parametrize("layout", ["padded", "pieces"])
def test_neither_layout_nor_microbatches_change_a_step(layout: str) -> None:
    state, step = program(ALONE)
    one, means = step(state, grouped(PACKED))
    batch = grouped(PADDED if layout == "padded" else PACKED)
    other, sums = program(ALONE, 2 if layout == "pieces" else 1)[1](state, batch)
    for name in ("loss", "grad_norm", "group_dro"):
        np.testing.assert_allclose(sums[name].value, means[name].value, rtol=1e-4)
    shares = [found.params["group_dro"]["log_shares"] for found in (one, other)]
    np.testing.assert_allclose(*shares, rtol=1e-5)
    for path, leaf in one.opt_state.mu.items():
        np.testing.assert_allclose(other.opt_state.mu[path], leaf, atol=1e-5, err_msg=path)


def test_meshes_do_not_change_the_loss_curve() -> None:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py simulates them")
    batch = grouped(batch_of([[5, 4, 3], [6, 2], [9], [3, 3], [2], [4, 4], [7], [2, 2]]))
    params = jax.device_get(initialize.initialize(ALONE, batch, jax.random.key(0)))

    def curve(spec: MeshSpec, devices: int) -> list[float]:
        return workshop.loss_curve(ALONE, OPTIM, batch, params, spec, devices, steps=3)

    many = curve(MeshSpec(data=2, fsdp=2, tensor=2), 8)
    np.testing.assert_allclose(many, curve(MeshSpec(), 1), atol=1e-5)


def test_a_ramp_scales_the_loss_and_not_the_shares() -> None:
    for ramp in (Constant(), Warm(share=0.5)):
        term = GroupDRO(by=("label",), pace=0.5, ramp=ramp)
        found: Any = Objective(task=CLASSIFY, terms=term).apply(
            {"params": start(CLASSIFY) | {"group_dro": {"log_shares": np.log([0.2, 0.3, 0.5])}}},
            PACKED | {"progress": np.full((len(PACKED["ids"]), 1), 0.25, np.float32)},
            train=True,
            rngs={"noise": KEY},
        )
        factor = 1.0 if ramp == Constant() else 0.5
        expected = found["task_loss"].value + factor * found["group_dro"].value
        np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-5)
        np.testing.assert_allclose(
            jax.device_get(found["loss"]).value, found["loss"].value, rtol=1e-6
        )
    assert list(found["carried"]) == ["group_dro/log_shares"]


def test_what_has_no_groups_is_refused() -> None:
    def refused(term: Any, match: str, task: Any = CLASSIFY, batch: Any = PACKED) -> None:
        with pytest.raises(ConfigError, match=match):
            objective = Objective(task=task, terms=term, task_weight=0.0)
            jax.eval_shape(lambda: initialize.initialize(objective, batch, KEY))

    refused(DRO, r"GroupDRO needs a group for every example \(data.group\), which Classify")
    one = GroupDRO(by=("group",), groups=("x",))
    refused(one, "by group finds fewer than two groups", batch=grouped(PACKED))
    refused(GroupDRO(by=()), r"GroupDRO.by is \(\), not label, group or both")
    refused(GroupDRO(by=("label",), pace=0.0), "GroupDRO.pace is 0.0, not above 0")
    refused(DRO, "GroupDRO needs class probabilities", Regress(backbone=CLASSIFY.backbone))
    with pytest.raises(ConfigError, match="task_weight is -1"):
        bad = ALONE.clone(task_weight=-1.0)
        jax.eval_shape(lambda: initialize.initialize(bad, grouped(PACKED), KEY))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workshop's rows, with a column that is empty in no row."""
    path = tmp_path_factory.mktemp("groups")
    workshop.write_rows(path)
    lines = (path / "train.tsv").read_text().splitlines()
    told = [f"{line}\t{'even' if i % 2 else 'odd'}" for i, line in enumerate(lines[1:])]
    (path / "train.tsv").write_text("\n".join([f"{lines[0]}\tsite", *told]) + "\n")
    (path / "bad.tsv").write_text("sentence\tlabel\tsite\niron\tmetal\tx\nplum\tfruit\t\n")
    return path


def config(folder: Path, **changes: Any) -> Any:
    plain = workshop.config(folder)
    kept = {name: getattr(plain.data, name) for name in plain.data.__dataclass_fields__}
    data = type(plain.data)(**(kept | {"group": "site"} | changes.pop("data", {})))
    task = Objective(task=plain.task, terms=GroupDRO(pace=0.5), task_weight=0.0)
    return workshop.config(folder, task=task, data=data, steps=4, eval_every=4, **changes)


def test_groups_come_from_the_column_that_the_data_name(folder: Path) -> None:
    resolved = initialize.resolve(config(folder))
    assert resolved.task.terms.groups == ("even", "odd")
    batches = resolved.data.open("train", 8, steps=1)
    batch = batches.batch(0)
    taken = batch["ids"] >= 0
    assert batch["groups"][taken].tolist() == (1 - batch["ids"][taken] % 2).tolist()
    with pytest.raises(DataError, match=r"bad\.tsv:3: 'site' is empty"):
        initialize.resolve(config(folder, data={"train": str(folder / "bad.tsv")}))
    with pytest.raises(ConfigError, match=r"data\.group is set, which data of two domains"):
        Domains(group="site", target="x").check()


def test_replicates_each_keep_their_shares(folder: Path, tmp_path: Path) -> None:
    pair = [config(folder, name=f"seed{seed}", seed=seed) for seed in (0, 1)]
    replicate.replicate(pair, tmp_path / "together")
    alone = train.run(pair[1], tmp_path / "alone").path
    found = [
        load_tree(path / "checkpoints", "params/group_dro", 4)["log_shares"]
        for path in (tmp_path / "together" / "seed0", tmp_path / "together" / "seed1", alone)
    ]
    np.testing.assert_allclose(found[1], found[2], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_allclose(np.exp(found[0]).sum(), 1.0, rtol=1e-5)
