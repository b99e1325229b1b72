"""Batches: images of concurrent requests are scored together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Out = TypeVar("Out")

LANES = 2
"""Batches processed concurrently: one is decoded while the other is encoded."""


@dataclass(eq=False)
class _Job(Generic[Item, Out]):
    items: Sequence[Item]
    done: asyncio.Future[list[Out]]


class Batcher(Generic[Item, Out]):
    """Collects the items of several callers into batches.

    Args:
        function: processes a batch in a thread, and returns one output per item, in order.
        max_batch: items in a batch. The items of one caller stay together, so a batch may have more.
        max_wait: seconds that an idle batcher waits for more items once it has one.
    """

    def __init__(self, function: Callable[[list[Item]], list[Out]], *, max_batch: int, max_wait: float) -> None:
        self._function = function
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._jobs: deque[_Job[Item, Out]] = deque()
        self._arrived = asyncio.Event()
        self._lanes = asyncio.Semaphore(LANES)
        self._running: set[asyncio.Task[None]] = set()
        self._collector: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return sum(len(job.items) for job in self._jobs)

    def start(self) -> None:
        """Start processing, in the running event loop."""
        self._collector = asyncio.create_task(self._collect())

    async def stop(self) -> None:
        """Finish the batches that are being processed, and cancel the queue."""
        if self._collector is not None:
            self._collector.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for job in self._jobs:
            job.done.cancel()

    async def submit(self, items: Sequence[Item]) -> list[Out]:
        """The outputs of these items."""
        job: _Job[Item, Out] = _Job(items, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.done

    async def _collect(self) -> None:
        while True:
            await self._lanes.acquire()
            await self._wait_for_items()
            if not self._running and self._max_wait:
                await self._wait_for_full_batch()
            jobs = self._next_batch()
            if not jobs:
                self._lanes.release()
                continue
            task = asyncio.create_task(self._score(jobs))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _wait_for_items(self) -> None:
        while not self._jobs:
            self._arrived.clear()
            await self._arrived.wait()

    async def _wait_for_full_batch(self) -> None:
        """Wait until there is a full batch, at most `max_wait` seconds."""
        try:
            async with asyncio.timeout(self._max_wait):
                while self.waiting < self._max_batch:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def _next_batch(self) -> list[_Job[Item, Out]]:
        jobs: list[_Job[Item, Out]] = []
        count = 0
        while self._jobs and (not jobs or count + len(self._jobs[0].items) <= self._max_batch):
            job = self._jobs.popleft()
            if not job.done.done():  # cancelled if the caller has left
                jobs.append(job)
                count += len(job.items)
        return jobs

    async def _score(self, jobs: list[_Job[Item, Out]]) -> None:
        try:
            outputs = iter(await asyncio.to_thread(self._function, [item for job in jobs for item in job.items]))
            results = [[next(outputs) for _ in job.items] for job in jobs]
        except Exception as error:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            return
        finally:
            self._lanes.release()
        for job, result in zip(jobs, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)
