"""Vectors of single items: who has one, what the others get, and that nothing changes when one is given."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.networks.config import ModelConfig
from models.networks.item_identities import ItemIdentities, room_for
from models.networks.recommender import GenerativeRecommender


def codes(*numbers: int) -> torch.Tensor:
    return torch.tensor([[n // 64 % 8, n // 8 % 8, n % 8] for n in numbers], dtype=torch.int64).view(-1, 3)


def test_items_are_found_by_their_codes_in_any_order() -> None:
    identities = ItemIdentities(5, 3, 0.0).eval()
    assert identities.add(codes(7, 300, 7, 12)) == 3
    assert identities.add(codes(12, 5)) == 1
    assert len(identities) == 4
    with torch.no_grad():
        identities.weight.copy_(torch.arange(1, 6)[:, None].expand(-1, 3))
    own = identities(codes(5, 12, 300, 7, 8))
    # slots are given in order of arrival; item 8 has none
    assert own[:, 0].tolist() == [4, 3, 2, 1, 0]
    assert identities(codes()).shape == (0, 3)


def test_a_full_table_gives_no_more() -> None:
    identities = ItemIdentities(2, 4, 0.0)
    assert identities.add(codes(1, 2, 3)) == 2
    assert identities.add(codes(4)) == 0
    none = ItemIdentities(0, 4, 0.0)
    assert none.add(codes(1)) == 0
    assert none(codes(1, 2)).tolist() == [[0.0] * 4] * 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 511), max_size=6), max_size=6))
def test_every_item_keeps_its_slot(batches: list[list[int]]) -> None:
    identities = ItemIdentities(room_for(512), 1, 0.0).eval()
    with torch.no_grad():
        identities.weight.copy_(torch.arange(1.0, len(identities.weight) + 1)[:, None])
    expected: dict[int, int] = {}
    for batch in batches:
        identities.add(codes(*batch))
        for number in batch:
            expected.setdefault(number, len(expected) + 1)
    numbers = list(range(512))
    assert identities(codes(*numbers))[:, 0].tolist() == [expected.get(n, 0) for n in numbers]
    again = ItemIdentities(room_for(512), 1, 0.0).eval()
    again.load_state_dict(identities.state_dict())
    assert torch.equal(again(codes(*numbers)), identities(codes(*numbers)))


def test_training_leaves_some_out_and_moves_only_those_it_shows() -> None:
    torch.manual_seed(0)
    identities = ItemIdentities(400, 1, 0.25)
    identities.add(codes(*range(400)))
    with torch.no_grad():
        identities.weight.fill_(1.0)
    own = identities.train()(codes(*range(400)))
    assert 200 < int(own.sum()) < 360
    own.sum().backward()
    assert identities.weight.grad is not None
    assert torch.equal(identities.weight.grad[:, 0], own[:, 0].detach())
    assert int(identities.eval()(codes(*range(400))).sum()) == 400


def test_to_be_given_a_vector_changes_nothing_yet() -> None:
    config = ModelConfig(content_dim=4, num_levels=2, codebook_size=8, d_model=16, num_heads=2)
    recommender = GenerativeRecommender(config).eval()
    content_NE = torch.randn(3, 4)
    before = recommender.encode_items(codes(1, 2, 3), content_NE)
    recommender.identities.add(codes(2))
    assert torch.equal(recommender.encode_items(codes(1, 2, 3), content_NE), before)
    with torch.no_grad():
        recommender.identities.weight.fill_(1.0)
    after = recommender.encode_items(codes(1, 2, 3), content_NE)
    torch.testing.assert_close(after - before, torch.tensor([[0.0], [1.0], [0.0]]).expand(-1, 16))
