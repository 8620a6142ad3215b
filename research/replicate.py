"""Seeds and swept numbers of one fine-tune trained as one compiled program; each ends as a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from research import hosts, initialize, manifest, results, sharding
from research.adapt import Rule
from research.config import Config
from research.data.batches import Batch
from research.data.prefetch import prefetch
from research.errors import NonFiniteError, PreemptedError
from research.journal import Clock, Journal
from research.metrics import Mean
from research.runs import RunDirectory, StopSignal
from research.stacked import Gathered, Orders, fit, own_part
from research.step import TrainState
from research.sweep import Grid, NotReplicatesError, Numbers, make_program, swept
from research.train import Loop, Result
from research.watchdog import Watchdog


def replicate(
    configs: Sequence[Config], workdir: str | Path = "runs", *, progress: bool = False
) -> list[Result]:
    """Trains configs that differ in seeds and numbers as one program; results in their order.

    Each is what `train.run` makes of it, in a directory of its own: one that is done is returned,
    the others go on from the newest step that all of them have. What does not learn and is the same
    for all is held once. Raises what `run` does, NonFiniteError only after the others have ended,
    and before compiling NotReplicatesError where the configs cannot share a program.
    """
    swept(configs)
    if not hosts.alone():
        raise NotReplicatesError("replicates are trained by one process, not by several")
    clock = Clock()
    with ExitStack() as stack, StopSignal() as signal:
        folders = [Path(workdir) / config.name for config in configs]
        directories = [stack.enter_context(RunDirectory.open(folder)) for folder in folders]
        with clock.phase("data"):
            first = initialize.resolve(configs[0])
            free = ("name", "seed", "data_seed", "optim", "adapt")
            resolved = [
                dataclasses.replace(first, **{name: getattr(config, name) for name in free})
                for config in configs
            ]
        done = {i: results.claim(directories[i], one) for i, one in enumerate(resolved)}
        rest = [i for i, summary in done.items() if summary is None]
        if rest:
            grid = Grid.of([resolved[i] for i in rest])
            rest = [rest[place] for place in grid.places]
            stop = hosts.AgreedStop(signal)
            group = Group([resolved[i] for i in rest], grid, clock, stop)
            log = directories[rest[0]].log
            watchdog = Watchdog(first.hang_after, folders[rest[0]] / "stacks.txt", log)
            with jax.set_mesh(group.mesh), watchdog:
                for i in rest:
                    directories[i].log(f"{resolved[i].name}: opened, one of {len(rest)} replicates")
                    show = progress and i == rest[0]
                    journal = Journal(directories[i], group.steps, show=show)
                    group.add(directories[i], stack.enter_context(journal), watchdog)
                done |= dict(zip(rest, group.run()))
    return [
        Result(config, folder, summary["metrics"], summary)
        for config, folder, summary in zip(
            resolved, folders, map(done.__getitem__, range(len(done)))
        )
        if summary is not None
    ]


class Member(Loop):
    """One run of a group: its directory, journal, checkpoints and scores; the steps are shared."""

    def __init__(self, group: Group, number: int, *arguments: Any) -> None:
        self.group, self.number, self.replicates = group, number, group.grid.count
        self.own: TrainState | None = None
        super().__init__(*arguments)
        # So that there is always a step that all have: a save begins when the last one is whole.
        self.checkpoints.keep = max(2, self.config.keep)

    def open(self) -> Any:
        """The batches of its order, which others may share."""
        return self.group.batches[self.group.grid.order_of(self.number)]

    @property
    def state(self) -> TrainState:
        """Its state as that of a run alone."""
        return self.group.state_of(self.number) if self.own is None else self.own

    @state.setter
    def state(self, state: TrainState) -> None:
        self.own = state

    def save(self, *, best: bool = False, wait: bool = False) -> None:
        """Saves once the last step is whole in every member."""
        self.group.wait(self.step)
        super().save(best=best, wait=wait)

    def preempt(self) -> NoReturn:
        """Saves all members and raises PreemptedError."""
        self.group.preempt()


class Group:
    """Replicates in motion: the state of all, one step for all, what each does between steps."""

    def __init__(
        self, configs: list[Config], grid: Grid, clock: Clock, stop: hosts.AgreedStop
    ) -> None:
        self.configs, self.grid, self.clock, self.stop = configs, grid, clock, stop
        self.steps = configs[0].steps or 0
        self.mesh = sharding.spread(configs[0].mesh.build(), grid.outer)
        self.axis = "replicate" if self.mesh.shape["replicate"] > 1 else None
        with clock.phase("data"):
            of_each_order = configs[:: grid.count // grid.sizes[0]]
            self.batches = [initialize.open_training(one, self.mesh) for one in of_each_order]
            fit(self.batches)
        self.members: list[Member] = []
        self.living: list[Member] = []
        self.found: dict[int, dict[str, Any]] = {}
        self.lost: list[NonFiniteError] = []
        self.step = self.saving = -1

    def add(self, directory: RunDirectory, journal: Journal, watchdog: Watchdog) -> None:
        """Takes in the next member."""
        number = len(self.members)
        given = (self.mesh, directory, journal, self.clock, self.stop, watchdog)
        self.members.append(Member(self, number, self.configs[number], *given))

    def run(self) -> list[dict[str, Any]]:
        """Steps to the end of all; what result.json of each holds.

        Raises the NonFiniteError of a member that could not go on, when the others have ended.
        """
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.checkpoints)
            self.prepare()
            self.go()
        if self.lost:
            raise self.lost[0]
        return [self.found[member.number] for member in self.members]

    def prepare(self) -> None:
        """The numbers that differ, the state of all and the program."""
        first = self.members[0]
        trees = [flatten_dict(m.assembly.state.params, sep="/") for m in self.members]
        shapes = [{path: leaf.shape for path, leaf in tree.items()} for tree in trees]
        if shapes.count(shapes[0]) < len(shapes):
            raise NotReplicatesError("replicates: adapt gives them different parameters")
        words = [0 if m.assembly.words is None else len(m.assembly.words) for m in self.members]
        if len(set(words)) > 1:
            raise NotReplicatesError(f"replicates: their texts have {words} words that learn")
        rules = first.config.adapt.rules(trees[0])
        numbers = Numbers.of(self.configs, swept(self.configs), trees[0]).arrays()
        keys = jnp.stack([member.key for member in self.members[:: self.grid.sizes[2]]])
        whole = NamedSharding(self.mesh, PartitionSpec())
        self.given = jax.device_put({"key": keys, "numbers": numbers}, whole)
        self.program = make_program(first.config, self.grid, rules, self.axis)
        for member in self.members:
            member.program = self.program
        with self.clock.phase("startup"):
            self.begin(rules)

    def begin(self, rules: Mapping[str, Rule]) -> None:
        """Goes on from the newest step that every member has, or starts."""
        while True:
            stored = [set(manifest.steps(m.checkpoints.directory)) for m in self.members]
            latest = max(set.intersection(*stored), default=-1)
            gathered = Gathered(rules)
            for member in self.members:
                member.begin(latest)
                gathered.add(member.state)
                member.own = None
            # A member whose checkpoint is damaged is further back, and its step is now set aside.
            if all(member.step == max(latest, 0) for member in self.members):
                break
        self.step, self.living = max(latest, 0), list(self.members)
        abstract = self.members[0].assembly.state
        self.state = gathered.placed(abstract, self.mesh, self.axis)
        alone = jax.tree.map(lambda x: x.sharding, own_part(abstract, self.state["own"].params))
        self.pick = jax.jit(
            lambda own, i: jax.tree.map(lambda x: x[i] if x.ndim else x, own), out_shardings=alone
        )

    def state_of(self, number: int) -> TrainState:
        """The state of one member as that of a run alone; what is shared is not copied."""
        own = self.pick(self.state["own"], number)
        return own.replace(params=unflatten_dict(self.state["shared"] | own.params, sep="/"))

    def go(self) -> None:
        """Steps to the end of the last member."""
        if self.step > 0:
            self.settle(self.living)
        orders: Any = Orders(self.batches)
        with closing(prefetch(orders, self.step, self.steps)) as stream:
            while self.living and self.step < self.steps:
                if self.living[0].stopping():
                    for member in list(self.living):
                        self.attempt(member, member.note)
                    self.preempt()
                with self.clock.phase("wait"):
                    batches: Any = next(stream)[1]
                means = self.advance(batches)
                self.step += 1
                due = []
                for member in list(self.living):
                    batch = batches[self.grid.order_of(member.number)]
                    take = functools.partial(member.taken, means[member.number], batch)
                    due += [member] if self.attempt(member, take) else []
                self.settle(due)

    def advance(self, batches: list[Batch]) -> list[dict[str, Mean]]:
        """Dispatches one step of all; the means of each."""
        if len(batches) == 1:
            batch = sharding.put(batches[0], self.mesh)
        else:
            rows = NamedSharding(self.mesh, PartitionSpec(self.axis, sharding.ROWS))
            stacked = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
            batch = jax.device_put(stacked, rows)
        arguments = (self.state, batch, self.given)
        with self.clock.phase("compile"):
            compiled = self.program.compiled(*arguments)
        self.state, means = compiled(*arguments)
        return means

    def attempt(self, member: Member, act: Callable[[], bool | None]) -> bool:
        """What `act` says; a member that cannot go on is let go, and the others are not touched."""
        try:
            return bool(act())
        except NonFiniteError as error:
            self.lost.append(error)
            self.living.remove(member)
            return False

    def settle(self, due: list[Member]) -> None:
        """Logs, evaluates and saves; writes the results of members that end here."""
        for member in list(due):
            if member.settle() or self.step == self.steps:
                self.found[member.number] = member.finish()
                self.living.remove(member)

    def wait(self, step: int) -> None:
        """Before the first save of a step: every earlier save has ended."""
        if step != self.saving:
            for member in self.members:
                member.checkpoints.wait()
            self.saving = step

    def preempt(self) -> NoReturn:
        """Saves all that go on and raises PreemptedError."""
        for member in self.living:
            member.save()
        for member in self.living:
            member.checkpoints.wait()
        names = ", ".join(str(member.directory.path) for member in self.living)
        raise PreemptedError(f"{names}: told to stop, saved at step {self.step}")
