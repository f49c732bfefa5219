import pytest
import torch
from torch.nn import functional

from models.loss import CHUNK_STATES, catalogue_loss, code_loss, sampled_loss


def test_code_loss_is_the_negative_log_probability_of_the_tuple():
    torch.manual_seed(0)
    logits, codes = torch.randn(5, 4, 8), torch.randint(0, 8, (5, 4))
    log_p = logits.log_softmax(2).gather(2, codes[:, :, None])[..., 0]
    torch.testing.assert_close(code_loss(logits, codes), -log_p.sum(1).mean())


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
