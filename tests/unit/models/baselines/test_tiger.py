"""TIGER: targets of one history do not see each other, the search is exact, and it learns a rule."""

import itertools

import numpy as np
import pytest
import torch

from models.baselines.tiger import Tiger, TigerConfig, user_token
from models.baselines.tiger_search import CodeTable, search_codes
from models.baselines.tiger_training import train_tiger
from models.sequences.holdout import HoldoutCases
from models.tokenizers.rq_vae import RqVaeConfig
from tests.unit.models.sequence_events import make_events

SMALL = TigerConfig(
    d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, num_user_tokens=10, max_items=6, beam=8,
    batch_positions=64, warmup_steps=5, validate_every=10, validation_cases=50,
)  # fmt: skip


def some_codes(num_items: int = 40, size: int = 4) -> torch.Tensor:
    every = torch.tensor(list(itertools.product(range(size), repeat=3)))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:num_items]]


def make_tiger(seed: int = 0) -> Tiger:
    torch.manual_seed(seed)
    return Tiger(SMALL, some_codes()).eval()


def test_user_tokens_are_the_same_in_every_process():
    assert user_token("A1YJEY40YUW4SE", 2_000) == user_token("A1YJEY40YUW4SE", 2_000)
    assert user_token("", 2_000) == 0
    assert {user_token(str(n), 10) for n in range(200)} == set(range(10))


@torch.no_grad()
def test_a_prefix_in_a_batch_of_all_prefixes_is_the_prefix_by_itself():
    tiger = make_tiger()
    items, user = [3, 17, 5, 22, 8], torch.tensor([4])
    by_itself = []
    for length in range(1, len(items)):
        target = torch.full((1, length), -1)
        target[0, -1] = items[length]
        by_itself.append(tiger(torch.tensor([items[:length]]), user, target))
    together = tiger(torch.tensor([items[:-1]]), user, torch.tensor([items[1:]]))
    torch.testing.assert_close(together, torch.stack(by_itself).mean())


@torch.no_grad()
def test_padding_and_the_rest_of_the_batch_change_nothing():
    tiger = make_tiger()
    alone = tiger(torch.tensor([[3, 17]]), torch.tensor([4]), torch.tensor([[-1, 9]]))
    padded = tiger(
        torch.tensor([[3, 17, -1, -1], [1, 2, 30, 4]]),
        torch.tensor([4, 2]),
        torch.tensor([[-1, 9, -1, -1], [-1, -1, -1, -1]]),
    )
    torch.testing.assert_close(alone, padded)


@torch.no_grad()
def test_the_loss_is_the_score_that_the_search_gives():
    tiger = make_tiger()
    item_BT, user_B = torch.tensor([[3, 17, 5]]), torch.tensor([4])
    found = tiger.search(item_BT, user_B, k=40, beam=64, exclude=[np.array([], dtype=np.int64)])
    assert sorted(found.row_BK[0].tolist()) == list(range(40))
    for row, score in zip(found.row_BK[0, :5].tolist(), found.score_BK[0, :5].tolist(), strict=True):
        loss = tiger(item_BT, user_B, torch.tensor([[-1, -1, row]]))
        assert float(loss) == pytest.approx(-score, abs=1e-4)


def test_a_wide_search_is_brute_force_and_leaves_out_what_is_excluded():
    codes_NC, random = some_codes(), torch.Generator().manual_seed(1)
    tables = [torch.randn(2, 4**level, 4, generator=random) for level in range(3)]

    def code_logits(prefix_BKl: torch.Tensor) -> torch.Tensor:
        level = prefix_BKl.shape[2]
        place_BK = (prefix_BKl * 4 ** torch.arange(level)).sum(2)
        return torch.stack(
            [table_PV[place_K] for table_PV, place_K in zip(tables[level], place_BK, strict=True)]
        )

    excluded = [np.array([0, 7, 11]), np.array([], dtype=np.int64)]
    found = search_codes(code_logits, CodeTable(codes_NC), batch_size=2, k=40, beam=64, exclude=excluded)
    for b in range(2):
        score_N = torch.zeros(len(codes_NC))
        for level in range(3):
            place_N = (codes_NC[:, :level] * 4 ** torch.arange(level)).sum(1)
            score_N += tables[level][b, place_N].log_softmax(-1)[torch.arange(40), codes_NC[:, level]]
        score_N[torch.from_numpy(excluded[b])] = -torch.inf
        best = score_N.argsort(descending=True)[: 40 - len(excluded[b])]
        listed = found.row_BK[b][found.row_BK[b] >= 0]
        assert listed.tolist() == best.tolist()


def test_two_items_with_one_code_are_refused():
    with pytest.raises(ValueError, match="same codes"):
        CodeTable(torch.tensor([[1, 2], [1, 2]]))


def test_it_learns_what_follows_what():
    random = np.random.default_rng(0)
    sequences = [[int(start + step) % 30 for step in range(6)] for start in random.integers(30, size=120)]
    content_NE = torch.nn.functional.normalize(
        torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    )
    train = make_events([items[:-1] for items in sequences])
    last = make_events([items[-1:] for items in sequences], after=len(train))
    codes = RqVaeConfig(num_levels=2, codebook_size=8, latent_dim=8, hidden_dims=(16,), num_steps=50)
    config = TigerConfig(**{**vars(SMALL), "max_epochs": 30, "learning_rate": 5e-3})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trained = train_tiger(content_NE, train, last, config, codes, minutes=60.0)
    assert torch.equal(torch.rand(2), expected)
    ranks = trained.ranks(HoldoutCases.from_events(train, last))
    assert (ranks == 0).mean() > 0.4  # one in 30 by chance
    assert trained.best_step > 0
