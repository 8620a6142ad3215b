"""The only loop over steps. It knows no task, no model and no data by name.

config -> resolved config -> mesh -> batches -> state (resumed, transferred, loaded or fresh)
-> step, step, step; evaluate and save now and then -> result
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from research import audit, gate, hosts, initialize, replay, results, sharding
from research.assemble import assemble
from research.checkpoint import Checkpoints
from research.config import Config
from research.data.prefetch import prefetch
from research.errors import PreemptedError
from research.evaluate import Model, served, served_params
from research.journal import Clock, Journal, blank, process_age
from research.metrics import Mean
from research.runs import RunDirectory, StopSignal
from research.spikes import Others, SpikeError
from research.step import TrainState, recalled
from research.watchdog import Watchdog

MOST_NONFINITE = 5


@dataclass(frozen=True)
class Result:
    """What came out of a run: `metrics` is {"dev/accuracy": ...}, at the best or the last step."""

    config: Config
    path: Path
    metrics: dict[str, float]
    summary: dict[str, Any] = field(repr=False)


def run(config: Config, workdir: str | Path = "runs", *, progress: bool = False) -> Result:
    """Trains what the config says in `workdir/name`, or goes on where an earlier call was cut off.

    A run that is already done is returned, not repeated. Raises ConfigError where the directory
    holds a run of another config, PreemptedError, having saved, on SIGTERM, and NonFiniteError
    after five steps in a row that could not be taken.
    """
    clock = Clock()
    with hosts.open_run(Path(workdir) / config.name) as directory, StopSignal() as signal:
        directory.log(f"{config.name}: opened")
        with clock.phase("data"), hosts.in_turn():
            config = initialize.resolve(config)
        summary = hosts.agreed(lambda: results.claim(directory, config))
        if summary is None:
            mesh = config.mesh.build()
            steps = config.steps or 0
            with jax.set_mesh(mesh), Journal(directory, steps, show=progress) as journal:
                stacks = hosts.own(directory.path / "stacks.txt")
                with Watchdog(config.hang_after, stacks, directory.log) as watchdog:
                    stop = hosts.AgreedStop(signal)
                    loop = Loop(config, mesh, directory, journal, clock, stop, watchdog)
                    with loop.checkpoints, hosts.bound(directory.log):
                        summary = loop.run()
        return Result(config, Path(directory.path), summary["metrics"], summary)


class Loop:
    """One run in motion, between its first step and its result."""

    # How many runs share its program and its clock: see research/replicate.py.
    replicates = 1

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        directory: RunDirectory,
        journal: Journal,
        clock: Clock,
        stop: hosts.AgreedStop,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.mesh, self.directory = config, mesh, directory
        self.steps = config.steps or 0
        self.journal, self.clock, self.stop, self.watchdog = journal, clock, stop, watchdog
        with clock.phase("data"), hosts.in_turn():
            self.batches = self.open()
            for evaluator in config.evals:
                evaluator.prepare(self.model(None))
        results.same_everywhere(config, self.batches)
        self.key = jax.random.key(config.seed)
        with clock.phase("compile"):
            rows = sharding.abstract_rows(self.batches.batch(0), mesh)
            self.assembly = assemble(config, rows, mesh, self.batches.words)
        self.program = self.assembly.program
        with clock.phase("startup"):
            audit.write(directory, config, self.assembly.params, mesh, self.batches)
            self.checkpoints = Checkpoints(
                directory.path / "checkpoints", config.keep, report=journal.say
            )
        self.first_step = 0.0
        self.rate = config.optim.rate(self.steps)
        every = math.ceil(self.batches.rows / config.batch_size)
        self.eval_every = config.eval_every or every
        self.save_every = config.save_every or self.eval_every

    def open(self) -> Any:
        """The training batches."""
        return initialize.open_training(self.config, self.mesh)

    def begin(self, latest: int | None = None) -> None:
        """Goes on from this run's newest checkpoint, of those up to step `latest`, or starts."""
        self.pending: tuple[dict[str, Mean], dict[str, np.ndarray], Any] | None = None
        restored = self.checkpoints.restore(self.assembly.state, latest)
        if restored is None:
            self.journal.recall(blank(), -1)
            if seen := gate.check(self.assembly, self.batches, self.mesh, self.key):
                self.journal.say(seen)
            self.state = self.assembly.begin(self.journal.say)
        else:
            results.same_data(restored.meta["data"], self.batches.fingerprint, self.directory)
            self.journal.recall(restored.meta["journal"], restored.step)
            self.journal.say(f"resumed at step {restored.step}")
            self.state = restored.state
            self.recall()
        self.step = int(self.state.step)

    def recall(self) -> None:
        """Gives the state what the run's memory decides of it, where its strategy has such."""
        if self.config.adapt.watches:
            self.state = recalled(self.state, self.config.adapt, self.journal.memory)

    def run(self) -> dict[str, Any]:
        """Steps to the end; returns what result.json holds."""
        # Before there is a state: compiling takes as much memory as most states do.
        with self.clock.phase("compile"):
            self.program.compiled(self.assembly.state, self.assembly.rows, self.key)
        with self.clock.phase("startup"):
            self.begin()
        while True:
            try:
                self.go()
                return self.finish()
            except SpikeError as spike:
                self.journal.say(f"{spike}: going back")
                before = self.journal.memory
                self.begin()
                spike.rewound(before, self.journal.memory, self.step)

    def go(self) -> None:
        """Steps to the end. Raises SpikeError where they are to be taken back."""
        ended = self.step > 0 and self.settle()
        batches: Any = Others(self.batches, self.journal.memory, self.steps)
        with closing(prefetch(batches, self.step, self.steps)) as stream:
            while not ended and self.step < self.steps:
                if self.stopping():
                    self.note()
                    self.preempt()
                with self.clock.phase("wait"):
                    _, batch = next(stream)
                self.state, means = self.advance(batch)
                ended = self.taken(means, batch) and self.settle()

    def advance(self, batch: dict[str, np.ndarray]) -> tuple[TrainState, dict[str, Mean]]:
        """Dispatches one step."""
        arguments = (self.state, sharding.put(batch, self.mesh), self.key)
        with self.clock.phase("compile"):
            compiled = self.program.compiled(*arguments)
        return compiled(*arguments)

    def taken(self, means: dict[str, Mean], batch: dict[str, np.ndarray]) -> bool:
        """Counts a step that was dispatched; whether anything but the next one is due."""
        # The previous step's numbers are read while this one runs.
        self.note()
        self.pending = (means, batch, sharding.sizes(batch, self.mesh))
        self.step += 1
        due = self.boundary()
        # The first step's are not to wait for another program that the second may need.
        if due or self.journal.memory["nonfinite"] or not self.first_step:
            self.note()
        return due

    def boundary(self) -> bool:
        """Whether anything but the next step is due now."""
        config, step = self.config, self.step
        regular = step % config.log_every == 0 or step % self.save_every == 0
        return regular or step == self.steps or self.evaluates()

    def evaluates(self) -> bool:
        """Whether this step's model is to be evaluated."""
        at_end = self.step == self.steps
        return bool(self.config.evals) and (at_end or self.step % self.eval_every == 0)

    def note(self) -> None:
        """Waits for a step and writes its means down; raises NonFiniteError after five bad ones."""
        if self.pending is None:
            return
        means, batch, sizes = self.pending
        self.pending = None
        means, sizes = jax.device_get((means, sizes))
        self.first_step = self.first_step or process_age()
        examples, tokens, cells = map(int, sizes)
        self.journal.add(means, examples, tokens, 1 - tokens / cells)
        memory, loss = self.journal.memory, float(means["loss"].value)
        if self.config.spikes is not None and not memory["nonfinite"]:
            self.config.spikes.watch(memory, loss, self.step - 1, self.steps)
        if memory["nonfinite"] >= MOST_NONFINITE:
            step, tries = self.step - 1, memory["nonfinite"]
            rows = sharding.put(batch, self.mesh)
            replay.give_up(self.directory.path, self.state, rows, step, tries)

    def settle(self) -> bool:
        """Logs, evaluates and saves what is due after `step` steps; whether the run ends early."""
        best, config, memory = False, self.config, self.journal.memory
        if memory["window"] and (self.step % config.log_every == 0 or self.step == self.steps):
            self.journal.line(self.step, float(self.rate(self.step - 1)))
        if self.evaluates() and memory["evaluated"] != self.step:
            try:
                with self.clock.phase("eval"):
                    best = self.evaluate()
            except PreemptedError:
                self.preempt()
        due = self.step % self.save_every == 0 or self.step == self.steps
        if best or due or self.evaluates():
            self.save(best=best, wait=self.step == self.steps)
        self.checkpoints.poll()
        return config.patience is not None and memory["since_best"] >= config.patience

    def evaluate(self) -> bool:
        """Runs every evaluator and writes the numbers; whether this is the best model so far."""
        model = self.model(served_params(self.config.task, self.state.result))
        metrics: dict[str, float] = {}
        details: dict[str, Any] = {}
        scores = {evaluator.name: evaluator(model) for evaluator in self.config.evals}
        numbers = hosts.agreed(lambda: {name: score.numbers for name, score in scores.items()})
        for name, score in scores.items():
            self.journal.write(self.step, name, numbers[name])
            metrics |= {f"{name}/{key}": value for key, value in numbers[name].items()}
            details[name] = score.details
        best = self.journal.scored(self.step, metrics, details, self.config.track)
        self.config.adapt.scored(self.journal.memory)
        self.recall()
        return best

    def model(self, params: Any) -> Model:
        """What evaluators are handed."""
        task = served(self.config.task)
        return Model(task, params, self.config.data, self.mesh, self.stopping)

    def stopping(self) -> bool:
        """Whether to stop; being asked, before every batch, is what shows that the run moves."""
        self.watchdog.beat()
        return self.stop.requested

    def save(self, *, best: bool = False, wait: bool = False) -> None:
        """Hands the state to the checkpointer, with what the journal remembers."""
        meta = {"journal": self.journal.memory, "data": self.batches.fingerprint}
        with self.clock.phase("save"):
            self.checkpoints.save(self.step, self.state, meta, best=best, wait=wait)

    def preempt(self) -> NoReturn:
        """Saves and raises PreemptedError."""
        self.save(wait=True)
        raise PreemptedError(f"{self.directory.path}: told to stop, saved at step {self.step}")

    def finish(self) -> dict[str, Any]:
        """Writes result.json."""
        with self.clock.phase("save"):
            self.checkpoints.close()
        summary = results.summarize(
            self.config,
            self.step,
            self.journal.memory,
            self.clock,
            checkpoint=self.checkpoints.best or self.step,
            batches=self.batches,
            program=self.program,
            first_step=self.first_step,
            replicates=self.replicates,
        )
        self.directory.write_result(summary)
        return summary
