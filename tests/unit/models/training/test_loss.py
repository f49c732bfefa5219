import pytest
import torch
from torch.nn import functional

from models.training.loss import CHUNK_STATES, catalogue_loss, code_loss, sampled_loss


def test_code_loss_is_the_negative_log_probability_among_the_valid_codes():
    torch.manual_seed(0)
    logits, codes, valid = torch.randn(5, 4, 8), torch.randint(0, 8, (5, 4)), torch.rand(5, 4, 8) < 0.5
    valid.scatter_(2, codes[:, :, None], True)
    expected = 0.0
    for x in range(5):
        for level in range(4):
            among = logits[x, level][valid[x, level]]
            expected += (among.logsumexp(0) - logits[x, level, codes[x, level]]) / 5
    torch.testing.assert_close(code_loss(logits, codes, valid), expected)


def test_an_only_child_teaches_nothing():
    logits = torch.randn(3, 1, 8, requires_grad=True)
    codes = torch.tensor([[2], [0], [7]])
    loss = code_loss(
        logits, codes, torch.zeros(3, 1, 8, dtype=torch.bool).scatter_(2, codes[:, :, None], True)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("num_states", [0, 3, CHUNK_STATES + 5])
def test_catalogue_loss_and_its_gradients_equal_cross_entropy(num_states):
    torch.manual_seed(0)
    query = torch.randn(num_states, 6, requires_grad=True)
    vector = torch.randn(40, 6, requires_grad=True)
    target = torch.randint(0, 40, (num_states,))
    loss = catalogue_loss(query, vector, target, dtype=torch.float32)
    if not num_states:
        assert loss.item() == 0.0
        return
    (3 * loss).backward()
    fast = query.grad, vector.grad
    query.grad = vector.grad = None
    expected = functional.cross_entropy(query @ vector.T, target)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(fast, (query.grad, vector.grad))


def test_a_query_without_a_target_counts_for_nothing():
    torch.manual_seed(0)
    query, vector = torch.randn(7, 6, requires_grad=True), torch.randn(40, 6, requires_grad=True)
    target = torch.tensor([3, -1, 39, 0, -1, -1, 8])
    catalogue_loss(query, vector, target, dtype=torch.float32).backward()
    assert (query.grad != 0).any(1).tolist() == (target >= 0).tolist()
    found = vector.grad.clone(), query.grad[target >= 0].clone()
    query.grad = vector.grad = None
    functional.cross_entropy(query @ vector.T, target, ignore_index=-1).backward()
    torch.testing.assert_close(found, (vector.grad, query.grad[target >= 0]))


def test_the_sampled_loss_estimates_the_full_one():
    torch.manual_seed(0)
    query, vector = torch.randn(64, 6), torch.randn(50, 6)
    target = torch.randint(0, 50, (64,))
    num_negatives = 100_000
    probability = torch.arange(1, 51) / torch.arange(1, 51).sum()
    drawn = torch.multinomial(probability, num_negatives, replacement=True)
    estimate = sampled_loss(
        query,
        vector[target],
        vector[drawn],
        (num_negatives * probability[drawn]).log(),
        drawn == target[:, None],
    )
    assert estimate.item() == pytest.approx(
        functional.cross_entropy(query @ vector.T, target).item(), abs=0.01
    )
