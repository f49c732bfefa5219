"""The baselines of the decoding benchmark do what they claim: valid items, and the best of them."""

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from models.baselines.hf_decode import HfDecoder, code_tokens, history_tokens, tiger_t5
from models.baselines.torch_decode import DenseTrie, TorchDecoder

NUM_CODES, V, NUM_ITEMS, K = 3, 8, 30, 10


@pytest.fixture(scope="module")
def model() -> T5ForConditionalGeneration:
    return tiger_t5(NUM_CODES, V, seed=1)


@pytest.fixture(scope="module")
def codes_NC() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    number_N = torch.randperm(V**NUM_CODES, generator=generator)[:NUM_ITEMS]
    return torch.stack([number_N // V**2, number_N // V % V, number_N % V], dim=1)


@pytest.fixture(scope="module")
def histories(codes_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Three users with 5, 2 and 4 items, as tokens and mask."""
    generator = torch.Generator().manual_seed(3)
    item_BT = torch.randint(NUM_ITEMS, (3, 5), generator=generator)
    return history_tokens(codes_NC[item_BT], torch.tensor([5, 2, 4]), V)


@torch.no_grad()
def every_score(
    model: T5ForConditionalGeneration, codes_NC: Tensor, tokens_BS: Tensor, mask_BS: Tensor
) -> Tensor:
    """The log-probability of every item for each request, one forward pass for each: float32 [B, N]."""
    label_NC = code_tokens(codes_NC, V)
    given_NC = torch.cat([torch.zeros(len(label_NC), 1, dtype=torch.int64), label_NC[:, :-1]], dim=1)
    scores = []
    for tokens_S, mask_S in zip(tokens_BS, mask_BS, strict=True):
        logits_NCW = model(
            input_ids=tokens_S.expand(len(label_NC), -1),
            attention_mask=mask_S.expand(len(label_NC), -1),
            decoder_input_ids=given_NC,
        ).logits
        scores.append(logits_NCW.log_softmax(2).gather(2, label_NC[..., None]).squeeze(2).sum(1))
    return torch.stack(scores)


def test_the_default_model_has_the_size_of_tiger() -> None:
    num_parameters = sum(p.numel() for p in tiger_t5().parameters())
    assert 4.5e6 < num_parameters < 4.7e6


@pytest.mark.parametrize("kind", ["hf", "torch"])
def test_a_beam_as_wide_as_the_catalogue_finds_what_brute_force_finds(
    kind: str, model: T5ForConditionalGeneration, codes_NC: Tensor, histories: tuple[Tensor, Tensor]
) -> None:
    decoder = {"hf": HfDecoder, "torch": TorchDecoder}[kind](model, codes_NC, V)
    found = decoder.search(*histories, k=K, beam=NUM_ITEMS)
    expected = every_score(model, codes_NC, *histories).topk(K, dim=1)
    torch.testing.assert_close(found.score_BK, expected.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.row_BK, expected.indices)


@pytest.mark.parametrize("beam", [10, 12, 20])
def test_both_find_the_same_with_a_narrow_beam(
    beam: int, model: T5ForConditionalGeneration, codes_NC: Tensor, histories: tuple[Tensor, Tensor]
) -> None:
    hf = HfDecoder(model, codes_NC, V).search(*histories, k=K, beam=beam)
    ours = TorchDecoder(model, codes_NC, V).search(*histories, k=K, beam=beam)
    assert torch.equal(hf.row_BK, ours.row_BK)
    torch.testing.assert_close(hf.score_BK, ours.score_BK, atol=1e-4, rtol=1e-4)
    for rows in hf.row_BK.tolist():
        assert len(set(rows)) == K
        assert all(0 <= row < NUM_ITEMS for row in rows)


@pytest.mark.parametrize("kind", ["hf", "torch"])
def test_fewer_items_than_k_are_padded(
    kind: str, model: T5ForConditionalGeneration, codes_NC: Tensor
) -> None:
    few_NC = codes_NC[:4]
    tokens_BS, mask_BS = history_tokens(few_NC[None, [0, 2]], torch.tensor([2]), V)
    found = {"hf": HfDecoder, "torch": TorchDecoder}[kind](model, few_NC, V).search(
        tokens_BS, mask_BS, k=K, beam=K
    )
    assert sorted(found.row_BK[0, :4].tolist()) == [0, 1, 2, 3]
    assert found.row_BK[0, 4:].tolist() == [-1] * (K - 4)
    assert bool((found.score_BK[0, 4:] == -torch.inf).all())


def test_bfloat16_finds_nearly_the_same_scores(
    model: T5ForConditionalGeneration, codes_NC: Tensor, histories: tuple[Tensor, Tensor]
) -> None:
    exact = every_score(model, codes_NC, *histories)
    found = TorchDecoder(model, codes_NC, V, torch.bfloat16).search(*histories, k=K, beam=NUM_ITEMS)
    assert found.score_BK.dtype == torch.float32
    torch.testing.assert_close(found.score_BK, exact.gather(1, found.row_BK), atol=0.3, rtol=0.0)


def test_padding_changes_nothing(model: T5ForConditionalGeneration, codes_NC: Tensor) -> None:
    items = torch.tensor([[3, 7, 0, 0]])
    padded = history_tokens(codes_NC[items], torch.tensor([2]), V)
    plain = history_tokens(codes_NC[items[:, :2]], torch.tensor([2]), V)
    decoder = TorchDecoder(model, codes_NC, V)
    torch.testing.assert_close(
        decoder.search(*padded, k=K, beam=K).score_BK, decoder.search(*plain, k=K, beam=K).score_BK
    )


def test_an_empty_history_is_refused(codes_NC: Tensor) -> None:
    with pytest.raises(ValueError, match="empty"):
        history_tokens(codes_NC[torch.zeros(2, 1, dtype=torch.int64)], torch.tensor([1, 0]), V)


def test_the_dense_trie_holds_every_item_and_refuses_twins(codes_NC: Tensor) -> None:
    trie = DenseTrie(codes_NC, V)
    for row, codes in enumerate(codes_NC.tolist()):
        node = 0
        for depth, code in enumerate(codes):
            node = int(trie.child_PV[depth][node, code])
        assert node == row
    assert int((trie.child_PV[-1] >= 0).sum()) == NUM_ITEMS
    with pytest.raises(ValueError, match="same codes"):
        DenseTrie(torch.cat([codes_NC, codes_NC[:1]]), V)
