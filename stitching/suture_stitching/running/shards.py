"""Work divided among processes, on one machine or several: each does its share, and the whole work puts all together.

A pass over the data is cut into blocks of consecutive batches, by the data alone. What is found in a block is added up
by itself and then to what was found in the blocks before it, whoever did it: sums of floating-point numbers depend on
their order, and so the result is the same to the last bit for any number of processes, on processors of one kind and
with equally many threads. A share leaves finished blocks as parts in the checkpoint's folder, where the whole work
finds them; a part that is not there is simply done by the whole work itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Blocks of one pass, at most; each leaves a file as large as all moments of a match at all places.
MOST_BLOCKS = 8
#: Batches of a block of moments, at least: writing a block is to cost little beside computing it.
FEWEST_BATCHES = 4


@dataclass(frozen=True)
class Share:
    """The part `index`, from 0, of `count` equal ones."""

    index: int
    count: int

    def has(self, number: int) -> bool:
        """Whether the piece of work with this number belongs to this share: they are dealt out in turn."""
        return number % self.count == self.index


#: What a process does that shares with nobody.
ALL = Share(0, 1)


def dealt(costs: Sequence[float], count: int) -> list[list[int]]:
    """Return the numbers of the pieces of work of each of `count` shares, which take about as long as each other.

    The dearest is dealt out first, each to the share that has least so far. The costs alone say to which.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        least = loads.index(min(loads))
        shares[least].append(number)
        loads[least] += costs[number]
    return [sorted(numbers) for numbers in shares]


def blocks(batches: int, fewest: int = FEWEST_BATCHES) -> list[range]:
    """Return the numbers of the batches of each block of a pass of so many `batches`; none for an empty pass."""
    if not batches:
        return []
    count = max(1, min(MOST_BLOCKS, batches // fewest))
    edges = [batches * number // count for number in range(count + 1)]
    return [range(first, last) for first, last in pairwise(edges)]
