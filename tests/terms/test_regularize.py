"""An objective keeps the laws of a task: packing, micro-batches, meshes; bad ones are refused."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from objectives import CLASSIFY, KEY, PACKED, PADDED, batch_of, start
from workshop import loss_curve

from research import config as configs
from research import initialize
from research.adapt import Full
from research.errors import ConfigError
from research.optim import Optim
from research.ramps import Constant, Dann, Warm
from research.regularize import Objective
from research.sharding import MeshSpec
from research.step import init_state, train_step
from research.tasks.regress import Regress
from research.terms.adversarial import Fgm, FreeLB, Vat
from research.terms.compare import Mixup, SimCSE, SupCon
from research.terms.consistency import PseudoLabel, RDrop, Uda
from research.terms.domains import Coral, DomainAdversarial, Mmd

SPLIT = RDrop() + FreeLB(steps=2) + Vat() + PseudoLabel(threshold=0.4) + Uda(threshold=0.4)
SPLIT = SPLIT + DomainAdversarial(hidden=5, ramp=Warm(share=0.5))
WHOLE = 0.1 * SupCon() + SimCSE() + Mixup() + Coral() + Mmd()
SOME = 0.5 * SupCon() + Fgm() + Mixup() + Mmd() + DomainAdversarial(hidden=5)
ALL = Objective(task=CLASSIFY, terms=SPLIT + WHOLE)
OPTIM = Optim(learning_rate=1e-2, warmup=0)


def compiled(task: nn.Module) -> Any:
    def loss(params: Any, batch: Any) -> Any:
        means: Any = task.apply({"params": params}, batch, train=True, rngs={"noise": KEY})
        return means["loss"].value, means

    return jax.jit(jax.grad(loss, has_aux=True))


def assert_close(a: Any, b: Any, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


def test_packed_equals_padded_with_dropout_on() -> None:
    program, params = compiled(ALL), start(ALL)
    (a, packed), (b, padded) = program(params, PACKED), program(params, PADDED)
    assert_close(a, b, 1e-5)
    assert set(packed) >= {part.name for part in ALL.terms.parts()} | {"loss", "task_loss"}
    for name, mean in packed.items():
        np.testing.assert_allclose(mean.value, padded[name].value, rtol=2e-5, atol=1e-6)
    # The loss is what its parts say it is.
    whole = packed["task_loss"].value + sum(
        part.weight * float(packed[part.name].value) for part in ALL.terms.parts()
    )
    np.testing.assert_allclose(packed["loss"].value, whole, rtol=1e-5)


def test_weight_zero_is_the_plain_task_with_parameters_where_they_were() -> None:
    objective = Objective(task=CLASSIFY, terms=0.0 * SOME)
    params, plain = start(objective), start(CLASSIFY)
    flat, own = flatten_dict(params, sep="/"), flatten_dict(plain, sep="/")
    assert all(path in flat for path in own)
    assert {path.split("/")[0] for path in flat.keys() - own.keys()} == {"domain_adversarial"}
    for path, leaf in own.items():
        np.testing.assert_array_equal(flat[path], leaf)
    slopes, means = compiled(objective)(params, PACKED)
    expected, bare = compiled(CLASSIFY)(plain, PACKED)
    np.testing.assert_allclose(means["loss"].value, bare["loss"].value, rtol=1e-6)
    assert_close({name: slopes[name] for name in expected}, expected, 1e-6)
    assert not any(np.any(x) for x in jax.tree.leaves(slopes["domain_adversarial"]))


def test_microbatches_do_not_change_a_ragged_step() -> None:
    domain = DomainAdversarial(hidden=5, ramp=Warm(share=0.5))
    task = Objective(task=CLASSIFY, terms=RDrop() + PseudoLabel(threshold=0.4) + domain)
    params = start(task)
    rules = Full().rules(flatten_dict(params, sep="/"))
    tx = OPTIM.build(10, rules)
    state = init_state(params, tx, rules).replace(step=np.int32(2))
    found = []
    for parts in (1, 2):
        step = functools.partial(train_step, task, tx, rules, microbatches=parts, steps=10)
        found.append(jax.jit(step)(state, PACKED, jax.random.key(7)))
    (one, means), (two, sums) = found
    for name, mean in means.items():
        np.testing.assert_allclose(mean.value, sums[name].value, rtol=1e-4, err_msg=name)
    assert_close(one.opt_state.mu, two.opt_state.mu, 1e-5)
    # Step 2 of 10: two fifths of the way up a ramp over half of the run.
    parts = task.terms.parts()
    factors = {"domain_adversarial": 0.4}
    whole = means["task_loss"].value + sum(
        factors.get(part.name, 1.0) * float(means[part.name].value) for part in parts
    )
    np.testing.assert_allclose(means["loss"].value, whole, rtol=1e-5)


@pytest.mark.parametrize("axes", [(2, 2, 2)])
def test_meshes_do_not_change_the_loss_curve(axes: tuple[int, int, int]) -> None:
    task = Objective(task=CLASSIFY, terms=SOME)
    batch = batch_of([[5, 4, 3], [6, 2], [9], [3, 3], [2], [4, 4], [7], [2, 2]])

    def curve(spec: MeshSpec, devices: int) -> list[float]:
        return loss_curve(task, OPTIM, batch, start(task), spec, devices, steps=2)

    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py simulates them")
    data, fsdp, tensor = axes
    many = curve(MeshSpec(data=data, fsdp=fsdp, tensor=tensor), 8)
    np.testing.assert_allclose(many, curve(MeshSpec(), 1), atol=1e-5)


@pytest.mark.parametrize("term", [RDrop(), SupCon(), SimCSE(), Vat(epsilon=1.0), Coral(), Mmd()],
                         ids=lambda term: term.name)  # fmt: skip
def test_a_term_alone_lowers_itself(term: Any) -> None:
    task = Objective(task=CLASSIFY, terms=term)

    @jax.jit
    def step(params: Any) -> Any:
        def loss(params: Any) -> Any:
            means: Any = task.apply({"params": params}, PACKED, train=True, rngs={"noise": KEY})
            return means[term.name].value

        value, slopes = jax.value_and_grad(loss)(params)
        size = np.float32(0.05) / jax.numpy.sqrt(sum((x**2).sum() for x in jax.tree.leaves(slopes)))
        return value, jax.tree.map(lambda x, g: x - size * g, params, slopes)

    values, params = [], start(task)
    for _ in range(8):
        value, params = step(params)
        values.append(float(value))
    assert min(values[1:]) < values[0]


def test_gradients_are_reported_with_their_angle_to_the_task() -> None:
    task = Objective(task=CLASSIFY, terms=0.5 * Mmd(), report_gradients=True)
    params = start(task)
    means = compiled(task)(params, PACKED)[1]

    def by(name: str) -> Any:
        def loss(params: Any) -> Any:
            found: Any = Objective(task=CLASSIFY, terms=task.terms).apply(
                {"params": params}, PACKED, train=True, rngs={"noise": KEY}
            )
            return found[name].value

        return np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(jax.jit(jax.grad(loss))(params))]
        )

    main, own = by("task_loss"), by("mmd")
    norm = np.linalg.norm(own)
    assert float(means["mmd_gradient"].value) == pytest.approx(norm, rel=1e-4)
    cosine = main @ own / np.linalg.norm(main) / norm
    assert float(means["mmd_cosine"].value) == pytest.approx(cosine, abs=1e-4)


def refused(terms: Any, match: str, task: nn.Module = CLASSIFY, batch: Any = PACKED) -> None:
    with pytest.raises(ConfigError, match=match):
        jax.eval_shape(lambda: initialize.initialize(Objective(task=task, terms=terms), batch, KEY))


def test_what_cannot_be_meant_is_refused_by_name() -> None:
    bare = {name: x for name, x in PACKED.items() if name != "domains"}
    number = Regress(backbone=CLASSIFY.backbone)
    refused(Coral() + RDrop(), "Coral needs a domain for every example", batch=bare)
    refused(RDrop(), "RDrop needs class probabilities, which Regress", task=number)
    refused(SupCon(), "SupCon needs labels, which Regress", task=number)
    refused(RDrop() + Fgm() + 0.5 * RDrop(), "RDrop is there twice")
    refused(-1.0 * Fgm(), "Fgm.weight is -1.0, below 0")
    refused(Fgm(epsilon=0.0), "Fgm.epsilon is 0.0, not above 0")
    assert Objective(task=CLASSIFY, terms=SOME).whole_batch == "SupCon, Mixup, Mmd"
    assert not Objective(task=CLASSIFY, terms=SPLIT).whole_batch


def test_ramps_and_algebra_are_what_they_say() -> None:
    half = np.float32(0.25)
    assert float(Constant()(half)) == 1.0
    assert float(Warm(share=0.5)(half)) == 0.5 and float(Warm(share=0.1)(half)) == 1.0
    assert float(Dann()(np.float32(0.0))) == 0.0
    assert float(Dann()(half)) == pytest.approx(2 / (1 + np.exp(-2.5)) - 1)
    terms = 0.5 * (RDrop(weight=2.0) + 0.1 * SupCon())
    assert [part.weight for part in terms.parts()] == [1.0, pytest.approx(0.05)]


def test_an_objective_is_written_down_and_overridden() -> None:
    objective = Objective(task=CLASSIFY, terms=RDrop() + 0.1 * SupCon())
    assert configs.build(configs.describe(objective)) == objective
    flags = ["--terms.right.weight", "0.3", "--terms.left.ramp", "dann", "--task.pool", "mean"]
    changed = configs.override(objective, flags, "test")
    assert [part.weight for part in changed.terms.parts()] == [1.0, 0.3]
    assert changed.terms.left.ramp == Dann() and changed.task.pool == "mean"
