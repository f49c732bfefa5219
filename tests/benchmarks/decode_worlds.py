"""What the decoding benchmark decodes: catalogues, histories, and each system as calls to be timed.

Weights are random: they decide which items are found, not how long it takes. What decides that are the
codes: where a prefix has one child there is nothing to choose. So there are two catalogues, one of
random distinct codes and one of a codebook fitted to real content.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from harness import data_folder, machine
from torch import Tensor

from models.baselines.hf_decode import HfDecoder, history_tokens, tiger_t5
from models.baselines.torch_decode import TorchDecoder
from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.generation import Generation, generate
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from models.tokenizers.codebook import Codebook
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

NUM_ITEMS = 12_101  # as many as Amazon Beauty has
K = 10
V = 256
NUM_LEVELS = 3
_CLICK = 2
_DAY_MS = 86_400_000
_NOW_MS = 1_700_000_000_000


def dtypes() -> list[torch.dtype]:
    """float32, and bfloat16 where this machine was measured to be faster in it.

    The rates are the harness's, measured for longer than `models.device.compute_dtype` does at start.
    """
    rates = machine()["matmul_tflops"]
    is_faster = rates["bfloat16"] > rates["float32"]
    return [torch.float32, torch.bfloat16] if is_faster else [torch.float32]


def name_of(dtype: torch.dtype) -> str:
    """float32, bfloat16, ..."""
    return str(dtype).removeprefix("torch.")


def random_codes(num_items: int) -> Tensor:
    """Distinct SIDs, int64 [N, 4]: three random codes, and a last one that tells twins apart.

    The first rows of more items are the same.
    """
    random = np.random.default_rng(0)
    key_N = random.integers(V**NUM_LEVELS, size=num_items)
    order_N = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order_N]
    twin_N = np.empty(num_items, np.int64)
    twin_N[order_N] = np.arange(num_items) - np.searchsorted(sorted_N, sorted_N)
    codes_NC = np.stack([key_N // V**2, key_N // V % V, key_N % V, twin_N], axis=1)
    return torch.from_numpy(codes_NC)


def catalogue_of(codes_NC: Tensor, content_NE: Tensor, codebook: Codebook) -> CatalogueIndex:
    """The index of items item-0, item-1, ... with these codes."""
    num_items, width = content_NE.shape
    columns = {
        "item_id": pa.array([f"item-{n}" for n in range(num_items)], pa.string()),
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes_NC.flatten().numpy()), codes_NC.shape[1]),
        "content": pa.FixedSizeListArray.from_arrays(pa.array(content_NE.flatten().numpy()), width),
        "available": pa.array(np.ones(num_items, np.bool_)),
        "announced_ms": pa.array(np.zeros(num_items, np.int64)),
    }
    return CatalogueIndex.from_table(
        pa.table(columns, metadata={"num_disambiguation": str(codebook.codebook_size)}), codebook
    )


def random_codebook(content_dim: int) -> Codebook:
    """Random centroids: it only has to have the right shape."""
    generator = torch.Generator().manual_seed(0)
    return Codebook(torch.randn(NUM_LEVELS, V, content_dim, generator=generator))


def random_content(num_items: int, content_dim: int) -> Tensor:
    """Float32 [N, E]."""
    return torch.randn(num_items, content_dim, generator=torch.Generator().manual_seed(0))


def random_catalogue(num_items: int, *, content_dim: int) -> CatalogueIndex:
    """Random codes and content."""
    content_NE = random_content(num_items, content_dim)
    return catalogue_of(random_codes(num_items), content_NE, random_codebook(content_dim))


def beauty_catalogue() -> CatalogueIndex:
    """The real items of Amazon Beauty, coded as training codes them; FileNotFoundError without the data."""
    folder = data_folder("amazon_beauty")
    with gzip.open(folder / "items.jsonl.gz", "rt", encoding="utf-8") as lines:
        item_ids = [str(json.loads(line)["item_id"]) for line in lines]
    vectors = np.load(next(folder.glob("title_emb*.npy"))).astype(np.float32)
    content_NE = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    index = CatalogueIndex(fit_codebook(content_NE, CodebookConfig()))
    index.add_many(item_ids, content_NE, np.zeros(len(item_ids), np.int64))
    return index


def histories(num_items: int, batch: int, length: int, *, seed: int = 0) -> HistoryBatch:
    """`batch` users with `length` random clicks each, about a day apart."""
    random = np.random.default_rng(seed)
    times_ms = _NOW_MS + random.integers(1, 2 * _DAY_MS, (batch, length)).cumsum(axis=1)
    return HistoryBatch.from_lists(
        random.integers(num_items, size=(batch, length)).tolist(),
        [[_CLICK] * length] * batch,
        times_ms.tolist(),
        max_history=length,
    )


def recommender_for(**changes: Any) -> GenerativeRecommender:
    """The generator's network at its default size, with random weights and the given settings changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GenerativeRecommender(ModelConfig(**changes)).eval()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the results and the call that it times; `facts` are the row's other columns."""

    facts: dict[str, Any]
    work: Callable[[], object]

    @property
    def label(self) -> str:
        """For the progress bar."""
        return " ".join(str(self.facts[key]) for key in ("system", "variant", "dtype", "batch", "beam"))


@dataclass
class World:
    """One catalogue with our engine on it, once for each dtype."""

    codes: str
    catalogue: CatalogueIndex
    recommender: GenerativeRecommender
    engines: dict[torch.dtype, CpuEngine] = field(default_factory=dict)

    @classmethod
    def of(cls, codes: str, catalogue: CatalogueIndex, **changes: Any) -> "World":
        """A network for this catalogue; `changes` are settings that differ from the default."""
        recommender = recommender_for(content_dim=catalogue.codebook.content_dim, **changes)
        world = cls(codes, catalogue, recommender)
        for dtype in dtypes():
            world.engines[dtype] = CpuEngine(recommender, catalogue, dtype=dtype)
        return world

    def generation(self, dtype: torch.dtype, history: HistoryBatch, *, beam: int) -> Generation:
        """One cold call, for what it needs and finds."""
        return generate(self.engines[dtype], history, k=K, beam=beam, use_dense=False)

    def cells(
        self, *, variants: Sequence[str], batch: int, beam: int, length: int, dtype: torch.dtype
    ) -> list[Cell]:
        """Our rows. `cold`: history to items; `warm`: the state is known; `event`: it is one event old."""
        engine = self.engines[dtype]
        history = histories(len(self.catalogue), batch, length)
        newest = histories(len(self.catalogue), batch, 1, seed=1)
        states = engine.states(history)

        def cold() -> None:
            generate(engine, history, k=K, beam=beam, use_dense=False)

        def warm() -> None:
            generate(engine, history, k=K, beam=beam, use_dense=False, state_BD=states.state_BD)

        def event() -> None:
            extended = engine.extend(states, newest)
            generate(engine, history, k=K, beam=beam, use_dense=False, state_BD=extended.state_BD)

        def cold_and_dense() -> None:
            generate(engine, history, k=K, beam=beam)

        calls = {"cold": cold, "warm": warm, "event": event, "cold+dense": cold_and_dense}
        shape = (self.codes, len(self.catalogue), batch, beam, length)
        return [
            Cell(facts=_facts("headrace", variant, dtype, *shape), work=calls[variant])
            for variant in variants
        ]


class Baselines:
    """Hugging Face and plain torch on one T5, over the codes of one catalogue."""

    def __init__(self, codes: str, codes_NC: Tensor) -> None:
        model = tiger_t5(codes_NC.shape[1], V)
        self.codes = codes
        self.codes_NC = codes_NC
        self.hf = HfDecoder(model, codes_NC, V)
        self.torch = {dtype: TorchDecoder(model, codes_NC, V, dtype) for dtype in dtypes()}

    def cells(self, system: str, *, batch: int, beam: int, length: int) -> list[Cell]:
        """The rows of `hf` (float32 alone) or of `torch` (every dtype); tokens are made beforehand."""
        history = histories(len(self.codes_NC), batch, length)
        tokens_BS, mask_BS = history_tokens(self.codes_NC[history.item_BT], history.length_B, V)
        systems = {torch.float32: self.hf} if system == "hf" else self.torch

        def call(decoder: HfDecoder | TorchDecoder) -> Callable[[], object]:
            return lambda: decoder.search(tokens_BS, mask_BS, k=K, beam=beam)

        shape = (self.codes, len(self.codes_NC), batch, beam, length)
        return [
            Cell(facts=_facts(system, "cold", dtype, *shape), work=call(decoder))
            for dtype, decoder in systems.items()
        ]


def _facts(
    system: str,
    variant: str,
    dtype: torch.dtype,
    codes: str,
    num_items: int,
    batch: int,
    beam: int,
    length: int,
) -> dict[str, Any]:
    return {
        "system": system,
        "variant": variant,
        "device": "cpu",
        "dtype": name_of(dtype),
        "batch": batch,
        "beam": beam,
        "history": length,
        "catalogue": num_items,
        "codes": codes,
    }
