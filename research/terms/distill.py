"""Distillation: a task learns what a finished run says of the same examples."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax

from research.divergences import kl
from research.errors import ConfigError
from research.metrics import Mean
from research.regularize import Term
from research.view import View, forward


@dataclass(frozen=True, kw_only=True)
class Taught(Term):
    """A term that learns from `teacher`, a run directory whose tokens are those of this task. Its
    parameters are constants of the compiled step, and it runs without dropout beside every step."""

    teacher: str = ""

    def check(self) -> None:
        super().check()
        if not self.teacher:
            name = type(self).__name__
            raise ConfigError(f"task.terms: {name}.teacher is not set; expected a run directory")

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a teacher of another vocabulary."""
        sizes = [getattr(one.backbone, "spec", None) for one in (load(self.teacher)[0], task)]
        told, own = (getattr(spec, "vocab_size", 0) for spec in sizes)
        if told != own:
            raise ConfigError(
                f"task.terms: {type(self).__name__}.teacher {self.teacher} reads {told} tokens, "
                f"but this trunk {own}"
            )


@dataclass(frozen=True, kw_only=True)
class Distill(Taught):
    """KL from the teacher's softmax to the student's, both at `temperature`, times its square
    (Hinton et al., 2015). Needs no label: every example counts.

    The labels of the `teacher` are those of this task.
    """

    temperature: float = 2.0

    name: ClassVar[str] = "distill"
    needs: ClassVar[tuple[str, ...]] = ("classes",)

    def check(self) -> None:
        super().check()
        if self.temperature <= 0.0:
            raise ConfigError(f"task.terms: Distill.temperature is {self.temperature}, not above 0")

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a teacher of other labels or another vocabulary."""
        super().check_task(task)
        teacher, _ = load(self.teacher)
        labels = getattr(teacher, "labels", None)
        if labels != task.labels:
            raise ConfigError(
                f"task.terms: Distill.teacher {self.teacher} tells {labels}, but this task "
                f"{task.labels}"
            )

    def __call__(self, view: View) -> Mean:
        teacher, params = load(self.teacher)
        told = forward(teacher, params, view.batch, view.key, train=False).logits
        heat = self.temperature
        values = heat**2 * kl(jax.lax.stop_gradient(told) / heat, view.main.logits / heat)
        return Mean.of(values, view.filled)


@functools.lru_cache(maxsize=4)
def load(run: str) -> tuple[nn.Module, Any]:
    """A finished run's task and its parameters, on the host; read once a process."""
    # Reading a run needs all that a run is made of, this file included.
    from research.infer import loaded

    found = loaded.load(run)
    return found.task, found.params
