"""Tables and rotations against torch's embedding, transformers' rotary positions and complex numbers."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from minillm.embeddings import LearnedPositions, TokenEmbedding, rotary_angles, rotary_frequencies, rotate


def turned(x: torch.Tensor, positions: torch.Tensor, theta: float = 10_000.0) -> torch.Tensor:
    return rotate(x, rotary_angles(positions, rotary_frequencies(x.shape[-1], theta)))


def peer(head_dim: int, theta: float) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": "default", "rope_theta": theta}
    return LlamaRotaryEmbedding(LlamaConfig(head_dim=head_dim, rope_parameters=parameters))


def test_token_table_is_torchs_embedding_forward_and_backward():
    torch.manual_seed(0)
    ours, theirs = TokenEmbedding(11, 6), nn.Embedding(11, 6)
    theirs.weight.data.copy_(ours.weight)
    ids, up = torch.randint(11, (3, 5)), torch.randn(3, 5, 6)
    assert torch.equal(ours(ids), theirs(ids))
    (ours(ids) * up).sum().backward()
    (theirs(ids) * up).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_learned_positions_are_rows_of_the_table():
    table = LearnedPositions(5, 4)
    assert torch.equal(table(torch.tensor([[0, 4, 2]])), table.weight[None, [0, 4, 2]])
    assert torch.equal(table(torch.tensor([3])), table.weight[3:4])
    assert table(torch.tensor([[-1, -1, 0]])).shape == (1, 3, 4)  # padding gets some vector; nobody looks at it
    assert table(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, 4)


def test_a_position_that_was_never_learned_is_refused():
    with pytest.raises(ValueError, match="position 5 is past the 5 learned positions; shorten the sequence or use rot"):
        LearnedPositions(5, 4)(torch.tensor([[0, 5]]))


@pytest.mark.parametrize(("head_dim", "theta"), [(2, 10_000.0), (8, 500.0), (64, 100_000.0), (128, 1e6)])
def test_frequencies_are_those_of_transformers(head_dim, theta):
    torch.testing.assert_close(rotary_frequencies(head_dim, theta), peer(head_dim, theta).inv_freq)


def test_an_odd_head_has_a_coordinate_without_a_partner():
    with pytest.raises(ValueError, match="head_dim must be even, not 7"):
        rotary_frequencies(7)


@pytest.mark.parametrize(("head_dim", "theta"), [(2, 10_000.0), (8, 500.0), (64, 100_000.0)])
def test_rotation_is_that_of_transformers(head_dim, theta):
    torch.manual_seed(1)
    q, k = torch.randn(2, 4, 9, head_dim), torch.randn(2, 2, 9, head_dim)
    positions = torch.stack((torch.arange(9), torch.arange(9) * 7 + 300))
    theirs = apply_rotary_pos_emb(q, k, *peer(head_dim, theta)(q, positions))
    for x, expected in zip((q, k), theirs):
        torch.testing.assert_close(turned(x, positions, theta), expected, atol=1e-4, rtol=0.0)


def test_rotation_is_multiplication_by_a_complex_number():
    torch.manual_seed(2)
    x, positions = torch.randn(1, 1, 6, 8, dtype=torch.float64), torch.arange(6) * 3
    numbers = torch.complex(x[..., :4], x[..., 4:])
    angles = positions[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    expected = numbers * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        turned(x, positions), torch.cat((expected.real, expected.imag), -1), atol=1e-6, rtol=1e-5
    )


def test_products_depend_on_the_distance_alone():
    torch.manual_seed(3)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind()

    def product(at: int, other: int) -> float:
        return float((turned(q, torch.tensor([at])) * turned(k, torch.tensor([other]))).sum())

    assert product(5, 2) == pytest.approx(product(103, 100), abs=1e-4)
    assert product(2, 5) == pytest.approx(product(100, 103), abs=1e-4)
    assert abs(product(5, 2) - product(5, 3)) > 1e-2  # the distance does matter
    assert abs(product(5, 2) - product(2, 5)) > 1e-2  # and so does its direction


def test_rotation_keeps_lengths_and_position_0_turns_nothing():
    torch.manual_seed(4)
    x = torch.randn(2, 3, 4, 16)
    torch.testing.assert_close(turned(x, torch.arange(4) + 50).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned(x, torch.zeros(4, dtype=torch.long)), x)


def test_every_row_and_head_is_turned_by_its_own_positions():
    torch.manual_seed(5)
    x, positions = torch.randn(3, 2, 4, 8), torch.randint(50, (3, 4))
    for b in range(3):
        for t in range(4):
            alone = turned(x[b : b + 1, :, t : t + 1], positions[b, t : t + 1])
            torch.testing.assert_close(turned(x, positions)[b : b + 1, :, t : t + 1], alone)


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError):
        rotate(torch.randn(1, 2, 3, 8), rotary_angles(torch.arange(4), rotary_frequencies(8)))
