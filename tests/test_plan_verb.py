"""`launch.py plan`: real configs without their data, refusals, and how programs are read."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

import launch
from research.errors import ConfigError
from research.models import products
from research.scale import topology
from research.scale.chips import CHIPS, parse
from research.scale.collectives import by_kind, collectives, group_size
from research.scale.flops import flops
from research.scale.hlo import Module

ROOT = Path(__file__).parents[1]
SPEC = "--task.backbone.spec"


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", ["bert_large", "gpt2_xl", "llama_8b"])
def test_a_config_is_planned_without_its_data(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shrunk = [f"{SPEC}.vocab-size", "64", f"{SPEC}.width", "32", f"{SPEC}.depth", "2"]
    shrunk += [f"{SPEC}.heads", "4", f"{SPEC}.hidden", "64", "--data.max-length", "16"]
    if name == "llama_8b":
        shrunk += [f"{SPEC}.kv-heads", "2"]
    file = tmp_path / "plan.json"
    arguments = ["plan", f"configs/{name}.py", "--topology", "cpu-8", "--to", str(file)]
    assert launch.main([*arguments, "--batch-size", "16", *shrunk]) == 0
    assert "fits" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["tokens"] == 16 * 16
    assert found["memory"]["fits"]
    assert found["memory"]["total"] >= found["memory"]["parameters"]
    assert found["seconds"]["overlapped"] <= found["seconds"]["serial"]
    assert [one["chips"] for one in found["growth"]] == [8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("wrong", ["v5e", "v9-4", "v5e-0", "v5e-x"])
def test_a_slice_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["plan", "configs/llama_8b.py", "--topology", wrong]) == 2
    assert "v5e-256" in capsys.readouterr().err


def test_without_libtpu_a_tpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="libtpu"):
        topology.devices(*parse("v5e-16"))


def test_slices_are_as_even_as_they_can_be() -> None:
    assert topology.sides(256, 2) == (16, 16)
    assert topology.sides(32, 3) == (2, 4, 4)
    assert topology.sides(8, 2) == (2, 4)
    assert CHIPS["v5p"].dimensions == 3


def test_operations_of_a_loop_count_by_its_turns() -> None:
    def function(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ y, None), x, None, length=5)[0]

    traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((4, 4), "float32"))
    assert flops(traced) == 5 * 2 * 4**3


def test_operations_that_no_result_needs_do_not_count() -> None:
    """Of a product whose gradients are written out, with a kernel that does not learn."""

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return products.rounded(products.rounded(x, kernel), kernel).sum()

    square = jax.ShapeDtypeStruct((64, 64), "float32")
    frozen, learned = (jax.make_jaxpr(jax.grad(loss, by))(square, square) for by in (0, (0, 1)))
    # Of the last product only its factor is asked for, not its value.
    assert flops(frozen) == 2 * 2 * 64**3
    assert flops(learned) == 5 * 2 * 64**3


def test_groups_are_read_in_every_spelling() -> None:
    assert group_size("replica_groups={{0,1,2},{3,4,5}}, x", 6) == 3
    assert group_size("replica_groups=[2,4]<=[8], x", 8) == 4
    assert group_size("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", 8) == 4
    assert group_size("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", 8) == 2
    assert group_size("replica_groups={}, x", 8) == 8


PROGRAM = """HloModule test, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %sum = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[8]{0}) tuple(%next, %sum)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (y: (s32[], f32[8]), k: s32[]) -> f32[2] {
  %y = (s32[], f32[8]{0}) parameter(0)
  %k = s32[] parameter(1)
  %loop = (s32[], f32[8]{0}) while(%y), condition=%condition, body=%body
  %z = f32[8]{0} get-tuple-element(%loop), index=1
  %whole = f32[8]{0} all-reduce(%z), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %mine = f32[2]{0} dynamic-slice(%whole, %k), dynamic_slice_sizes={2}
}
"""


def test_a_sum_of_which_each_keeps_a_slice_is_a_reduce_scatter_and_loops_count() -> None:
    found = by_kind(collectives(Module(PROGRAM), 4))
    assert found["all-reduce"] == 3 * 2 * 32 * 3 / 4
    assert found["reduce-scatter"] == 32 * 3 / 4
