"""The columns of the feature table, compiled: each writes one number for every candidate.

Owns which columns there are, under which names, and their order: that of `column_names` is that of the
calls in `fill_columns`.

Shapes: M candidates, R recent items (newest first), H half-lives, T history.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.arrays import Float32Array, Float64Array, Int64Array
from models.kernels.compiled import compiled

_HOUR_MS = 3_600_000.0
_DAY_MS = 86_400_000.0
# Ties are fractions of an event: without this, log1p would leave them all near 0.
_TIE_SCALE = 4.0
_SHARE_SCALE = 100.0


class FeatureInputs(NamedTuple):
    """What the columns read of M candidates, one user and one moment.

    `count_MH` and `total_M` (float64), `first_ms_M` and `last_ms_M` (int64, -1 without events) as in
    `ItemStatistics`; `announced_ms_M` int64, 0 where unknown; `tie_RM` and `share_RM` float64, as
    `LiveStatistics.ties` gives them; `cosine_RM` float32, of the content of each recent item and each
    candidate; `row_M` and `history_T` int64 catalogue rows; `last_event_ms` of the user and `time_ms`. Times
    are milliseconds since the Unix epoch.
    """

    count_MH: Float64Array
    total_M: Float64Array
    first_ms_M: Int64Array
    last_ms_M: Int64Array
    announced_ms_M: Int64Array
    tie_RM: Float64Array
    share_RM: Float64Array
    cosine_RM: Float32Array
    row_M: Int64Array
    history_T: Int64Array
    last_event_ms: int
    time_ms: int


@compiled
def _log1p(x: float) -> float:
    """log1p; most ties and many counts are 0, and 0 costs no call."""
    return 0.0 if x == 0.0 else np.log1p(x)


@compiled
def log_count(x: FeatureInputs, half_life: int, out_M: Float32Array) -> None:
    """log1p of the wishes decayed by one half-life."""
    for m in range(len(out_M)):
        out_M[m] = _log1p(x.count_MH[m, half_life])


@compiled
def log_count_total(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the wishes ever."""
    for m in range(len(out_M)):
        out_M[m] = _log1p(x.total_M[m])


@compiled
def momentum(x: FeatureInputs, half_life: int, out_M: Float32Array) -> None:
    """log1p of the first half-life's count less that of the given one's: above 0 for what is in fashion."""
    for m in range(len(out_M)):
        out_M[m] = _log1p(x.count_MH[m, 0]) - _log1p(x.count_MH[m, half_life])


@compiled
def tie_sum(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the scaled ties to all recent items."""
    for m in range(len(out_M)):
        out_M[m] = _log1p(_TIE_SCALE * x.tie_RM[:, m].sum())


@compiled
def tie_max(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the scaled strongest tie to a recent item."""
    for m in range(len(out_M)):
        strongest = 0.0
        for r in range(len(x.tie_RM)):
            strongest = max(strongest, x.tie_RM[r, m])
        out_M[m] = _log1p(_TIE_SCALE * strongest)


@compiled
def tie_to_last(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the scaled tie to the last item; 0 without one."""
    for m in range(len(out_M)):
        out_M[m] = _log1p(_TIE_SCALE * x.tie_RM[0, m]) if len(x.tie_RM) else 0.0


@compiled
def tie_share_sum(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the scaled ties to all recent items, each as a share of that item's ties."""
    for m in range(len(out_M)):
        out_M[m] = _log1p(_SHARE_SCALE * x.share_RM[:, m].sum())


@compiled
def tie_share_max(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the scaled largest share of a recent item's ties."""
    for m in range(len(out_M)):
        largest = 0.0
        for r in range(len(x.share_RM)):
            largest = max(largest, x.share_RM[r, m])
        out_M[m] = _log1p(_SHARE_SCALE * largest)


@compiled
def log_hours_since_event(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the hours since anybody wished for the item; 0 where nobody has."""
    for m in range(len(out_M)):
        elapsed_ms = max(x.time_ms - x.last_ms_M[m], 0) if x.last_ms_M[m] >= 0 else 0
        out_M[m] = _log1p(elapsed_ms / _HOUR_MS)


@compiled
def log_days_since_announced(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the days since the item was announced, or first wished for where that is not known; 0 where
    neither is."""
    for m in range(len(out_M)):
        birth_ms = x.announced_ms_M[m] if x.announced_ms_M[m] > 0 else x.first_ms_M[m]
        elapsed_ms = max(x.time_ms - birth_ms, 0) if birth_ms >= 0 else 0
        out_M[m] = _log1p(elapsed_ms / _DAY_MS)


@compiled
def no_event_yet(x: FeatureInputs, out_M: Float32Array) -> None:
    """1 where nobody has wished for the item."""
    for m in range(len(out_M)):
        out_M[m] = x.last_ms_M[m] < 0


@compiled
def announced_no_event_yet(x: FeatureInputs, out_M: Float32Array) -> None:
    """1 where nobody has wished for the item, and its announcement is known."""
    for m in range(len(out_M)):
        out_M[m] = x.last_ms_M[m] < 0 and x.announced_ms_M[m] > 0


@compiled
def cosine_to_last(x: FeatureInputs, out_M: Float32Array) -> None:
    """The cosine to the user's last item, by content; 0 without one."""
    for m in range(len(out_M)):
        out_M[m] = x.cosine_RM[0, m] if len(x.cosine_RM) else 0.0


@compiled
def cosine_to_recent_max(x: FeatureInputs, out_M: Float32Array) -> None:
    """The highest cosine to a recent item, by content; 0 without one."""
    for m in range(len(out_M)):
        nearest = np.float32(-1.0) if len(x.cosine_RM) else np.float32(0.0)
        for r in range(len(x.cosine_RM)):
            nearest = max(nearest, x.cosine_RM[r, m])
        out_M[m] = nearest


@compiled
def in_history(x: FeatureInputs, out_M: Float32Array) -> None:
    """1 where the user had the item."""
    for m in range(len(out_M)):
        out_M[m] = 0.0
        for t in range(len(x.history_T)):
            if x.history_T[t] == x.row_M[m]:
                out_M[m] = 1.0
                break


@compiled
def log_history_length(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the number of the user's events."""
    out_M[:] = _log1p(float(len(x.history_T)))


@compiled
def log_hours_since_user_event(x: FeatureInputs, out_M: Float32Array) -> None:
    """log1p of the hours since the user's last event; 0 without one."""
    elapsed_ms = max(x.time_ms - x.last_event_ms, 0) if len(x.history_T) else 0
    out_M[:] = _log1p(elapsed_ms / _HOUR_MS)


_NAMES_WITHOUT_HALF_LIFE = (
    "log_count_total",
    "momentum",
    "tie_sum",
    "tie_max",
    "tie_to_last",
    "tie_share_sum",
    "tie_share_max",
    "log_hours_since_event",
    "log_days_since_announced",
    "no_event_yet",
    "announced_no_event_yet",
    "cosine_to_last",
    "cosine_to_recent_max",
    "in_history",
    "log_history_length",
    "log_hours_since_user_event",
)


def column_names(half_lives_s: Sequence[float]) -> tuple[str, ...]:
    """The F names, in column order."""
    return (
        *(f"log_count_{half_life_s / 3600:g}h" for half_life_s in half_lives_s),
        *_NAMES_WITHOUT_HALF_LIFE,
    )


@compiled
def fill_columns(x: FeatureInputs, out_MF: Float32Array) -> None:
    """All F columns of all candidates."""
    num_half_lives = x.count_MH.shape[1]
    for half_life in range(num_half_lives):
        log_count(x, half_life, out_MF[:, half_life])
    own_MF = out_MF[:, num_half_lives:]
    log_count_total(x, own_MF[:, 0])
    momentum(x, num_half_lives - 1, own_MF[:, 1])
    tie_sum(x, own_MF[:, 2])
    tie_max(x, own_MF[:, 3])
    tie_to_last(x, own_MF[:, 4])
    tie_share_sum(x, own_MF[:, 5])
    tie_share_max(x, own_MF[:, 6])
    log_hours_since_event(x, own_MF[:, 7])
    log_days_since_announced(x, own_MF[:, 8])
    no_event_yet(x, own_MF[:, 9])
    announced_no_event_yet(x, own_MF[:, 10])
    cosine_to_last(x, own_MF[:, 11])
    cosine_to_recent_max(x, own_MF[:, 12])
    in_history(x, own_MF[:, 13])
    log_history_length(x, own_MF[:, 14])
    log_hours_since_user_event(x, own_MF[:, 15])
