"""The optimizers against PyTorch's, orthogonalisation against the singular value decomposition, schedules by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from minillm.model import ModelConfig, Transformer
from minillm.optim import (
    AdamW,
    Muon,
    Together,
    cosine,
    orthogonalise,
    parameter_groups,
    stable_decay,
    warm_up,
)


SHAPES = [(3, 5), (7,), (2, 3, 4), (5, 3), (3, 5), ()]


def parameters(shapes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]


def follow(optimizers, pairs, steps: int, seed: int = 1) -> None:
    """The same random gradients for both; now and then one parameter has none."""
    source = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for i, (p, q) in enumerate(pairs):
            p.grad = None if (step + i) % 7 == 6 else torch.randn(p.shape, generator=source) * 10.0 ** (i - 3)
            q.grad = None if p.grad is None else p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()


def test_adamw_is_pytorchs():
    ours, theirs = parameters(SHAPES), parameters(SHAPES)

    def groups(ps):
        return [{"params": ps[:3], "lr": 0.03, "weight_decay": 0.1}, {"params": ps[3:], "betas": (0.8, 0.99)}]

    common = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-4, "weight_decay": 0.0}
    both = AdamW(groups(ours), **common), torch.optim.AdamW(groups(theirs), **common)
    follow(both, list(zip(ours, theirs, strict=True)), steps=20)
    for p, q, start in zip(ours, theirs, parameters(SHAPES), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert (p - start).abs().max() > 1e-2  # both have moved


def test_adamws_first_step_is_the_learning_rate():
    (p,) = parameters([(50,)])
    start = p.detach().clone()
    p.grad = torch.randn(50) * 10.0 ** torch.arange(-3, 2).repeat(10)
    AdamW([p], lr=0.01).step()
    torch.testing.assert_close(p.detach(), start - 0.01 * p.grad.sign(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 40, 12), (2, 12, 40), (1, 1, 9)])
def test_orthogonalise_keeps_the_singular_vectors_and_levels_the_values(shape):
    x = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.01, 1, 100])[: shape[0], None, None]
    )
    left, values, right = torch.linalg.svd(x.double(), full_matrices=False)
    y = orthogonalise(x).double()
    assert y.shape == x.shape
    in_the_same_basis = left.mT @ y @ right.mT  # diagonal if the singular vectors are the same
    new_values = in_the_same_basis.diagonal(dim1=1, dim2=2)
    off = in_the_same_basis - torch.diag_embed(new_values)
    assert off.abs().max() < 1e-4
    well_above_zero = values > 0.03 * values.amax(1, keepdim=True)
    assert well_above_zero.float().mean() > 0.9
    assert new_values[well_above_zero].min() > 0.6
    assert new_values.max() < 1.3
    polar = left @ right
    assert (y[0] * polar[0]).sum() / (y[0].norm() * polar[0].norm()) > 0.95


def test_one_newton_schulz_step_is_the_quintic_on_the_singular_values():
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    left, s, right = torch.linalg.svd(x[0].double(), full_matrices=False)
    s = s / x.double().norm()
    expected = left @ torch.diag(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) @ right
    torch.testing.assert_close(orthogonalise(x, 1)[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_zeros_moves_nothing():
    assert orthogonalise(torch.zeros(2, 3, 4)).abs().max() == 0


def test_matrices_orthogonalised_together_or_alone_are_the_same():
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(x), torch.cat([orthogonalise(one[None]) for one in x]))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch brings Muon from 2.9 on")
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"momentum": 0.8}, {"steps": 3}])
def test_muon_is_pytorchs(monkeypatch, options):
    """PyTorch iterates in bfloat16, which is made float32 here so that the two can be compared closely."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    shapes = [(6, 4), (4, 6), (5, 5), (6, 4), (8, 2)]
    ours, theirs = parameters(shapes), parameters(shapes)
    reference = {"weight_decay": 0.0, **options}
    reference["ns_steps"] = reference.pop("steps", 5)
    theirs_muon = torch.optim.Muon(theirs, lr=0.02, **reference)  # pyright: ignore[reportPrivateImportUsage]
    both = Muon(ours, lr=0.02, **options), theirs_muon
    follow(both, list(zip(ours, theirs, strict=True)), steps=8)
    for p, q, start in zip(ours, theirs, parameters(shapes), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        assert (p - start).norm() > 0.1


def test_muon_by_hand():
    """Two steps on one tall matrix, written out with an exact polar factor in place of the iteration."""
    (p,) = parameters([(8, 2)])
    q, mean = p.detach().double(), torch.zeros(8, 2).double()
    muon = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    for seed in (1, 2):
        gradient = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed))
        p.grad = gradient.clone()
        muon.step()
        mean = 0.9 * mean + 0.1 * gradient
        left, _, right = torch.linalg.svd(0.1 * gradient + 0.9 * mean, full_matrices=False)
        q = q * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(8 / 2) * left @ right
    assert (p - q).norm() < 0.35 * 2 * 0.1 * 2 * math.sqrt(2)  # singular values within 0.65 and 1.35 of two steps


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"Muon orthogonalises matrices; it got a parameter of shape \(7,\)"):
        Muon(parameters([(2, 3), (7,)]))


def two_optimizers(ps: list[nn.Parameter]) -> Together:
    return Together([Muon(ps[:1]), AdamW(ps[1:], lr=0.1)])


def gradients(ps: list[nn.Parameter], seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=source)


def test_together_steps_all_and_forgets_all():
    ps = parameters([(3, 4), (5,)])
    before = copy.deepcopy(ps)
    both = two_optimizers(ps)
    assert [len(group["params"]) for group in both.param_groups] == [1, 1]
    assert [group["lr"] for group in both.param_groups] == [0.02, 0.1]
    gradients(ps, 1)
    both.step()
    assert all((p != q).all() for p, q in zip(ps, before, strict=True))
    both.zero_grad()
    assert all(p.grad is None for p in ps)


def test_together_goes_on_from_its_state():
    ps = parameters([(3, 4), (5,)])
    first = two_optimizers(ps)
    gradients(ps, 1)
    first.step()
    qs = copy.deepcopy(ps)
    second = two_optimizers(qs)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in (2, 3):
        gradients(ps, seed)
        gradients(qs, seed)
        first.step()
        second.step()
    assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))


def test_together_refuses_another_number_of_states():
    ps = parameters([(3, 4), (5,)])
    alone = Together([AdamW(ps)])
    with pytest.raises(ValueError, match="the state is of 2 optimizers, there are 1"):
        alone.load_state_dict(two_optimizers(ps).state_dict())


@pytest.mark.parametrize("tied", [False, True])
def test_parameter_groups_hold_each_parameter_once(tied):
    model = Transformer(ModelConfig(vocab_size=11, n_layers=2, n_heads=2, d_model=8, tie_embeddings=tied))
    groups = parameter_groups(model)
    grouped = [id(p) for ps in groups.values() for p in ps]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    assert {id(p) for p in groups["tables"]} == {id(model.embedding.weight), id(model.head.weight)}
    assert all(p.ndim == 2 for p in groups["matrices"])
    assert len(groups["matrices"]) == 2 * 7  # query, key, value, output, gate, up, down
    assert all(p.ndim == 1 for p in groups["vectors"])


def test_parameter_groups_leave_out_what_is_frozen_and_keep_muon_from_tensors():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "inner": nn.Linear(4, 4), "conv": nn.Conv1d(4, 4, 3)})
    model["inner"].weight.requires_grad_(False)
    groups = parameter_groups(model)
    assert groups["matrices"] == []
    assert [tuple(p.shape) for p in groups["tables"]] == [(5, 4), (4, 4, 3)]
    assert [tuple(p.shape) for p in groups["vectors"]] == [(4,), (4,)]


def test_cosine_is_pytorchs():
    (p,) = parameters([(1,)])
    optimizer = torch.optim.SGD([p], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for step in range(21):
        assert cosine(step / 20) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_warm_up_is_pytorchs():
    (p,) = parameters([(1,)])
    optimizer = torch.optim.SGD([p], lr=1.0)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, total_iters=4)
    for step in range(8):
        assert warm_up(step, 5) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()
    assert warm_up(0, 0) == warm_up(0, 1) == 1


def test_stable_decay_is_flat_then_a_line_to_zero():
    shares = [i / 100 for i in range(101)]
    values = [stable_decay(share) for share in shares]
    assert values[:21] == [1.0] * 21
    slopes = [(b - a) / 0.01 for a, b in zip(values[20:], values[21:], strict=False)]
    assert slopes == pytest.approx([-1 / 0.8] * 80)
    assert values[-1] == 0
    assert stable_decay(0.75, flat=0.5) == 0.5
