"""What an item is known by before anybody acted on it: one content vector each, all of one width.

Where at least half of the events are on items that bring vectors of their own, those are taken (without
events, where half of the items do). An item without one then gets the mean of its neighbours' in the users'
histories; one without such neighbours is left out, and counted. Where fewer bring one, the texts of all are
embedded: vectors of two origins have no common space. Which vectors can be compared is
`models/tokenizers/content.py`'s; one that cannot be used beside the others counts as none and is reported: a
topic may hold anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array
from models.progress import Progress
from models.tokenizers.content import TEXT, common_space, unit_vectors, vector_in
from models.tokenizers.text import TextEmbedder, item_text
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from services.wire.translate import vectors_of


@dataclass(frozen=True, kw_only=True)
class Content:
    """`content_NE` float32, L2-normalised, of one modality; `kept` are the places of its N items among those
    given."""

    content_NE: Tensor
    kept: list[int]
    modality: str
    notes: list[str]


def item_content(items: Sequence[Item], events: Sequence[Event], progress: Progress) -> Content:
    """The content of each item; `events` in the order of each user."""
    brought = [vectors_of(item) for item in items]
    space = common_space(brought)
    if space is None:
        return _embedded(items, progress, [])
    found = [vector_in(space, vectors) for vectors in brought]
    own = [vector for vector, _ in found]
    missing = [n for n, vector in enumerate(own) if vector is None]
    if not _are_enough(items, own, events):
        num_own = len(items) - len(missing)
        note = (
            f"{num_own:,} of {len(items):,} items bring a vector, for less than half of the events: the "
            "texts of all are embedded instead"
        )
        return _embedded(items, progress, [note])
    notes = _unusable(items, [problem for _, problem in found])
    content = dict(enumerate(own))
    if missing:
        content |= _neighbours_mean(items, own, events)
        left_out = [items[n].item_id for n in missing if content[n] is None]
        notes.append(
            f"{len(missing):,} of {len(items):,} items have no vector of their own (such as "
            f"{items[missing[0]].item_id!r}): {len(missing) - len(left_out):,} take their neighbours' mean, "
            f"{len(left_out):,} are left out"
        )
    kept = [n for n in range(len(items)) if content[n] is not None]
    stacked_NE = torch.from_numpy(np.stack([vector for n in kept if (vector := content[n]) is not None]))
    return Content(content_NE=unit_vectors(stacked_NE), kept=kept, modality=space.modality, notes=notes)


def _are_enough(items: Sequence[Item], own: Sequence[Float32Array | None], events: Sequence[Event]) -> bool:
    has_own = {item.item_id: vector is not None for item, vector in zip(items, own, strict=True)}
    known = [has_own[event.item_id] for event in events if event.item_id in has_own]
    counted = known or list(has_own.values())
    return any(counted) and 2 * sum(counted) >= len(counted)


def _unusable(items: Sequence[Item], problems: Sequence[str]) -> list[str]:
    """A line for each reason why vectors count as none."""
    ids: dict[str, list[str]] = {}
    for item, problem in zip(items, problems, strict=True):
        if problem:
            ids.setdefault(problem, []).append(item.item_id)
    return [
        f"{len(some):,} items bring a vector {problem} (such as {some[0]!r}), which counts as none"
        for problem, some in ids.items()
    ]


def _embedded(items: Sequence[Item], progress: Progress, notes: list[str]) -> Content:
    texts = [item_text(item.title, item.brand, item.categories) for item in items]
    content_NE = TextEmbedder().embed_many(texts, progress)
    return Content(content_NE=content_NE, kept=list(range(len(items))), modality=TEXT, notes=notes)


def _neighbours_mean(
    items: Sequence[Item], own: Sequence[Float32Array | None], events: Sequence[Event]
) -> dict[int, Float32Array | None]:
    """For each item without a vector: the mean of those right before and after it in the users' histories."""
    place = {item.item_id: n for n, item in enumerate(items)}
    sums: dict[int, Float32Array | None] = {n: None for n, vector in enumerate(own) if vector is None}
    last: dict[str, int] = {}
    for event in events:
        here = place.get(event.item_id)
        if here is None:
            continue
        before = last.get(event.user_id)
        last[event.user_id] = here
        for one, other in ((before, here), (here, before)):
            if one is None or other is None or one not in sums or (vector := own[other]) is None:
                continue
            unit = unit_vectors(torch.from_numpy(vector)).numpy()
            total = sums[one]
            sums[one] = unit if total is None else total + unit
    return sums
