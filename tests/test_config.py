"""Configs: equal after a round trip, typed when overridden, refused by name when misspelt."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from research import config as configs
from research.adapt import Full, HeadOnly
from research.config import Config
from research.data.texts import Texts
from research.differences import brief, differences
from research.errors import ConfigError
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.strategies import LoRA
from research.tasks.classify import Classify

CONFIG = Config(
    name="tiny",
    task=Classify(backbone=Transformer(Spec(vocab_size=50, width=8)), labels=("a", "b")),
    data=Texts(train="t.tsv", dev="d.tsv", tokenizer="tok"),
    optim=Optim(learning_rate=1e-3),
    adapt=HeadOnly(),
    evals=(HeldOut(split="dev"), HeldOut(split="test")),
    steps=3,
)


def test_describe_and_build_are_inverse() -> None:
    assert configs.build(configs.describe(CONFIG)) == CONFIG


def test_fingerprint_changes_with_every_leaf() -> None:
    changes = {
        "optim.learning-rate": "0.5",
        "task.backbone.spec.width": "16",
        "data.max-length": "7",
        "seed": "1",
        "name": "other",
        "batch-size": "5",
    }
    prints = {configs.fingerprint(CONFIG)}
    for flag, value in changes.items():
        changed = configs.override(CONFIG, [f"--{flag}", value], "test")
        prints.add(configs.fingerprint(changed))
    assert len(prints) == len(changes) + 1


def test_overrides_have_the_types_of_their_fields() -> None:
    changed = configs.override(
        CONFIG,
        [
            "--optim.learning-rate",
            "3e-5",
            "--task.label-smoothing",
            "0.1",
            "--init-from",
            "dir",
            "--task.backbone.spec.causal",
            "True",
            "--mesh.fsdp",
            "2",
        ],
        "test",
    )
    assert changed.optim.learning_rate == 3e-5
    assert changed.task.label_smoothing == 0.1
    assert changed.task.backbone.spec.causal is True
    assert (changed.init_from, changed.mesh.fsdp) == ("dir", 2)
    assert dataclasses.replace(changed, optim=CONFIG.optim, init_from=None).evals == CONFIG.evals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optim.learning-rte", "1"], "did you mean --optim.learning-rate"),
        (["--optim.learning_rte=1"], "did you mean --optim.learning-rate"),
        (["--batchsize", "1"], "did you mean --batch-size"),
        (["--batch-size", "many"], "many"),
        (["--optim.schedule", "square"], "square"),
    ],
)
def test_a_bad_override_is_named(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        configs.override(CONFIG, arguments, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 1.0}, "either steps or epochs"),
        ({"steps": None}, "either steps or epochs"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"name": "../out"}, "name"),
        ({"name": "/abs"}, "name"),
        ({"patience": 2}, "patience needs track"),
    ],
)
def test_values_that_cannot_go_together(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(CONFIG, **change).check()


def test_steps_take_the_place_of_epochs_and_epochs_that_of_steps() -> None:
    stepped = configs.load_config("configs/smoke.py", ["--steps", "7"])
    assert (stepped.steps, stepped.epochs) == (7, None)
    epochs = configs.load_config("configs/bert_large.py", ["--epochs=2"])
    assert (epochs.steps, epochs.epochs) == (None, 2)
    both = configs.load_config("configs/smoke.py", ["--steps", "7", "--epochs", "1"])
    with pytest.raises(ConfigError, match="either steps or epochs"):
        both.check()


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        configs.load_config(tmp_path / "missing.py", [])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"has no function config\(\)"):
        configs.load_config(tmp_path / "empty.py", [])
    (tmp_path / "broken.py").write_text("def config(:\n")
    with pytest.raises(ConfigError, match=r"broken.py:1: invalid syntax"):
        configs.load_config(tmp_path / "broken.py", [])
    (tmp_path / "other.py").write_text("def config():\n    return 3\n")
    with pytest.raises(ConfigError, match="returned int, not a Config"):
        configs.load_config(tmp_path / "other.py", [])


@pytest.mark.parametrize("kind", ["os:system", "research.config:load", "../x:Y", "research.x:Y"])
def test_a_written_config_constructs_dataclasses_only(kind: str) -> None:
    with pytest.raises((ConfigError, ModuleNotFoundError)):
        configs.build({"type": kind})


def test_differences_name_the_field() -> None:
    other = dataclasses.replace(CONFIG, optim=Optim(learning_rate=2e-3))
    assert differences(configs.describe(CONFIG), configs.describe(other)) == [
        "optim.learning_rate: 0.001 -> 0.002"
    ]


def test_another_class_of_settings_is_one_difference_written_as_code() -> None:
    def said(old, new):
        return differences({"of": configs.describe(old)}, {"of": configs.describe(new)})

    assert said(Full(), LoRA(rank=4)) == ["of: Full() -> LoRA(rank=4)"]
    both = said(HeadOnly(), Full() | LoRA(rank=4))
    assert both == ["of: HeadOnly() -> Both(left=Full(), right=LoRA(rank=4))"]
    assert said(LoRA(rank=4), LoRA(rank=2)) == ["of.rank: 4 -> 2"]
    assert said(None, tuple("abcdefg")) == ["of: None -> [7 values]"]
    assert said(("a", 1.5), ()) == ["of: ['a', 1.5] -> []"]
    (long,) = said(tuple("abcdefg"), tuple("abcdefx"))
    assert "'f', 'g'] -> [" in long and long.endswith("'f', 'x']")


def test_a_task_is_written_as_it_would_be_in_a_config() -> None:
    task = Classify(pool="mean", backbone=Transformer(Spec(vocab_size=9, depth=1)))
    said = brief(configs.describe(task))
    assert said == "Classify(backbone=Transformer(spec=Spec(vocab_size=9, depth=1)), pool='mean')"


def test_a_class_that_is_no_more_is_written_with_all_that_is_known_of_it() -> None:
    gone = {"type": "research.elsewhere:Gone", "rank": 4, "inner": {"type": "a_file:Loss"}}
    assert brief(gone) == "Gone(rank=4, inner=Loss())"
    assert "a_file" not in sys.modules


def test_a_strategy_is_chosen_by_its_name_and_then_has_its_fields() -> None:
    file = Path(__file__).parents[1] / "configs" / "smoke.py"
    config = configs.load_config(file, ["--adapt", "lora", "--adapt.rank", "4"])
    assert config.adapt == LoRA(rank=4)
    with pytest.raises(ConfigError, match="--adapt: no 'lorra', there are adapter, bitfit"):
        configs.load_config(file, ["--adapt", "lorra"])
