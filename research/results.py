"""The files of a run that are not state: whose directory it is, what came out, what went wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from research import config as configs
from research import hosts, runs
from research.config import Config
from research.data.tokenize import load_tokenizer
from research.differences import differences
from research.errors import ConfigError
from research.journal import Clock
from research.programs import Program
from research.runs import RunDirectory


def claim(directory: RunDirectory, config: Config) -> dict[str, Any] | None:
    """Makes the directory this config's; returns its result where it is done already.

    Raises ConfigError where the directory holds a run of another config, naming the differences.
    """
    described = {"config": configs.describe(config), "fingerprint": configs.fingerprint(config)}
    held = directory.config
    if held is None:
        directory.write_config(described)
        keep_tokenizer(config, Path(directory.path))
        return None
    if held["fingerprint"] != described["fingerprint"]:
        changes = "; ".join(differences(held["config"], described["config"])[:5])
        raise ConfigError(
            f"{directory.path} holds a run of another config ({changes}): "
            "choose another --name, or delete it"
        )
    result = directory.result()
    return result if result is not None and result["status"] == "done" else None


def keep_tokenizer(config: Config, directory: Path) -> None:
    """Copies the tokenizer into the run, as a directory, so that the run can be used alone."""
    if getattr(config.data, "tokenizer", None) is None:
        return
    source = config.data.needed_tokenizer()
    target = directory / "tokenizer"
    target.mkdir(exist_ok=True)
    load_tokenizer(source).save(str(target / "tokenizer.json"))
    settings = Path(source) / "tokenizer_config.json"
    if settings.is_file():
        shutil.copyfile(settings, target / settings.name)


def same_everywhere(config: Config, batches: Any) -> None:
    """Raises ConfigError, in every process, where they were given other configs or other rows."""
    mine = {"config": configs.describe(config), "data": batches.fingerprint}
    told = hosts.gathered(mine)
    for number, other in enumerate(told):
        if changes := differences(told[0]["config"], other["config"])[:5]:
            raise ConfigError(
                f"hosts: process {number} has another config than process 0: {'; '.join(changes)}"
            )
        if other["data"] != told[0]["data"]:
            raise ConfigError(
                f"hosts: process {number} reads other training data than process 0 "
                f"(fingerprints {other['data']} and {told[0]['data']})"
            )


def same_data(stored: str, found: str, directory: RunDirectory) -> None:
    """Raises ConfigError where a checkpoint was trained on other rows than are there now."""
    if stored != found:
        raise ConfigError(
            f"{directory.path}: the training data changed since its checkpoint was written "
            f"(fingerprint {stored} -> {found}); resuming would not give the same model"
        )


def summarize(
    config: Config,
    step: int,
    memory: dict[str, Any],
    clock: Clock,
    *,
    checkpoint: int,
    batches: Any,
    program: Program,
    first_step: float,
    replicates: int = 1,
) -> dict[str, Any]:
    """What result.json holds: the scores at the best step, or at the last without `track`.

    Of `replicates` that share clock and program each has its part of the seconds and FLOPs.
    """
    scored = memory["best"] or memory["last"] or {"metrics": {}, "details": {}, "step": step}
    noted = memory.get("spikes", {})
    spikes = {"spikes": {name: noted[name] for name in ("rewound", "endured")}} if noted else {}
    train = {f"train/{name}": value for name, value in memory["train"].items()}
    return {
        "name": config.name,
        "status": "done",
        "metrics": train | scored["metrics"],
        "details": scored["details"],
        "steps": step,
        "examples": memory["examples"],
        "tokens": memory["tokens"],
        "seconds": {
            phase: round(seconds / replicates, 3) for phase, seconds in clock.summary().items()
        },
        **({"replicates": replicates} if replicates > 1 else {}),
        "first_step_seconds": round(first_step, 3),
        "peak_memory_mb": round(runs.peak_memory_mb(), 1),
        "checkpoint": f"checkpoints/{checkpoint}",
        "fingerprints": {
            "config": configs.fingerprint(config),
            "data": batches.fingerprint,
            "tokenizer": config.data.facts().get("tokenizer_fingerprint"),
            "code": runs.code_fingerprint(),
        },
        "seed": config.seed,
        "compiled": len(program.executables),
        "flops_per_step": program.flops() / replicates,
        "temporary_mb": program.temporary_mb(),
        "data": batches.stats(),
        **spikes,
        **runs.environment(),
    }


def sentence(summary: dict[str, Any]) -> str:
    """A result in one line: scores, steps, time."""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in summary["metrics"].items())
    seconds = summary["seconds"]["total"]
    return f"{scores or 'no scores'}; {summary['steps']} steps in {seconds:.0f} s"
