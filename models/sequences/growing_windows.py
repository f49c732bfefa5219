"""What an online step reads: sequences with new events at the end, cut into supervised windows.

The same form as offline training's (`models.sequences.windows`), for sequences that grow. All events are
wishes; each is predicted from those before it.

Shapes: B windows, T positions of a window.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from models.sequences.histories import Past, pad_pasts
from models.sequences.windows import TrainingBatch, cut_targets

# Fewer padded positions cost less than another pass of the trunk.
_WORTH_A_GROUP = 256

Window = tuple[Past, npt.NDArray[np.bool_]]
"""Events, and which of them are to be predicted."""


def cut_windows(past: Past, is_new_T: npt.NDArray[np.bool_], max_history: int) -> list[Window]:
    """Windows in which each new event (`is_new_T` bool) is predicted once, cut as offline training cuts them.

    See `models.sequences.windows.cut_targets`. A window ends with its last target; it begins as early as it
    may, since most new events are the newest of a long history, and are served with all of it.
    """
    windows = []
    for _, target_N in cut_targets(np.nonzero(is_new_T)[0], max_history):
        end = int(target_N[-1]) + 1
        begin = max(0, end - 1 - max_history)
        is_target_T = np.zeros(end - begin, dtype=np.bool_)
        is_target_T[target_N - begin] = True
        windows.append((past.cut(begin, end), is_target_T))
    return windows


def whole_window(past: Past) -> Window:
    """One window that predicts each event but the first."""
    is_target_T = np.ones(len(past), dtype=np.bool_)
    is_target_T[:1] = False
    return past, is_target_T


def group_by_length(windows: Sequence[Window]) -> list[list[Window]]:
    """The windows in one group, or in a short and a long one where that spares many padded positions."""
    ordered = sorted(windows, key=lambda window: len(window[0]))
    lengths = np.array([len(past) for past, _ in ordered])
    if not len(lengths):
        return []
    num_short = np.arange(1, len(lengths) + 1)
    padded = num_short * lengths + (len(lengths) - num_short) * lengths[-1]
    best = int(padded.argmin())
    if padded[-1] - padded[best] <= _WORTH_A_GROUP:
        return [ordered]
    return [ordered[: best + 1], ordered[best + 1 :]]


def training_batch(windows: Sequence[Window], max_history: int) -> TrainingBatch:
    """B windows as one padded batch; a window's last event is a target only, never an input."""
    history = pad_pasts([past.cut(0, len(past) - 1) for past, _ in windows], max_history)
    target_BT = np.full(tuple(history.item_BT.shape), -1, dtype=np.int64)
    first_B = np.full(len(windows), -1, dtype=np.int64)
    for b, (past, is_target_T) in enumerate(windows):
        target_T = np.where(is_target_T, past.item_T, -1)
        target_BT[b, : len(past) - 1] = target_T[1:]
        first_B[b] = target_T[0]
    return TrainingBatch(
        history=history, target_BT=torch.from_numpy(target_BT), first_B=torch.from_numpy(first_B)
    )
