"""Which semantic ID each item has: assignment, stability, and the health of the codebook.

Owns the live catalogue as the tokenizer sees it. Everything here but `load` runs in the model thread.
Knows no gRPC and no broker: records come in, records to publish go out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.artifacts.release import ReleaseBundle
from models.catalogue.index import CatalogueIndex
from models.errors import PrefixFull
from models.tokenizers.content import Space, vector_in
from models.tokenizers.health import CodebookHealth, codebook_health
from protos.headrace.v1.items_pb2 import Item, ItemSid, SemanticId
from services.errors import NotReady
from services.metrics import CODEBOOK_ERROR, CODEBOOK_USAGE, SID_COLLISIONS, STAGE_SECONDS
from services.model_host.live_catalogue import LiveCatalogue
from services.tokenizer.content import ContentEmbedder
from services.wire import translate
from streaming.messages.records import Record


@dataclass
class Tokenized:
    """What became of some records of `items`.

    `sids` are to be published; `deferred` are known items whose text may have changed, to be looked at
    when there is time; `rejected` have no usable content or no free code: (record, reason, text).
    """

    sids: list[ItemSid] = field(default_factory=list)
    deferred: list[Record] = field(default_factory=list)
    rejected: list[tuple[Record, str, str]] = field(default_factory=list)


@dataclass
class Moved:
    """What a new codebook did to the items that its release does not hold.

    `sids` are their new semantic IDs, to be published; `without_code` the items for which none was left.
    """

    sids: list[ItemSid] = field(default_factory=list)
    without_code: list[str] = field(default_factory=list)


class TokenizerServing:
    """Assigns codes from the live release's codebook; an item that has codes keeps them."""

    def __init__(self, embedder: ContentEmbedder) -> None:
        self._embedder = embedder
        self._catalogue = LiveCatalogue()
        self._release_id = ""
        self._release_time_ms = 0
        self._announced_ms: dict[str, int] = {}

    @property
    def release_id(self) -> str:
        """The live release, empty before the first."""
        return self._release_id

    @property
    def index(self) -> CatalogueIndex:
        """The live catalogue; raises NotReady before the first release."""
        if self._catalogue.index is None:
            raise NotReady("no release is loaded yet")
        return self._catalogue.index

    def load(self, bundle: ReleaseBundle) -> CatalogueIndex:
        """Prepares a release's catalogue beside the live one, and warms the text model up if it is needed."""
        self._catalogue.prepare(bundle.catalogue)
        if self._embedder.can_embed(bundle.catalogue.space):
            self._embedder.embed_many([Item(title="warm up")])
        return bundle.catalogue

    def swap(self, release_id: str, release_time_ms: int, index: CatalogueIndex) -> Moved:
        """Makes a release live; returns what became of the items that it does not hold.

        They move only under a new codebook. One that is too full for some of them is live all the same.
        """
        old = self._catalogue.index
        self._catalogue.swap(index)
        self._release_id, self._release_time_ms = release_id, release_time_ms
        moved = Moved()
        if old is not None and old.codebook.content_dim == index.codebook.content_dim:
            for row, item_id in enumerate(old.item_ids):
                if index.row(item_id) is None:
                    item = Item(item_id=item_id, unavailable=not old.available_N[row])
                    try:
                        sid = self._assign(item, old.content_NE[row], int(old.announced_ms_N[row]))
                    except PrefixFull:
                        moved.without_code.append(item_id)
                    else:
                        moved.sids.append(sid)
        return moved

    def put_sids(self, records: Sequence[Record]) -> None:
        """Takes records of `semantic-ids`: those of an earlier life of this service, and its own."""
        self._catalogue.put_many([record.message for record in records])
        for record in records:
            self._announced_ms[record.message.item_id] = record.timestamp_ms

    def tokenize(self, records: Sequence[Record], *, recheck: bool = False) -> Tokenized:
        """Takes records of `items`; with `recheck`, texts of known items are embedded and compared too."""
        done = Tokenized()
        unread: list[Record] = []
        space = self.index.space
        with STAGE_SECONDS.labels("tokenize").time():
            for record in records:
                if record.message is None:
                    self._withdraw(record, done)
                    continue
                vectors = translate.vectors_of(record.message)
                own_E, _ = vector_in(space, vectors)
                if own_E is not None:
                    self._put(record, torch.from_numpy(own_E), done)
                elif vectors and (space.modality in ("", *vectors) or not self._embedder.can_embed(space)):
                    done.rejected.append((record, *_why_unusable(record.message, space)))
                elif self.index.row(record.message.item_id) is not None and not recheck:
                    self._put_known_text(record, done)
                elif self._embedder.can_embed(space):
                    unread.append(record)
                else:
                    problem = f"has no vector of {space}, and texts are not embedded to that"
                    done.rejected.append((record, "no_content", problem))
            if unread:
                embedded_NE = self._embedder.embed_many([record.message for record in unread])
                for record, content_E in zip(unread, embedded_NE, strict=True):
                    self._put(record, content_E, done)
        return done

    def health(self) -> CodebookHealth:
        """How well the live codebook fits the live catalogue; also sets the gauges."""
        health = codebook_health(self.index.codebook, self.index.codes_NC, self.index.content_NE)
        levels = zip(health.usage_ratio_L, health.quantisation_error_L, strict=True)
        for level, (usage, error) in enumerate(levels, start=1):
            CODEBOOK_USAGE.labels(str(level)).set(usage)
            CODEBOOK_ERROR.labels(str(level)).set(error)
        SID_COLLISIONS.set(health.collision_ratio)
        return health

    def tokens(self, item_ids: Sequence[str]) -> dict[str, SemanticId]:
        """The semantic IDs of the known ones among these items."""
        index = self.index
        known = [(item_id, row) for item_id in item_ids if (row := index.row(item_id)) is not None]
        version = index.codebook.version
        return {
            item_id: SemanticId(codebook_version=version, codes=index.codes_NC[row].tolist())
            for item_id, row in known
        }

    def detokenize(self, sids: Sequence[SemanticId]) -> list[str]:
        """The item of each semantic ID, empty where none has it."""
        index = self.index
        item_ids = []
        for sid in sids:
            row = None
            fits = len(sid.codes) == index.codebook.num_levels + 1
            if fits and sid.codebook_version in ("", index.codebook.version):
                in_range = all(0 <= code < index.codebook.codebook_size for code in sid.codes)
                row = index.row_of(tuple(sid.codes)) if in_range else None
            item_ids.append("" if row is None else index.item_ids[row])
        return item_ids

    def _withdraw(self, record: Record, done: Tokenized) -> None:
        """A tombstone: the item keeps its codes, and is no longer recommended."""
        row = self.index.row(record.key)
        if row is not None:
            item = Item(item_id=record.key, unavailable=True)
            self._put(replace(record, message=item), self.index.content_NE[row], done)

    def _put_known_text(self, record: Record, done: Tokenized) -> None:
        """Takes a known item, its text not embedded: availability counts at once, newer text later."""
        row = self.index.row(record.message.item_id)
        assert row is not None
        if bool(self.index.available_N[row]) == record.message.unavailable:
            self._put(record, self.index.content_NE[row], done)
        known_since_ms = self._announced_ms.get(record.message.item_id, self._release_time_ms)
        can_embed = self._embedder.can_embed(self.index.space)
        if record.timestamp_ms > known_since_ms and can_embed:
            done.deferred.append(record)

    def _put(self, record: Record, content_E: Tensor, done: Tokenized) -> None:
        item: Item = record.message
        row = self.index.row(item.item_id)
        if row is not None:
            if bool(self.index.available_N[row]) != item.unavailable and _same(
                self.index.content_NE[row], content_E
            ):
                return
            codes = self.index.codes_NC[row].tolist()
            self.index.insert(item.item_id, codes, content_E, available=not item.unavailable)
            version, announced_ms = self.index.codebook.version, int(self.index.announced_ms_N[row])
            done.sids.append(
                translate.item_sid(item, codes, content_E, version, announced_time_ms=announced_ms)
            )
            return
        try:
            announced_ms = item.announced_time_ms or record.timestamp_ms
            done.sids.append(self._assign(item, content_E, announced_ms))
        except PrefixFull as error:
            done.rejected.append((record, "codebook_full", str(error)))

    def _assign(self, item: Item, content_E: Tensor, announced_ms: int) -> ItemSid:
        codes = self.index.assign(content_E)
        self.index.insert(
            item.item_id, codes, content_E, available=not item.unavailable, announced_ms=announced_ms
        )
        return translate.item_sid(
            item, codes, content_E, self.index.codebook.version, announced_time_ms=announced_ms
        )


def _same(one_E: Tensor, other_E: Tensor) -> bool:
    """Equal up to what batching and the dtype change in a text's embedding; both are of unit length."""
    return float(one_E @ other_E) > 0.999


def _why_unusable(item: Item, space: Space) -> tuple[str, str]:
    """Why none of an item's vectors can be used: one word, and a line."""
    found = ", ".join(f"{one.modality} has {len(one.values)}" for one in item.embeddings)
    if space.modality and all(one.modality != space.modality for one in item.embeddings):
        return "wrong_modality", f"its vectors must be of the release's modality {space.modality}; {found}"
    return "wrong_width", f"its vectors must have the codebook's {space.width} numbers; {found}"
