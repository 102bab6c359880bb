"""Word problems: sequences of permutations, and the product of every beginning."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Words over permutations; the answers are the elements of the group that these generate."""

    name: str
    letters: tuple[Permutation, ...]

    @cached_property
    def products(self) -> Tensor:
        """products[x, s] is the element that letter x makes of element s: [letters, elements]. Element 0 is the identity."""
        elements = [tuple(range(len(self.letters[0])))]
        number = {elements[0]: 0}
        rows: list[list[int]] = []
        for element in elements:  # it grows on the way
            rows.append([])
            for letter in self.letters:
                product = tuple(letter[i] for i in element)
                if product not in number:
                    number[product] = len(elements)
                    elements.append(product)
                rows[-1].append(number[product])
        return torch.tensor(rows).T

    @property
    def elements(self) -> int:
        """How many there are."""
        return self.products.shape[1]

    def words(self, batch: int, length: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random words and the products of their beginnings, both [batch, length]."""
        words = torch.randint(len(self.letters), (batch, length), generator=source)
        element, answers = torch.zeros(batch, dtype=torch.long), []
        for letters in words.T:
            element = self.products[letters, element]
            answers.append(element)
        return words, torch.stack(answers, 1)


def swap(points: int, i: int, j: int) -> Permutation:
    """The permutation that exchanges i and j."""
    return tuple({i: j, j: i}.get(point, point) for point in range(points))


CYCLE, BACK, THREE = (1, 2, 3, 4, 0), (4, 0, 1, 2, 3), (1, 2, 0, 3, 4)
TASKS = {
    task.name: task
    for task in (
        Task("parity", ((0, 1), (1, 0))),
        Task("S3", tuple(itertools.permutations(range(3)))),
        Task("S5 swaps", ((0, 1, 2, 3, 4), *(swap(5, i, j) for i, j in itertools.combinations(range(5), 2)))),
        Task("A5", (CYCLE, BACK, THREE)),
        Task("S5", (CYCLE, BACK, swap(5, 0, 1))),
    )
}
