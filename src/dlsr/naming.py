"""Makes names distinct."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def distinct(wanted: Iterable[Name], numbered: Callable[[Name, int], Name]) -> list[Name]:
    """Names as they are wanted, and with a number where an earlier one is the same.

    Args:
        wanted: names, in order.
        numbered: the name with a number, which is 2 or more: a different name for each number.
    """
    found: list[Name] = []
    taken: set[Name] = set()
    last: dict[Name, int] = {}
    for name in wanted:
        own, number = name, last.get(name, 1)
        while own in taken:
            number += 1
            own = numbered(name, number)
        last[name] = number
        taken.add(own)
        found.append(own)
    return found
