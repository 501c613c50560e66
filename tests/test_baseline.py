"""Cross-entropy and its sum over batches against numbers added up by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from minillm.baseline import bits_per_byte, cross_entropy, evaluate


class Table(nn.Module):
    """Scores for the next token that depend on the last one alone, and on the positions if there are any."""

    def __init__(self, V: int = 5) -> None:
        super().__init__()
        self.scores = nn.Parameter(3 * torch.randn(V, V, generator=torch.Generator().manual_seed(0)))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.scores[ids] * (1 if positions is None else positions[..., None])


def batch(seed: int, ignored: bool = True) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randint(5, (2, 2, 7), generator=random).unbind()
    if ignored:
        targets[torch.rand(2, 7, generator=random) < 0.4] = -100
    return inputs, targets


def by_hand(model: Table, inputs: Tensor, targets: Tensor, scale: Tensor | None = None) -> float:
    total = 0.0
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        if (target := int(targets[b, t])) != -100:
            row = [score * (1 if scale is None else int(scale[b, t])) for score in model.scores[inputs[b, t]].tolist()]
            total += math.log(sum(math.exp(score) for score in row)) - row[target]
    return total


def test_cross_entropy_is_a_sum_over_the_targets_that_count():
    model = Table()
    for seed in range(3):
        for ignored in (True, False):
            inputs, targets = batch(seed, ignored)
            loss = cross_entropy(model, inputs, targets)
            assert loss.item() == pytest.approx(by_hand(model, inputs, targets), rel=1e-5)
    torch.testing.assert_close(
        cross_entropy(model, inputs, targets), nn.CrossEntropyLoss(reduction="sum")(model(inputs).mT, targets)
    )


def test_nothing_to_predict_costs_nothing():
    inputs, targets = batch(0)
    assert cross_entropy(Table(), inputs, torch.full_like(targets, -100)).item() == 0.0


def test_cross_entropy_gives_gradients_at_the_targets_that_count_alone():
    model = Table()
    cross_entropy(model, torch.tensor([[0, 1]]), torch.tensor([[2, -100]])).backward()
    grad = model.scores.grad
    assert grad is not None
    expected = model.scores[0].softmax(-1) - nn.functional.one_hot(torch.tensor(2), 5)
    torch.testing.assert_close(grad[0], expected)
    assert not grad[1:].any()


def test_evaluate_sums_over_batches_and_passes_positions_on():
    model = Table()
    scale = torch.arange(14).view(2, 7)
    total, tokens = evaluate(model, iter([batch(1), (*batch(2), scale), batch(3, ignored=False)]))
    expected = by_hand(model, *batch(1)) + by_hand(model, *batch(2), scale) + by_hand(model, *batch(3, ignored=False))
    assert total == pytest.approx(expected, rel=1e-5)
    assert isinstance(total, float)
    assert tokens == sum(int((batch(seed)[1] != -100).sum()) for seed in (1, 2)) + 14
    assert evaluate(model, []) == (0.0, 0)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_does_not_train_and_leaves_the_model_as_it_was(training):
    model = Table().train(training)
    evaluate(model, [batch(0)])
    assert model.modes == [(False, False)]
    assert model.training is training
    assert model.scores.grad is None


def test_bits_per_byte():
    assert bits_per_byte(math.log(2), 1) == 1.0
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)  # a uniform guess among all bytes
    assert bits_per_byte(3 * math.log(1024), 12) == pytest.approx(2.5)  # three tokens of ten bits in twelve bytes
