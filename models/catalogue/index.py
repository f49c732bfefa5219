"""The catalogue index: item id <-> row <-> semantic ID, with content vectors and availability.

Rows are given in order of arrival and never change; SIDs are stable. The disambiguation code is the
first free one under its prefix and is never renumbered; an item that is no longer available keeps
its codes for the life of the codebook version. This file knows no user, event or network.

One writer, and no search while it writes: whoever serves does both in one thread. Views of columns show
what was there when they were taken.

Shape letters: N items, L semantic levels, C = L + 1 codes, E content width.
"""

from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.catalogue.announcements import Announcements
from models.catalogue.trie import Trie
from models.catalogue.trie_level import grown
from models.errors import IncompatibleCheckpoint, PrefixFull
from models.tokenizers.codebook import Codebook
from models.tokenizers.content import Space


class CatalogueIndex:
    """All items of one codebook version.

    `num_disambiguation` is the number of last codes under a prefix, V by default, and at most V. `modality`
    is what the content vectors are of (`models.tokenizers.content.Space`), empty where nobody said.
    """

    def __init__(
        self, codebook: Codebook, num_disambiguation: int | None = None, *, modality: str = ""
    ) -> None:
        if num_disambiguation is None:
            num_disambiguation = codebook.codebook_size
        if not 1 <= num_disambiguation <= codebook.codebook_size:
            raise ValueError(f"num_disambiguation must be 1 to {codebook.codebook_size}")
        self.codebook = codebook
        self.num_disambiguation = num_disambiguation
        self.modality = modality
        self.trie = Trie(codebook.num_levels + 1, codebook.codebook_size)
        self.item_ids: list[str] = []
        self._row_of_id: dict[str, int] = {}
        self._first_free: dict[tuple[int, ...], int] = {}  # prefix -> no free code below this one
        self._codes_NC = np.zeros((0, codebook.num_levels + 1), np.int64)
        self._content_NE = np.zeros((0, codebook.content_dim), np.float32)
        self._available_N = np.zeros(0, np.bool_)
        self._announced_ms_N = np.zeros(0, np.int64)
        self._announcements: Announcements | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def space(self) -> Space:
        """Where its items' content vectors lie."""
        return Space(modality=self.modality, width=self.codebook.content_dim)

    @property
    def codes_NC(self) -> Tensor:
        """The SIDs, int64 [N, C]; shares memory."""
        return torch.from_numpy(self._codes_NC[: len(self)])

    @property
    def content_NE(self) -> Tensor:
        """The content embeddings, float32 [N, E]; shares memory."""
        return torch.from_numpy(self._content_NE[: len(self)])

    @property
    def available_N(self) -> npt.NDArray[np.bool_]:
        """Which items may be recommended, bool [N]; change it by `set_available` only."""
        return self._available_N[: len(self)]

    @property
    def announced_ms_N(self) -> Int64Array:
        """When each item was first announced, int64 [N], ms since the Unix epoch; 0 where unknown."""
        return self._announced_ms_N[: len(self)]

    @property
    def announcements(self) -> Announcements:
        """The same in order of time; kept from the first look on."""
        if self._announcements is None:
            self._announcements = Announcements(self.announced_ms_N)
        return self._announcements

    def row(self, item_id: str) -> int | None:
        """The row of an item id."""
        return self._row_of_id.get(item_id)

    def rows(self, item_ids: Sequence[str]) -> Int64Array:
        """The rows of item ids, int64; -1 where unknown."""
        found = map(self._row_of_id.get, item_ids, repeat(-1))
        return np.fromiter(found, np.int64, len(item_ids))

    def row_of(self, codes: Sequence[int]) -> int | None:
        """The row that has these C codes, available or not."""
        return self.trie.row_of(codes)

    def can_answer(self, row_M: Int64Array) -> npt.NDArray[np.bool_]:
        """Whether each row (int64 [M]) is an available item whose codes, all of them, lead to it, bool [M].

        True of whatever a search returns: answers are checked so that a fault is counted instead of shown.
        """
        inside_M = (row_M >= 0) & (row_M < len(self))
        safe_M = np.where(inside_M, row_M, 0)
        if not len(self):
            return inside_M
        leads_M = (self.trie.codes_of(safe_M) == self._codes_NC[safe_M]).all(axis=1)
        can_M: npt.NDArray[np.bool_] = inside_M & self.available_N[safe_M] & leads_M
        return can_M

    def set_available(self, row: int, available: bool) -> None:
        """Says whether an item may be recommended; its codes stay its own either way."""
        self.trie.set_available(row, available)
        self._available_N[row] = available

    def assign(self, content_E: Tensor) -> tuple[int, ...]:
        """The C codes that a new item with this content (float32 [E]) gets; nothing is reserved.

        When the nearest prefix is full, the next-nearest centroid of the last level is taken (then of the
        level before). Raises PrefixFull when there is no free code at all, ValueError for another E.
        """
        prefix = tuple(self.codebook.encode(content_E[None])[0].tolist())
        return self._assign_under(prefix, content_E)

    def insert(
        self,
        item_id: str,
        codes: Sequence[int],
        content_E: Tensor,
        *,
        available: bool = True,
        announced_ms: int = 0,
    ) -> int:
        """Adds an item, or updates its content and availability; returns its row.

        `content_E` float32 [E]. The first known `announced_ms` (since the Unix epoch, 0 for unknown) stays.
        Raises ValueError when the content is of another width or not finite, when the codes are no SID or
        belong to another item, or when the item has other codes: SIDs are stable inside a codebook version.
        """
        codes = tuple(int(code) for code in codes)
        if content_E.shape != (self.codebook.content_dim,):
            raise ValueError(
                f"content of shape {tuple(content_E.shape)}, expected {self.codebook.content_dim}"
            )
        if not bool(torch.isfinite(content_E).all()):
            raise ValueError(f"the content of item {item_id!r} is not finite")
        row = self._row_of_id.get(item_id)
        if row is None:
            row = len(self)
            self.trie.insert(codes, row, available=available)
            self._append(item_id, codes, available)
        elif codes != tuple(self._codes_NC[row].tolist()):
            raise ValueError(f"item {item_id!r} has the codes {self._codes_NC[row].tolist()}, not {codes}")
        self.set_available(row, available)
        self._content_NE[row] = content_E.numpy()
        if not self._announced_ms_N[row]:
            self._announced_ms_N[row] = announced_ms
            if self._announcements is not None:
                self._announcements.add(row, announced_ms)
        return row

    def add_many(self, item_ids: Sequence[str], content_NE: Tensor, announced_ms_N: Int64Array) -> None:
        """Assigns codes to new items and adds them, in this order; float32 [N, E], int64 [N] (ms).

        Raises ValueError when an id is already there or content is not finite, PrefixFull when no code is
        left; the items before that one stay.
        """
        prefix_NL = self.codebook.encode(content_NE).tolist()
        for n, (item_id, prefix) in enumerate(zip(item_ids, prefix_NL, strict=True)):
            if item_id in self._row_of_id:
                raise ValueError(f"item {item_id!r} is there already")
            codes = self._assign_under(tuple(prefix), content_NE[n])
            self.insert(item_id, codes, content_NE[n], announced_ms=int(announced_ms_N[n]))

    def to_table(self) -> pa.Table:
        """One row per item, in row order: item_id, codes, content, available, announced_ms."""
        codes = pa.FixedSizeListArray.from_arrays(
            pa.array(self._codes_NC[: len(self)].ravel()), self._codes_NC.shape[1]
        )
        content = pa.FixedSizeListArray.from_arrays(
            pa.array(self._content_NE[: len(self)].ravel()), self._content_NE.shape[1]
        )
        return pa.table(
            {
                "item_id": pa.array(self.item_ids, pa.string()),
                "codes": codes,
                "content": content,
                "available": pa.array(self.available_N),
                "announced_ms": pa.array(self.announced_ms_N),
            },
            metadata={"num_disambiguation": str(self.num_disambiguation), "modality": self.modality},
        )

    @classmethod
    def from_table(cls, table: pa.Table, codebook: Codebook) -> "CatalogueIndex":
        """The index of `to_table`; raises IncompatibleCheckpoint when it does not belong to this codebook."""
        try:
            metadata = table.schema.metadata or {}
            # older releases do not name their modality
            modality = metadata.get(b"modality", b"").decode()
            index = cls(codebook, int(metadata[b"num_disambiguation"]), modality=modality)
        except (KeyError, ValueError) as error:
            raise IncompatibleCheckpoint("format", f"catalogue table: {error}") from error
        if table.schema != index.to_table().schema:
            raise IncompatibleCheckpoint("codebook", f"catalogue table has the columns {table.schema}")
        if any(column.null_count for column in table.columns):
            raise IncompatibleCheckpoint("format", "catalogue table has nulls")
        try:
            index._load(table)
        except ValueError as error:
            raise IncompatibleCheckpoint("format", f"catalogue table: {error}") from error
        return index

    def copy(self) -> "CatalogueIndex":
        """An independent index with the same items."""
        other = CatalogueIndex(self.codebook, self.num_disambiguation, modality=self.modality)
        other.trie = self.trie.copy()
        other.item_ids = list(self.item_ids)
        other._row_of_id = dict(self._row_of_id)
        other._first_free = dict(self._first_free)
        other._codes_NC = self._codes_NC.copy()
        other._content_NE = self._content_NE.copy()
        other._available_N = self._available_N.copy()
        other._announced_ms_N = self._announced_ms_N.copy()
        return other

    def _load(self, table: pa.Table) -> None:
        item_ids = table["item_id"].to_pylist()
        if len(set(item_ids)) != len(item_ids):
            raise ValueError("an item id is there twice")
        codes_NC = np.concatenate(
            [chunk.flatten().to_numpy() for chunk in table["codes"].chunks] or [self._codes_NC]
        ).reshape(-1, self._codes_NC.shape[1])
        available_N = table["available"].to_numpy()
        self.trie.insert_many(codes_NC, available_N)
        self.item_ids = item_ids
        self._row_of_id = {item_id: row for row, item_id in enumerate(item_ids)}
        self._codes_NC = codes_NC.copy()
        self._available_N = available_N.copy()
        self._announced_ms_N = table["announced_ms"].to_numpy().copy()
        self._content_NE = np.empty((len(item_ids), self.codebook.content_dim), np.float32)
        first = 0
        for chunk in table["content"].chunks:
            rows = slice(first, first + len(chunk))
            self._content_NE[rows] = chunk.flatten().to_numpy().reshape(len(chunk), self._content_NE.shape[1])
            first = rows.stop

    def _append(self, item_id: str, codes: Sequence[int], available: bool) -> None:
        row = len(self)
        self._codes_NC = grown(self._codes_NC, row + 1)
        self._content_NE = grown(self._content_NE, row + 1)
        self._available_N = grown(self._available_N, row + 1)
        self._announced_ms_N = grown(self._announced_ms_N, row + 1)
        self._codes_NC[row] = codes
        self._available_N[row] = available
        self._row_of_id[item_id] = row
        self.item_ids.append(item_id)

    def _assign_under(self, prefix: tuple[int, ...], content_E: Tensor) -> tuple[int, ...]:
        code = self._free_code(prefix)
        if code is not None:
            return (*prefix, code)
        for other in self.codebook.nearest_prefixes(content_E):
            code = self._free_code(other)
            if code is not None:
                return (*other, code)
        raise PrefixFull(f"all {len(self)} codes of the codebook are taken")

    def _free_code(self, prefix: tuple[int, ...]) -> int | None:
        """The first free disambiguation code; codes are never given back, so it only moves up."""
        code = self._first_free.get(prefix, 0)
        while code < self.num_disambiguation and self.trie.row_of((*prefix, code)) is not None:
            code += 1
        self._first_free[prefix] = code
        return code if code < self.num_disambiguation else None
