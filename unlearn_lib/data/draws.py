"""Random draws from a sequence: what they give depends on the state of the generator alone."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Random = np.random.Generator
Item = TypeVar("Item")


def one(random: Random, items: Sequence[Item]) -> Item:
    """Return one of the items, each as likely as the others."""
    return items[int(random.integers(len(items)))]


def shuffled(random: Random, items: Sequence[Item]) -> list[Item]:
    """Return all items in a random order."""
    return [items[place] for place in random.permutation(len(items))]
