"""Which kernels are compiled, for which sizes and number formats: those of the default model.

A size that a launch would choose is asked of the launch's own function, so what is reported is what runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from models.decoding.config import SearchConfig
from models.kernels import hstu_formula, item_embedding_triton
from models.kernels.beam_step_triton import NUM_WARPS, beam_step_kernel, block_sizes
from models.kernels.hstu_backward_triton import hstu_backward_keys_kernel, hstu_backward_queries_kernel
from models.kernels.hstu_forward_triton import hstu_forward_kernel
from models.kernels.hstu_triton import BACKWARD_BLOCK, FORWARD_BLOCK, constants
from models.kernels.hstu_triton import NUM_WARPS as HSTU_NUM_WARPS
from models.kernels.item_embedding_triton import embed_items_kernel
from models.networks.config import ModelConfig

DEFAULT_NUM_WARPS = 4
NUM_EXCLUDED = 64  # enough for the longest history that the default model reads
DTYPES = {"float32": "*fp32", "bfloat16": "*bf16"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kernel at one size: Triton types of its arguments by name, and its compile-time constants."""

    kernel: Any
    name: str
    dtype: str
    what: str
    types: Mapping[str, str]
    constants: Mapping[str, int | bool]
    num_warps: int = DEFAULT_NUM_WARPS


def all_variants(model: ModelConfig, search: SearchConfig, dtypes: Iterable[str]) -> list[Variant]:
    """Every kernel in each of these formats (keys of DTYPES)."""
    found = []
    for dtype in dtypes:
        pointer = DTYPES[dtype]
        found += _beam_step(dtype, pointer, model, search)
        found += _hstu(dtype, pointer, model)
        found.append(_embed_items(dtype, pointer, model))
    return found


def _beam_step(dtype: str, pointer: str, model: ModelConfig, search: SearchConfig) -> list[Variant]:
    types = dict.fromkeys(
        ("offset_ptr", "child_ptr", "live_ptr"), "*i32"
    )  # as `models.catalogue.trie` has them
    types |= {"code_ptr": "*i16", "node_ptr": "*i64"}
    types |= {"logits_ptr": pointer, "score_ptr": "*fp32", "scratch_ptr": "*i32", "score_out_ptr": "*fp32"}
    types |= dict.fromkeys(("excluded_ptr", "excluded_count_ptr"), "*i64")
    types |= dict.fromkeys(("parent_out_ptr", "code_out_ptr", "child_out_ptr"), "*i64")
    size = model.codebook_size
    # from the root there is one beam: Triton compiles numbers that are 1 in
    forms: list[tuple[str, int, dict[str, int]]] = [
        ("children", search.beam, {}),
        ("root", 1, {"num_beams": 1, "num_parents": 1}),
    ]
    return [
        Variant(
            kernel=beam_step_kernel,
            name=f"beam_step/{form}",
            dtype=dtype,
            what=f"beam {beam}, {size} codes, up to {size} children",
            types=types,
            constants={
                "NUM_EXCLUDED": NUM_EXCLUDED,
                "NUM_HALVINGS": NUM_EXCLUDED.bit_length() - 1,
                **block_sizes(beam, size),
                **ones,
            },
            num_warps=NUM_WARPS,
        )
        for form, beam, ones in forms
    ]


def _hstu(dtype: str, pointer: str, model: ModelConfig) -> list[Variant]:
    head_width = model.d_model // model.num_heads
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), pointer)
    types |= dict.fromkeys(("grad_out_ptr", "grad_q_ptr", "grad_k_ptr", "grad_v_ptr"), pointer)
    types |= dict.fromkeys(("time_ptr", "offset_ptr", "num_candidates_ptr"), "*i64")
    types |= dict.fromkeys(("position_ptr", "time_table_ptr", "grad_position_ptr", "grad_time_ptr"), "*fp32")
    blocks = {
        hstu_forward_kernel: FORWARD_BLOCK[4 if dtype == "float32" else 2],
        hstu_backward_queries_kernel: BACKWARD_BLOCK,
        hstu_backward_keys_kernel: BACKWARD_BLOCK,
    }
    return [
        Variant(
            kernel=kernel,
            name=str(kernel.__name__).removesuffix("_kernel"),
            dtype=dtype,
            what=f"{model.num_heads} heads of {head_width}, blocks of {block}",
            types=types,
            constants=constants(
                num_heads=model.num_heads,
                width=head_width,
                num_distances=hstu_formula.NUM_DISTANCES,
                num_time_buckets=hstu_formula.NUM_TIME_BUCKETS,
                block=block,
                in_float32=False,
            ),
            num_warps=HSTU_NUM_WARPS,
        )
        for kernel, block in blocks.items()
    ]


def _embed_items(dtype: str, pointer: str, model: ModelConfig) -> Variant:
    types = dict.fromkeys(("content_ptr", "table_ptr", "weight_ptr", "bias_ptr", "out_ptr"), pointer)
    return Variant(
        kernel=embed_items_kernel,
        name="embed_items",
        dtype=dtype,
        what=f"{model.num_levels + 1} codes, content {model.content_dim} to {model.d_model}",
        types=types | {"codes_ptr": "*i64"},
        constants={
            "NUM_CODES": model.num_levels + 1,
            "IN_FLOAT32": False,
            "BLOCK_N": item_embedding_triton.BLOCK_N,
            "BLOCK_D": item_embedding_triton.BLOCK_D,
            "BLOCK_E": item_embedding_triton.BLOCK_E,
        },
    )
