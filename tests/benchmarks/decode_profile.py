"""Where the time of a decode goes: torch's profiler, its operators put into a few groups.

Profiling slows a call down, so its shares are applied to the time of calls that were not profiled. The
search's compiled functions are no operators of torch: while profiling, each call of one is recorded. What
then is not accounted for is Python, dispatch and the profiler's own share of both.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from decode_latency import Effort
from decode_worlds import Baselines, K, World, histories, name_of
from harness import percentiles, seconds_of
from torch.profiler import ProfilerActivity, profile, record_function

from models.decoding.generation import generate

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports every start and stop otherwise

BEAM = 50
COMPILED = "compiled search"
REST = "python and dispatch"
_GROUPS = {
    "matrix products": """
        mm addmm bmm baddbmm linear matmul mkldnn_linear _addmm_activation dot mv
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
    """,
    "softmax": "softmax _softmax log_softmax _log_softmax segment_reduce exp log logsumexp",
    "top-k and sort": "topk sort argsort max amax",
    "gather and trie": """
        index index_select gather embedding take repeat_interleave nonzero searchsorted bincount
        cumsum arange where masked_fill masked_fill_ index_put_ _index_put_impl_ scatter scatter_
        unique _unique2 bucketize isin
    """,
    "copies and casts": """
        copy_ to _to_copy clone contiguous cat stack fill_ zero_ zeros full new_full empty
        empty_like empty_strided resize_ pad constant_pad_nd
    """,
    "norms and pointwise": """
        layer_norm native_layer_norm _fused_rms_norm rms_norm gelu silu relu add add_ sub sub_ mul
        mul_ div div_ sum mean pow rsqrt sqrt clamp clamp_ clamp_min minimum maximum gt lt le ge eq
        ne bitwise_not bitwise_and any all remainder floor_divide
    """,
}
# views of tensors compute nothing: their time is that of the call
_VIEWS = """
    slice select as_strided as_strided_ view view_as reshape _reshape_alias transpose t unbind expand squeeze
    unsqueeze permute flatten narrow item _local_scalar_dense is_nonzero resolve_conj resolve_neg detach
"""
_GROUP_OF = {f"aten::{name}": group for group, names in _GROUPS.items() for name in names.split()}
_GROUP_OF |= {f"aten::{name}": REST for name in _VIEWS.split()}
GROUPS = ["trunk", *_GROUPS, COMPILED, "other operators", REST]


def profiles(world: World, baselines: Baselines, batches: list[int], effort: Effort) -> list[dict[str, Any]]:
    """A row for each system, dtype, batch and group: `ms` and `share` of one cold decode of 20 events."""
    rows = []
    for batch in batches:
        history = histories(len(world.catalogue), batch, 20)
        for dtype, engine in world.engines.items():
            state_BD = engine.states(history).state_BD

            def warm(engine: Any = engine, history: Any = history, state_BD: Any = state_BD) -> None:
                generate(engine, history, k=K, beam=BEAM, use_dense=False, state_BD=state_BD)

            def trunk(engine: Any = engine, history: Any = history) -> None:
                engine.states(history)

            spent = {"trunk": _median_ms(trunk, effort), **_by_group(warm, effort)}
            rows += _rows("headrace", name_of(dtype), batch, spent)
        for cell in baselines.cells("torch", batch=batch, beam=BEAM, length=20):
            rows += _rows("torch", cell.facts["dtype"], batch, _by_group(cell.work, effort))
    return rows


def _rows(system: str, dtype: str, batch: int, spent: dict[str, float]) -> list[dict[str, Any]]:
    total = sum(spent.values())
    return [
        {"system": system, "dtype": dtype, "batch": batch, "group": group, "ms": ms, "share": ms / total}
        for group, ms in spent.items()
    ]


def _median_ms(work: Callable[[], object], effort: Effort) -> float:
    work()
    num_calls = effort.num_calls(seconds_of(work))
    return percentiles([seconds_of(work) for _ in range(num_calls)])["p50_ms"]


def _by_group(work: Callable[[], object], effort: Effort) -> dict[str, float]:
    """Milliseconds of one call by group."""
    plain_ms = _median_ms(work, effort)
    num_calls = min(20, effort.num_calls(plain_ms / 1e3))
    with _compiled_recorded(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        wall_s = sum(seconds_of(work) for _ in range(num_calls))
    spent_s = dict.fromkeys([*_GROUPS, COMPILED, "other operators", REST], 0.0)
    for event in profiler.key_averages():
        spent_s[_group_of(event.key)] += event.self_cpu_time_total / 1e6
    spent_s[REST] += max(0.0, wall_s - sum(spent_s.values()))
    total_s = sum(spent_s.values())
    return {group: spent / total_s * plain_ms for group, spent in spent_s.items() if spent}


@contextmanager
def _compiled_recorded() -> Iterator[None]:
    """Makes the profiler see the compiled functions (Numba's) that the modules of `models` call."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if not name.startswith("models.") or name.startswith("models.kernels"):
                continue
            for attribute, function in list(vars(module).items()):
                if hasattr(function, "py_func"):
                    stack.enter_context(patch.object(module, attribute, _recorded(attribute, function)))
        yield


def _recorded(name: str, function: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        with record_function(f"headrace::{name}"):
            return function(*args, **kwargs)

    return call


def _group_of(operator: str) -> str:
    """An operator that is not torch's own is a compiled function or graph."""
    namespace = operator.rpartition("::")[0]
    if namespace in ("aten", ""):
        return _GROUP_OF.get(operator, "other operators")
    return "matrix products" if namespace in ("mkldnn", "onednn") else COMPILED
