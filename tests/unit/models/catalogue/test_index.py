"""The catalogue index: stable SIDs, collisions, upserts and its table."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.catalogue.index import CatalogueIndex
from models.errors import IncompatibleCheckpoint, PrefixFull
from models.tokenizers.codebook import Codebook
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook

E = 6
CONTENT = torch.randn(60, E, generator=torch.Generator().manual_seed(0))
CODEBOOK = fit_codebook(CONTENT, CodebookConfig(num_levels=2, codebook_size=8))


def make_catalogue(num: int = 60) -> CatalogueIndex:
    catalogue = CatalogueIndex(CODEBOOK)
    catalogue.add_many([f"i{n}" for n in range(num)], CONTENT[:num], np.arange(num, dtype=np.int64))
    return catalogue


def test_ids_rows_and_codes_agree() -> None:
    catalogue = make_catalogue()
    assert len(catalogue) == len(catalogue.trie) == 60
    assert torch.equal(catalogue.codes_NC[:, :2], CODEBOOK.encode(CONTENT))
    assert torch.equal(catalogue.content_NE, CONTENT)
    for row, codes in enumerate(catalogue.codes_NC.tolist()):
        assert catalogue.row_of(codes) == catalogue.row(catalogue.item_ids[row]) == row
    assert catalogue.rows(["i3", "nobody", "i0"]).tolist() == [3, -1, 0]
    assert catalogue.row("nobody") is None


def test_an_item_can_be_answered_while_it_is_available_and_all_its_codes_lead_to_it() -> None:
    catalogue = make_catalogue()
    assert catalogue.can_answer(np.array([0, 59, -1, 60])).tolist() == [True, True, False, False]
    catalogue.set_available(5, False)
    assert catalogue.can_answer(np.array([5, 6])).tolist() == [False, True]
    for level in range(3):
        broken = catalogue.copy()
        broken._codes_NC[6, level] = (broken._codes_NC[6, level] + 1) % 8
        assert broken.can_answer(np.array([6, 7])).tolist() == [False, True]
    assert not make_catalogue(0).can_answer(np.array([0, -1])).any()


def test_the_disambiguation_code_is_the_first_free_and_never_reused() -> None:
    catalogue = make_catalogue(0)
    same = CONTENT[0]
    catalogue.add_many(["a", "b"], same.repeat(2, 1), np.zeros(2, np.int64))
    assert catalogue.codes_NC[:, 2].tolist() == [0, 1]
    catalogue.set_available(0, False)
    assert catalogue.assign(same)[2] == 2
    reloaded = CatalogueIndex.from_table(catalogue.to_table(), CODEBOOK)
    assert reloaded.assign(same)[2] == 2
    # a code that another process gave out leaves a gap, which is filled first
    prefix = catalogue.assign(same)[:2]
    catalogue.insert("d", (*prefix, 3), same)
    catalogue.insert("c", catalogue.assign(same), same)
    assert catalogue.assign(same)[2] == 4
    assert catalogue.codes_NC[:, 2].tolist() == [0, 1, 3, 2]


def test_more_equal_items_than_codes_spill_to_the_nearest_prefixes() -> None:
    catalogue = CatalogueIndex(CODEBOOK)
    num = 8 * 8 * 8
    catalogue.add_many([str(n) for n in range(num)], CONTENT[:1].repeat(num, 1), np.zeros(num, np.int64))
    codes_NC = catalogue.codes_NC
    assert len(torch.unique(codes_NC, dim=0)) == num
    nearest = CODEBOOK.encode(CONTENT[:1])[0]
    assert bool((codes_NC[:8, :2] == nearest).all())
    assert bool((codes_NC[: 8 * 8, 0] == nearest[0]).all())
    with pytest.raises(PrefixFull):
        catalogue.assign(CONTENT[0])


def test_an_upsert_changes_content_and_availability_only() -> None:
    catalogue = make_catalogue(3)
    codes = tuple(catalogue.codes_NC[1].tolist())
    assert catalogue.insert("i1", codes, CONTENT[9], available=False, announced_ms=77) == 1
    assert len(catalogue) == 3
    assert catalogue.available_N.tolist() == [True, False, True]
    assert catalogue.announced_ms_N.tolist() == [0, 1, 2]
    assert torch.equal(catalogue.content_NE[1], CONTENT[9])
    assert catalogue.insert("i1", codes, CONTENT[1]) == 1
    assert catalogue.available_N.all()


def test_conflicting_insertions_are_refused_and_change_nothing() -> None:
    catalogue = make_catalogue(3)
    table = catalogue.to_table()
    taken = catalogue.codes_NC[0].tolist()
    for item_id, codes, content in [
        ("new", taken, CONTENT[0]),
        ("i1", taken, CONTENT[0]),
        ("new", (0, 0, 99), CONTENT[0]),
        ("new", (0, 0, 7), CONTENT[0, :2]),
        ("new", (0, 0, 7), torch.full((E,), torch.inf)),
    ]:
        with pytest.raises(ValueError):
            catalogue.insert(item_id, codes, content)
    with pytest.raises(ValueError, match="already"):
        catalogue.add_many(["i1"], CONTENT[:1], np.zeros(1, np.int64))
    assert catalogue.to_table().equals(table)
    assert len(catalogue.trie) == 3


@pytest.mark.parametrize("num", [0, 60])
def test_the_table_gives_the_same_index(num: int) -> None:
    catalogue = make_catalogue(num)
    if num:
        catalogue.set_available(7, False)
    table = catalogue.to_table()
    again = CatalogueIndex.from_table(table, CODEBOOK)
    assert again.to_table().equals(table)
    assert again.trie.row_of([0, 0, 0]) == catalogue.trie.row_of([0, 0, 0])
    again.insert("new", again.assign(CONTENT[0]), CONTENT[0])
    assert len(again) == num + 1


def test_a_table_that_is_not_of_this_codebook_is_refused() -> None:
    table = make_catalogue(5).to_table()
    wider = Codebook(torch.randn(2, 8, E + 1))
    twice = pa.concat_tables([table, table])
    for wrong, codebook, reason in [
        (table, wider, "codebook"),
        (table.drop_columns(["codes"]), CODEBOOK, "codebook"),
        (table.replace_schema_metadata(None), CODEBOOK, "format"),
        (twice, CODEBOOK, "format"),
        (table.set_column(0, "item_id", pa.array([None] * 5, pa.string())), CODEBOOK, "format"),
    ]:
        with pytest.raises(IncompatibleCheckpoint) as error:
            CatalogueIndex.from_table(wrong, codebook)
        assert error.value.reason == reason


def test_a_copy_is_independent() -> None:
    catalogue = make_catalogue(5)
    copy = catalogue.copy()
    catalogue.insert("new", catalogue.assign(CONTENT[0]), CONTENT[0])
    catalogue.set_available(0, False)
    assert len(copy) == 5
    assert copy.available_N.all()
    assert copy.row("new") is None
    assert copy.assign(CONTENT[0]) == tuple(catalogue.codes_NC[5].tolist())
