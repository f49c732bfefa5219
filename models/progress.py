"""How long work says how far it is: one callback, drawn by whoever has a screen."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """`progress(stage, num_done, num_total, figures)`; the figures (losses, metrics) may be left out."""

    def __call__(
        self, stage: str, num_done: int, num_total: int, figures: Mapping[str, float] | None = None, /
    ) -> None: ...


def quietly(stage: str, num_done: int, num_total: int, figures: Mapping[str, float] | None = None, /) -> None:
    """Tells nobody."""
