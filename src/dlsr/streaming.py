"""Lazy processing of iterables: in groups, or in threads ahead of the consumer."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

READ_BYTES = 2**27
"""Bytes read at once, in order."""
IN_MEMORY_BYTES = 2**30
"""Arrays of more bytes than this stay on disk and are read a part at a time."""

A = TypeVar("A")
B = TypeVar("B")


def in_groups(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Split into consecutive groups of `size` items; the last group may be smaller."""
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group


def map_ahead(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Generator[B]:
    """Map in threads and yield in order, at most `ahead` items ahead of the consumer, so that memory stays bounded."""
    with ThreadPoolExecutor(workers) as pool:
        remaining = iter(items)
        pending: list[Future[B]] = [pool.submit(function, item) for item in islice(remaining, ahead)]
        try:
            while pending:
                result = pending.pop(0).result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
