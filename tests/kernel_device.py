"""Where the tests of kernels run them: in Triton's interpreter, or, with TRITON_INTERPRET=0, on a GPU.

What a test makes and compares lies on the CPU in both cases; so do gradients.
"""

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, and what holds them, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: moved(getattr(value, one.name), device) for one in fields(value)})
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(moved(one, device) for one in value)
    return value


def on_device(launch: Callable[P, R]) -> Callable[P, R]:
    """`launch` run on the device, with its result back on the CPU."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = {name: moved(value, DEVICE) for name, value in kwargs.items()}
        result: R = moved(launch(*moved(args, DEVICE), **given), torch.device("cpu"))
        return result

    return run
