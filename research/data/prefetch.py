"""Batches made ahead of their steps, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from research.data.batches import Batch, Batches


def prefetch(
    batches: Batches, start: int = 0, stop: int | None = None, *, depth: int = 2
) -> Generator[tuple[int, Batch]]:
    """(step, batch) from `start` to before `stop` (all steps), `depth` made ahead in a thread.

    An error in making a batch is raised where the batch was due. Close it to end the thread.
    """
    ahead = iter(range(start, batches.steps if stop is None else stop))
    pending: deque[tuple[int, Future[Batch]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        try:
            for step in islice(ahead, depth):
                pending.append((step, pool.submit(batches.batch, step)))
            while pending:
                step, future = pending.popleft()
                batch = future.result()
                for later in islice(ahead, 1):
                    pending.append((later, pool.submit(batches.batch, later)))
                yield step, batch
        finally:
            for _, future in pending:
                future.cancel()
