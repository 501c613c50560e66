"""Optimizers from scratch: AdamW, Muon, and the schedules that steer their learning rates.

Chapter: optim.

Choices: Muon for the matrices inside the blocks, AdamW for the token table, the head and the vectors; matrices of one
shape are orthogonalised together; a schedule is a function from the share of training done to a factor.

Sources: Adam, Kingma and Ba 2014 (arXiv:1412.6980), algorithm 1; decoupled weight decay, Loshchilov and Hutter 2017
(arXiv:1711.05101), algorithm 2; Muon, Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the cosine, Loshchilov
and Hutter 2016 (arXiv:1608.03983); warm-up, stable, decay, Hu et al. 2024 (MiniCPM, arXiv:2404.06395), section 4.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer


def adamw_step(
    parameter: Float[Tensor, "*S"],
    gradient: Float[Tensor, "*S"],
    mean: Float[Tensor, "*S"],
    square: Float[Tensor, "*S"],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Move one parameter in place, `step` counted from 1; `mean` and `square` are the running moments.

    Loshchilov and Hutter 2017, algorithm 2. Moments that begin at zero are too small by 1 - beta**step.
    """
    parameter.mul_(1 - lr * weight_decay)
    mean.lerp_(gradient, 1 - betas[0])
    square.lerp_(gradient.square(), 1 - betas[1])
    deviation = (square / (1 - betas[1] ** step)).sqrt_().add_(eps)
    parameter.addcdiv_(mean, deviation, value=-lr / (1 - betas[0] ** step))


class AdamW(Optimizer):
    """Adam with decoupled weight decay: every coordinate gets a step of about the learning rate."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
                state["step"] += 1
                adamw_step(
                    p, p.grad, state["mean"], state["square"], int(state["step"]),
                    group["lr"], group["betas"], group["eps"], group["weight_decay"],
                )  # fmt: skip


def orthogonalise(x: Float[Tensor, "N A B"], steps: int = 5) -> Float[Tensor, "N A B"]:
    """Push all singular values of N matrices towards 1, keeping their singular vectors, by matrix products alone.

    Newton-Schulz iteration with the quintic of Jordan et al. 2024, whose coefficients trade exactness for speed: after
    five steps the singular values lie between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if x.shape[1] > x.shape[2]:
        return orthogonalise(x.mT, steps).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon(Optimizer):
    """Momentum, orthogonalised: every direction of a matrix moves by the same amount.

    For matrices only; ValueError for anything else. The step of an (A, B) matrix is scaled by sqrt(max(1, A / B)).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0, steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon orthogonalises matrices; it got a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix, those of one shape together."""
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape].append(p)
            for (rows, columns), matrices in same_shape.items():
                directions = orthogonalise(torch.stack([self.momentum(p, group) for p in matrices]), group["steps"])
                for p, direction in zip(matrices, directions, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The running mean of the gradient, looked at one step ahead (Nesterov)."""
        assert p.grad is not None
        mean = self.state[p].setdefault("mean", torch.zeros_like(p))
        mean.lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(mean, group["momentum"])


class Together:
    """Several optimizers that step as one."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Let each make its step."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state of each under its number."""
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give each its state back; ValueError if their number has changed."""
        if len(state) != len(self.optimizers):
            raise ValueError(f"the state is of {len(state)} optimizers, there are {len(self.optimizers)}")
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(i)])


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Split a model's parameters by what suits them: "matrices" inside, "tables" at both ends, "vectors".

    Rows of the token table and the head belong to single tokens, so a step that treats all directions alike does not
    suit them (Jordan et al. 2024).
    """
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "tables": [], "vectors": []}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        at_the_ends = name.startswith(("embedding", "head", "positions"))
        groups["vectors" if p.ndim < 2 else "tables" if at_the_ends or p.ndim > 2 else "matrices"].append(p)
    return groups


Schedule = Callable[[float], float]


def cosine(done: float, final: float = 0.1) -> float:
    """From 1 down to `final` along half a cosine.

    >>> [round(cosine(x), 3) for x in (0.0, 0.5, 1.0)]
    [1.0, 0.55, 0.1]
    """
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


def stable_decay(done: float, flat: float = 0.2) -> float:
    """At 1 for the share `flat` of training, then in a straight line to 0.

    >>> [round(stable_decay(x), 3) for x in (0.0, 0.2, 0.6, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return 1.0 if done < flat else (1 - done) / (1 - flat)


def warm_up(step: int, warmup_steps: int) -> float:
    """From near 0 to 1 in a straight line over the first steps, counted from 0.

    >>> [warm_up(s, 4) for s in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(warmup_steps, 1))
