"""The check of chapter attention: the layer.

Cases go from one token and one head to everything at once. Where a case comes out wrong, `attention_blame` looks at
what the layer hands on at each step, so that the message names the step and not the symptom.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minillm import attention
from minillm.course.checks.attention_blame import NAMES, Notes, Spy, name_all_heads, name_ending, name_mask, unshared
from minillm.course.checks.attention_words import close, well_formed
from minillm.course.checks.harness import Mistake, checks, same, when
from minillm.embeddings import rotary_angles, rotary_frequencies


PACKED = ((0, 1, 2, 0, 1, 0), (-1, -1, 0, 1, 2, 3), (0, 1, 2, 3, -1, -1))
LAYER = 5  # which layer asks the cache
UNCALLED = "the attend that is passed in is not called: keep it as self.attend and call that"
LATER = ((3, 4, 5, 6, 7, 8), (5, 6, 7, 8, 9, 10))


@dataclass(frozen=True)
class Case:
    """What a layer is made of, and in how many steps it is given the tokens; with steps there is a cache."""

    name: str
    heads: tuple[int, int] = (4, 2)
    width: int = 32
    norms: tuple[str, ...] = ()
    window: int | None = None
    positions: tuple[tuple[int, ...], ...] | None = None
    steps: tuple[int, ...] = ()
    keep: int | None = None
    head_dim: int = 8


BOTH = ("query_norm", "key_norm")
CASES = (
    Case("with one head", (1, 1), 8),
    Case("with several heads", (4, 4)),
    Case("with 4 heads that share 2 key-value heads"),
    Case("with heads that together are wider than the model", width=20),
    Case("with query_norm and key_norm", norms=BOTH),
    Case("with query_norm alone", norms=BOTH[:1]),
    Case("with key_norm alone", norms=BOTH[1:]),
    Case("with a window", window=2),
    Case("with positions", positions=PACKED),
    Case("with positions that do not begin at 0", positions=LATER),
    Case("with a window and positions", positions=PACKED, window=2),
    Case("with a cache", steps=(3, 2, 1)),
    Case("with a cache and norms", steps=(3, 2, 1), norms=BOTH),
    Case("with a cache and positions", steps=(4, 2), positions=PACKED),
    Case("with a cache and a window", steps=(3, 2, 1), window=2),
    Case("with a cache that drops what a window hides", steps=(3, 1, 1, 1), window=2, keep=1),
    Case("with a cache, positions and a window", steps=(3, 2, 1), positions=LATER, window=3),
)


def made(cls: Any, case: Case, **parts: Any) -> Any:
    """A layer of a case; of ours the weights of the norms differ, so that one cannot pass for the other."""
    torch.manual_seed(3)
    norms = {name: nn.RMSNorm(case.head_dim) for name in case.norms}
    return cls(case.width, *case.heads, case.head_dim, window=case.window, **norms, **parts)


def layers(cls: Any, case: Case, *spies: Spy) -> tuple[Any, Any]:
    """A reader's layer and ours with the same weights, each with its spy if there are any."""
    parts = [{"attend": spy} for spy in spies] or [{}, {}]
    theirs, ours = made(cls, case, **parts[0]), made(attention.Attention, case, **parts[1])
    if not isinstance(theirs, nn.Module):
        raise Mistake("it must be an nn.Module")
    for name in case.norms:
        getattr(ours, name).weight.data.uniform_(0.5, 2.0)
    compare_parameters(theirs, ours, case)
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def compare_parameters(theirs: nn.Module, ours: nn.Module, case: Case) -> None:
    """Raise Mistake if parameters are missing, surplus, shared, or of another shape."""
    got, expected = theirs.state_dict(), ours.state_dict()
    lists = f"its parameters are called {sorted(got)}, expected {sorted(expected)}"
    if surplus := [name for name in got if name not in expected]:
        bias = all(name.endswith(".bias") for name in surplus) and not expected.keys() - got.keys()
        raise Mistake(f"{', '.join(surplus)}: the projections have no bias, say bias=False" if bias else lists)
    if missing := [name for name in expected if name not in got]:
        lost = [name.split(".")[0] for name in missing]
        raise Mistake(
            f"{lists}: {', '.join(lost)} must be kept as attributes, self.{lost[0]} = ..., so that they register"
        )
    said = {"query": "n_heads * head_dim", "key": "n_kv_heads * head_dim", "value": "n_kv_heads * head_dim"}
    for name, right in expected.items():
        if got[name].shape != right.shape:
            layer = name.split(".")[0]
            if layer not in (*said, "output"):
                raise Mistake(f"{name} has the shape {tuple(got[name].shape)}, expected {tuple(right.shape)}")
            (out, into), found = right.shape, got[name].T.shape
            what = f"from {into} (n_heads * head_dim) to {out} (d_model)"
            what = what if layer == "output" else f"from {into} (d_model) to {out} ({said[layer]})"
            raise Mistake(f"{layer} should map {what}, it maps from {' to '.join(map(str, found))}")
    places = {}
    for name, parameter in theirs.named_parameters(remove_duplicate=False):
        if (other := places.setdefault(parameter.data_ptr(), name)) != name:
            raise Mistake(f"{other} and {name} are one and the same; each projection has weights of its own")


def tokens(case: Case) -> list[tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]]:
    """Inputs, angles and positions of every step."""
    random = torch.Generator().manual_seed(11)
    B, T = (2, 6) if case.positions is None else (len(case.positions), len(case.positions[0]))
    x = torch.randn(B, T, case.width, generator=random)
    positions = None if case.positions is None else torch.tensor(case.positions)
    angles = rotary_angles(torch.arange(T) if positions is None else positions, rotary_frequencies(case.head_dim))
    steps = torch.tensor(case.steps or (T,)).cumsum(dim=0).tolist()
    spans = [slice(start, end) for start, end in zip([0, *steps], steps)]
    return [
        (
            x[:, span].clone(),
            (angles[0][..., span, :].clone(), angles[1][..., span, :].clone()),
            None if positions is None else positions[:, span].clone(),
        )
        for span in spans
    ]


@dataclass
class Run:
    """What a layer was given, what it gave back, and what was seen on the way; `text` is where there is no padding."""

    case: Case
    layer: Any
    spy: Spy = field(default_factory=Spy)
    cache: Notes | None = None
    outputs: list[Tensor] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # how many calls of attend there were before each step

    def go(self) -> None:
        """Give the layer all steps."""
        self.cache = Notes(self.case.keep) if self.case.steps else None
        for given in tokens(self.case):
            self.starts.append(len(self.spy.calls))
            self.outputs.append(self.layer(*given) if self.cache is None else self.layer(*given, self.cache, LAYER))


def tried(cls: Any, case: Case) -> None:
    """Raise Mistake if a layer does not give in a case what ours does, with the step that is to blame."""
    spies = Spy(), Spy()
    theirs, ours = layers(cls, case, *spies)
    run, right = (Run(case, layer, spy) for layer, spy in zip((theirs, ours), spies))
    right.go()
    try:
        run.go()
    except NotImplementedError:
        raise
    except Exception:
        blame(run, ours, raised=True)
        raise
    for given, found, expected in zip(tokens(case), run.outputs, right.outputs):
        well_formed(found, torch.zeros_like(expected))
        text = torch.ones(expected.shape[:2], dtype=torch.bool) if given[2] is None else given[2] >= 0
        if not close(found[text], expected[text]):
            blame(run, ours)
            raise Mistake("its result is not what attention gives")
    if not run.spy.calls:
        raise Mistake(UNCALLED)
    for noted in [] if run.cache is None else run.cache.calls:
        name_layer(noted)


def blame(run: Run, ours: Any, raised: bool = False) -> None:
    """Raise Mistake for the first step that is wrong, if it can be told."""
    spied, noted = run.spy.calls, None if run.cache is None else run.cache.calls
    if not spied and not raised:
        raise Mistake(UNCALLED)
    if noted is not None and len(noted) != len(run.starts) and not raised:
        said = f"it is called {len(noted)} times in {len(run.starts)} forward passes"
        raise Mistake(f"keys and values must go through cache.update, once in every forward pass; {said}")
    for i, (x, angles, positions) in enumerate(tokens(run.case)[: len(run.starts)]):
        key_positions = positions
        if noted is not None:
            if i >= len(noted):
                return
            key_positions = noted[i]["returned"][2]
            blame_notes(noted[i], x, angles, positions, ours)
        if run.starts[i] >= len(spied):
            return
        call = spied[run.starts[i]]
        if call["q"].shape[1] == 1 < run.case.heads[0] and call["q"].shape[2] == x.shape[1]:
            return  # a head at a time
        if noted is not None:
            for name, kept in zip("kv", noted[i]["returned"]):
                if not close(unshared(call[name], kept, NAMES[name][0]), kept):
                    raise Mistake("what cache.update returns must be attended to as it is, keys first and then values")
        name_all_heads({name: call[name] for name in ("vkq" if noted is None else "q")}, x, ours, angles, "attend")
        name_mask(call, positions, key_positions, run.case.window)
        if i < len(run.outputs):
            name_ending(run.outputs[i], call, x, ours)


def blame_notes(noted: dict[str, Any], x: Tensor, angles: tuple[Tensor, Tensor], positions: Any, ours: Any) -> None:
    """Raise Mistake if a cache is told something else than it should be."""
    name_layer(noted)
    name_all_heads({name: noted[name] for name in "kv"}, x, ours, angles, "cache.update")
    told = noted["positions"]
    if (told is None) != (positions is None) or (told is not None and not torch.equal(told, positions)):
        raise Mistake("cache.update must be given the positions, to return those of all keys that it keeps")


def name_layer(noted: dict[str, Any]) -> None:
    """Raise Mistake if the cache was told another layer."""
    if noted["layer"] != LAYER:
        raise Mistake(f"cache.update must be told which layer asks: it got {noted['layer']}, expected layer={LAYER}")


def register(case: Case) -> None:
    """Make a mechanism of a case."""

    def mechanism(cls: Any) -> None:
        with when(case.name):
            tried(cls, case)

    mechanism.__name__ = case.name.replace(" ", "_")
    checks("Attention", chapter="attention")(mechanism)


for _case in CASES:
    register(_case)


@checks("Attention", chapter="attention")
def attends_by_default(cls: Any) -> None:
    """Without an attend of one's own it is attend or attend_torch; gradients reach every projection."""
    case = CASES[2]
    theirs, ours = layers(cls, case)
    given = tokens(case)[0]
    with when("without an attend that is passed in"):
        found, right = theirs(*given), ours(*given)
        same(found, right, "the result is wrong: the default should be attend or attend_torch", tolerance=1e-4)
    for result in (found, right):
        if result.requires_grad:
            result.square().sum().backward()
    for (name, one), (_, other) in zip(sorted(theirs.named_parameters()), sorted(ours.named_parameters())):
        if one.grad is None or not torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3):
            raise Mistake(f"no gradient, or a wrong one, reaches {name}: something was detached")


@checks("Attention", chapter="attention")
def refuses_uneven_heads(cls: Any) -> None:
    """Query heads that cannot share evenly are a ValueError."""
    for H, K in ((4, 3), (2, 4)):
        said = f"{H} query heads cannot share {K} key-value heads evenly; raise ValueError"
        try:
            cls(24, H, K, 6)
        except ValueError:
            continue
        except Exception as error:
            raise Mistake(f"{said}, not {type(error).__name__}") from error
        raise Mistake(f"{said} where n_heads is not a multiple of n_kv_heads")
