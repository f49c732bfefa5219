"""The one rule by which an item's content vector is chosen among those that it brings.

A space is a modality and a width: vectors of two spaces cannot be compared. A release has one space for all
its items, chosen when its codebook is fitted (`common_space`); before and after, an item's vector is the one
that lies in it (`vector_in`), and one that does not counts as none, with the reason.

Shapes: N items, E content width.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.arrays import Float32Array

TEXT = "text"
Vectors = Mapping[str, Float32Array]
"""What one item brings: float32 [E] by modality."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """`modality` as items name it, empty for a release that does not say: then any, `text` before others."""

    modality: str
    width: int

    def __str__(self) -> str:
        return f"{self.modality or 'any modality'}, {self.width} numbers"


def common_space(items: Iterable[Vectors]) -> Space | None:
    """The space in which the most items have a vector that can be used; of as many, `text`, then the wider.

    None where no item has any.
    """
    counts = Counter(
        Space(modality=modality, width=len(vector_E))
        for vectors in items
        for modality, vector_E in vectors.items()
        if problem_of(vector_E) is None
    )
    key = {space: (num, space.modality == TEXT, space.width, space.modality) for space, num in counts.items()}
    return max(counts, key=lambda space: key[space], default=None)


def vector_in(space: Space, vectors: Vectors) -> tuple[Float32Array | None, str]:
    """The item's vector in a space, float32 [E] of length 1, or None and why: empty where it brings none."""
    if not vectors:
        return None, ""
    wanted = [space.modality] if space.modality else sorted(vectors, key=lambda name: name != TEXT)
    found = [vectors[name] for name in wanted if name in vectors]
    if not found:
        return None, f"of {', '.join(vectors)}, not {space.modality}"
    fitting = [vector_E for vector_E in found if len(vector_E) == space.width]
    if not fitting:
        return None, f"of another width than {space.width}"
    problem = problem_of(fitting[0])
    if problem is not None:
        return None, problem
    return unit_vectors(torch.from_numpy(np.asarray(fitting[0], np.float32))).numpy(), ""


def problem_of(vector_E: Sequence[float] | Float32Array) -> str | None:
    """Why a vector (float32 [E], or numbers) says nothing about an item; None where it does."""
    if not np.isfinite(vector_E).all():
        return "with values that are not finite"
    return None if np.any(vector_E) else "of zeros"


def unit_vectors(content_NE: Tensor) -> Tensor:
    """Float32 [..., E] of length 1, zeros where all are 0.

    Divided by its largest number first: the square of 1e30 or of 1e-30 is no float32.
    """
    largest_N1 = content_NE.abs().amax(dim=-1, keepdim=True)
    return functional.normalize(content_NE / torch.where(largest_N1 > 0, largest_N1, 1.0), dim=-1)
