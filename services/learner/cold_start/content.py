"""What an item is known by before anybody acted on it: one content vector each, all of one width.

Where at least half of the events are on items that bring vectors of their own, those are taken (without
events, where half of the items do). An item without one then gets the mean of its neighbours' in the users'
histories; one without such neighbours is left out, and counted. Where fewer bring one, the texts of all are
embedded: vectors of two origins have no common space. A vector that cannot be used beside the others (of
another width than most, or with values that are not finite) is as none, and named: a topic may hold anything.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.tokenizers.content import unit_vectors
from models.tokenizers.text import TextEmbedder, item_text
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""`progress(stage, number done, number in all, figures)`."""

_FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Content:
    """`content_NE` float32, L2-normalised; `kept` are the places of its N items among those given."""

    content_NE: Tensor
    kept: list[int]
    notes: list[str]


def item_content(items: Sequence[Item], events: Sequence[Event], progress: Progress) -> Content:
    """The content of each item; `events` in the order of each user."""
    own, notes = own_vectors(items)
    missing = [n for n, vector in enumerate(own) if vector is None]
    if not _are_enough(items, own, events):
        if len(missing) < len(items):
            num_own = len(items) - len(missing)
            notes = [
                f"{num_own:,} of {len(items):,} items bring a vector, for less than half of the events: the "
                "texts of all are embedded instead"
            ]
        return Content(content_NE=_embedded(items, progress), kept=list(range(len(items))), notes=notes)
    found = dict(enumerate(own))
    if missing:
        found |= _neighbours_mean(items, own, events)
        left_out = [items[n].item_id for n in missing if found[n] is None]
        notes.append(
            f"{len(missing):,} of {len(items):,} items have no vector of their own (such as "
            f"{items[missing[0]].item_id!r}): {len(missing) - len(left_out):,} take their neighbours' mean, "
            f"{len(left_out):,} are left out"
        )
    kept = [n for n in range(len(items)) if found[n] is not None]
    stacked_NE = torch.from_numpy(np.stack([vector for n in kept if (vector := found[n]) is not None]))
    return Content(content_NE=unit_vectors(stacked_NE), kept=kept, notes=notes)


def _are_enough(items: Sequence[Item], own: Sequence[_FloatArray | None], events: Sequence[Event]) -> bool:
    has_own = {item.item_id: vector is not None for item, vector in zip(items, own, strict=True)}
    known = [has_own[event.item_id] for event in events if event.item_id in has_own]
    counted = known or list(has_own.values())
    return any(counted) and 2 * sum(counted) >= len(counted)


def own_vectors(items: Sequence[Item]) -> tuple[list[_FloatArray | None], list[str]]:
    """Each item's own vector (`text` first), and a line on those that cannot be used.

    None without one, with one of another width than most or of values that are not finite, or with zeros
    only, which say nothing.
    """
    found = [_own_vector(item) for item in items]
    widths = Counter(len(vector) for vector in found if vector is not None)
    width = max(widths, key=lambda one: (widths[one], one), default=0)
    vectors: list[_FloatArray | None] = []
    unusable: dict[str, list[str]] = {}
    for item, vector in zip(items, found, strict=True):
        if vector is not None and len(vector) != width:
            unusable.setdefault(f"of another width than {width}", []).append(item.item_id)
            vector = None
        elif vector is not None and not np.isfinite(vector).all():
            unusable.setdefault("with values that are not finite", []).append(item.item_id)
            vector = None
        vectors.append(vector if vector is not None and vector.any() else None)
    notes = [
        f"{len(ids):,} items bring a vector {why} (such as {ids[0]!r}), which counts as none"
        for why, ids in unusable.items()
    ]
    return vectors, notes


def _own_vector(item: Item) -> _FloatArray | None:
    embeddings = sorted(item.embeddings, key=lambda embedding: embedding.modality != "text")
    return np.asarray(embeddings[0].values, dtype=np.float32) if embeddings else None


def _embedded(items: Sequence[Item], progress: Progress) -> Tensor:
    texts = [item_text(item.title, item.brand, item.categories) for item in items]
    return TextEmbedder().embed_many(texts, lambda done, total: progress("embed items", done, total, {}))


def _neighbours_mean(
    items: Sequence[Item], own: Sequence[_FloatArray | None], events: Sequence[Event]
) -> dict[int, _FloatArray | None]:
    """For each item without a vector: the mean of those right before and after it in the users' histories."""
    place = {item.item_id: n for n, item in enumerate(items)}
    sums: dict[int, _FloatArray | None] = {n: None for n, vector in enumerate(own) if vector is None}
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
