"""The Triton kernels on a GPU, beside torch: eager, and compiled by torch.compile.

    make bench-kernels                                  # some minutes; needs a CUDA device
    python tests/benchmarks/bench_kernels.py --quick

Every row's contestants run on the same tensors; milliseconds are medians of `triton.testing.do_bench` (caches
flushed between calls), with their 20% to 80% quantiles in the results. What a contestant cannot do has no
figure, and its error is shown. Scaled dot product attention is another function (softmax, no bias): it stands
there for scale alone.

Writes results/kernels-gpu.json and the table of docs/benchmarks/kernels.md.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import console, emit, markdown_table, parser, readme_table, show, write_results
from torch import Tensor
from torch.nn import functional

from models.kernels.beam_step import beam_step
from models.kernels.beam_step_torch import Children, beam_step_reference
from models.kernels.hstu_attention import hstu_attention
from models.kernels.item_embedding import embed_items, embed_items_reference
from models.networks import hstu_trunk as hstu

Contestants = dict[str, Callable[[], object]]
V, HEADS, HEAD_WIDTH, WIDTH, CONTENT_WIDTH, NUM_CODES = 256, 4, 64, 256, 384, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DAY_MS = 86_400_000


def beam_steps(batch_size: int, num_beams: int, dtype: torch.dtype) -> Contestants:
    """The second level of a full trie: every beam has 256 children."""
    children = Children(
        offset_P1=torch.arange(0, V * V + 1, V, dtype=torch.int32),
        code_R=torch.arange(V, dtype=torch.int16).repeat(V),
        child_R=torch.arange(V * V, dtype=torch.int32),
        live_N=torch.ones(V * V, dtype=torch.int32),
        max_children=V,
    )
    logits = torch.randn(batch_size, num_beams, V, dtype=dtype)
    node = torch.randint(V, (batch_size, num_beams))
    score = -torch.rand(batch_size, num_beams)
    compiled = torch.compile(beam_step_reference, dynamic=False)
    arguments = (logits, score, node, children)
    return {
        "kernel": lambda: beam_step(*arguments, width=num_beams),
        "torch": lambda: beam_step_reference(*arguments, width=num_beams),
        "compiled": lambda: compiled(*arguments, width=num_beams),
    }


def attentions(batch_size: int, length: int, dtype: torch.dtype, *, backward: bool) -> Contestants:
    """Histories of one length, so that torch's batch has no padding."""
    shape = (batch_size * length, HEADS, HEAD_WIDTH)
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=backward) for _ in range(3))
    position_PH = torch.randn(256, HEADS, requires_grad=backward)
    time_RH = torch.randn(48, HEADS, requires_grad=backward)
    time_ms_BT = torch.randint(_DAY_MS, (batch_size, length)).cumsum(1)
    offset_B1 = torch.arange(0, batch_size * length + 1, length)
    no_candidates_B = torch.zeros(batch_size, dtype=torch.int64)
    position_T = torch.arange(length)
    distance_TT = position_T[:, None] - position_T

    def kernel() -> Tensor:
        return hstu_attention(
            q,
            k,
            v,
            time_ms_BT.flatten(),
            offset_B1,
            no_candidates_B,
            position_PH,
            time_RH,
            max_length=length,
        )

    def batched(x: Tensor) -> Tensor:
        return x.view(batch_size, length, HEADS, HEAD_WIDTH).transpose(1, 2)

    def torch_all_pairs() -> Tensor:
        bucket_BTT = hstu.time_bucket(time_ms_BT[:, :, None] - time_ms_BT[:, None]).clamp(max=47)
        bias_BHTT = (position_PH[distance_TT.clamp(0, 255)] + time_RH[bucket_BTT]).permute(0, 3, 1, 2)
        return hstu.hstu_attention(batched(q), batched(k), batched(v), bias_BHTT, distance_TT >= 0)

    def sdpa() -> Tensor:
        return functional.scaled_dot_product_attention(batched(q), batched(k), batched(v), is_causal=True)

    def measured(attend: Callable[[], Tensor], *tables: Tensor) -> Callable[[], object]:
        learned = (q, k, v, *tables)
        return (lambda: torch.autograd.grad(attend().sum(), learned)) if backward else attend

    return {
        "kernel": measured(kernel, position_PH, time_RH),
        "torch": measured(torch_all_pairs, position_PH, time_RH),
        "compiled": measured(torch.compile(torch_all_pairs, dynamic=False), position_PH, time_RH),
        "sdpa": measured(sdpa),
    }


def embeddings(num_items: int, dtype: torch.dtype) -> Contestants:
    """What the catalogue's items are encoded by."""
    arguments = (
        torch.randint(V, (num_items, NUM_CODES)),
        torch.randn(num_items, CONTENT_WIDTH, dtype=dtype),
        torch.randn(NUM_CODES, V, WIDTH, dtype=dtype),
        torch.randn(WIDTH, CONTENT_WIDTH, dtype=dtype),
        torch.randn(WIDTH, dtype=dtype),
    )
    compiled = torch.compile(embed_items_reference, dynamic=False)
    return {
        "kernel": lambda: embed_items(*arguments),
        "torch": lambda: embed_items_reference(*arguments),
        "compiled": lambda: compiled(*arguments),
    }


def problems(*, quick: bool) -> Iterator[tuple[str, str, str, Callable[[], Contestants]]]:
    """(kernel, size, dtype, how its contestants are made)."""
    for name, dtype in DTYPES.items():
        for batch_size, num_beams in [(1, 50)] if quick else [(1, 50), (32, 50), (32, 200), (256, 50)]:
            yield (
                "beam_step",
                f"{batch_size} requests x {num_beams} beams x {V} children",
                name,
                lambda b=batch_size, k=num_beams, t=dtype: beam_steps(b, k, t),  # type: ignore[misc]
            )
        for batch_size, length in [(4, 64)] if quick else [(256, 64), (32, 512), (8, 2048)]:
            for backward in (False, True):
                yield (
                    "hstu_attention" + (", with gradients" if backward else ""),
                    f"{batch_size} x {length} events",
                    name,
                    lambda b=batch_size, n=length, t=dtype, g=backward: attentions(b, n, t, backward=g),  # type: ignore[misc]
                )
        for num_items in [1_000] if quick else [12_101, 100_000]:
            yield "embed_items", f"{num_items:,} items", name, lambda n=num_items, t=dtype: embeddings(n, t)  # type: ignore[misc]


def row_of(contestants: Contestants) -> dict[str, Any]:
    """Median milliseconds of each, and its quantiles; nothing of one that fails."""
    from triton.testing import do_bench

    row: dict[str, Any] = {}
    for name, run in contestants.items():
        try:
            low, median, high = do_bench(run, warmup=50, rep=200, quantiles=[0.2, 0.5, 0.8])
        except RuntimeError as error:
            console.print(f"{name}: {error}")
            torch.cuda.empty_cache()
            continue
        row |= {f"{name}_ms": median, f"{name}_spread_ms": [low, high]}
    return row


def main() -> None:
    """The command; exit code 1 where there is no GPU."""
    options = parser(__doc__, threads=1).parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_kernels needs a CUDA device, and this machine has none")
    torch.set_default_device("cuda")
    torch.manual_seed(0)
    rows = []
    for kernel, size, dtype, make in problems(quick=options.quick):
        torch.compiler.reset()  # else, after some sizes, it compiles no more
        rows.append({"kernel": kernel, "size": size, "dtype": dtype, **row_of(make())})
        console.print(rows[-1])
        torch.cuda.empty_cache()
    titles = {"kernel": "kernel", "size": "size", "dtype": "dtype"} | {
        f"{name}_ms": f"{title}, ms"
        for name, title in {
            "kernel": "ours",
            "torch": "torch",
            "compiled": "torch.compile",
            "sdpa": "(SDPA)",
        }.items()
    }
    payload = {"rows": rows, "gpu": torch.cuda.get_device_name()}
    torch.set_default_device("cpu")
    show("kernels on a GPU", rows, titles)
    write_results("kernels-gpu", payload, quick=options.quick)
    readme_table("kernels-gpu", markdown_table(rows, titles), quick=options.quick)
    if options.json:
        emit(payload)


if __name__ == "__main__":
    main()
