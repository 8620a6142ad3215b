"""Loss spikes: a step far above those before it is taken back, and its batches are passed over."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import ConfigError

Memory = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """Rewind and skip, as for PaLM (Chowdhery et al., 2022).

    A spike is a step whose loss is above the mean plus `sigma` standard deviations of the last
    `window` steps that were taken. The run goes back to its newest checkpoint and passes over the
    batches from there through the spike: the steps that used them take the next ones instead, and
    the run's last steps its first batches again. After `patience` rewinds spikes are trained
    through; all are told in log.txt and result.json.
    """

    window: int = 128
    sigma: float = 6.0
    patience: int = 3

    def check(self) -> None:
        """Raises ConfigError for values that find no spike."""
        if self.window < 2 or self.sigma <= 0 or self.patience < 0:
            raise ConfigError(
                f"config: spikes needs window >= 2, sigma > 0 and patience >= 0, not {self}"
            )

    def bound(self, losses: Sequence[float]) -> float:
        """The loss above which the next step is a spike; none is before the window is full."""
        if len(losses) < self.window:
            return float("inf")
        last = losses[-self.window :]
        return statistics.fmean(last) + self.sigma * statistics.pstdev(last)

    def watch(self, memory: Memory, loss: float, step: int, steps: int) -> None:
        """Remembers the loss of a taken `step`; raises SpikeError where it is to be taken back."""
        held = notes(memory)
        bound = self.bound(held["losses"])
        if loss > bound:
            found = {"step": step, "loss": loss, "bound": bound}
            if len(held["rewound"]) < self.patience and step + 1 < len(left(steps, memory)):
                raise SpikeError(found)
            held["endured"] = [*held["endured"], found]
        held["losses"] = [*held["losses"], loss][-self.window :]


class SpikeError(Exception):
    """A step to be taken back: `found` is its step, its loss and the bound that this is above."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__("loss {loss:.4g} at step {step} is above {bound:.4g}".format(**found))
        self.found = found

    def rewound(self, before: Memory, memory: Memory, step: int) -> None:
        """Notes in the `memory` of the checkpoint of `step` what was noted `before`, and this."""
        notes(memory)["rewound"] = [*notes(before)["rewound"], self.found | {"from": step}]


def notes(memory: Memory) -> Memory:
    """What a journal's memory holds of spikes: last losses, spikes taken back, spikes kept."""
    return memory.setdefault("spikes", {"losses": [], "rewound": [], "endured": []})


def left(steps: int, memory: Memory) -> np.ndarray:
    """The batches that are not passed over, int [at most steps], as step 0, 1, ... takes them."""
    order = np.arange(steps)
    for spike in memory.get("spikes", {}).get("rewound", ()):
        used = np.arange(spike["from"], spike["step"] + 1) % len(order)
        order = np.delete(order, used)
    return order


class Others:
    """The batches of a run but for those that its `memory` says to pass over."""

    def __init__(self, batches: Any, memory: Memory, steps: int) -> None:
        self.batches, self.steps, self.order = batches, steps, left(steps, memory)

    def batch(self, step: int) -> Any:
        """What step `step` trains on."""
        return self.batches.batch(int(self.order[step % len(self.order)]))
