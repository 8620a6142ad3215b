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
class Distill(Term):
    """KL from the teacher's softmax to the student's, both at `temperature`, times its square
    (Hinton et al., 2015). Needs no label: every example counts.

    `teacher` is a run directory whose labels and tokens are those of this task. Its parameters are
    constants of the compiled step, and it runs without dropout beside every step.
    """

    teacher: str = ""
    temperature: float = 2.0

    name: ClassVar[str] = "distill"
    needs: ClassVar[tuple[str, ...]] = ("classes",)

    def check(self) -> None:
        super().check()
        if self.temperature <= 0.0:
            raise ConfigError(f"task.terms: Distill.temperature is {self.temperature}, not above 0")
        if not self.teacher:
            raise ConfigError("task.terms: Distill.teacher is not set; expected a run directory")

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a teacher of other labels or another vocabulary."""
        teacher, _ = load(self.teacher)
        labels = getattr(teacher, "labels", None)
        if labels != task.labels:
            raise ConfigError(
                f"task.terms: Distill.teacher {self.teacher} tells {labels}, but this task "
                f"{task.labels}"
            )
        sizes = [one.backbone.spec.vocab_size for one in (teacher, task)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"task.terms: Distill.teacher {self.teacher} reads {sizes[0]} tokens, but this "
                f"trunk {sizes[1]}"
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
