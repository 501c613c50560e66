"""Checkpoints: what is read is what was written, damage is named, and no moment of a crash loses the last whole one."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minillm.checkpoint
from minillm.checkpoint import (
    checkpoints,
    flatten,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    unflatten,
    write_checkpoint,
)
from minillm.model import ModelConfig, Transformer
from minillm.support.files import STALE_SECONDS
from minillm.train import State, TrainConfig, train


ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread():
    """Numbers this small are added faster than they are handed out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": 11, "n_layers": 1, "n_heads": 2, "d_model": 8, "max_seq_len": 8, **options}
    return Transformer(ModelConfig(**sizes), window=5)


def make_state(step: int, numbers: int = 10) -> State:
    return State(step=step, optimizer={"mean": torch.full((numbers,), float(step))}, rng=torch.get_rng_state())


def trained(steps: int = 3) -> tuple[Transformer, State]:
    """A model with Muon's and AdamW's states behind it."""
    ids = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    model = make_model()
    *_, last = train(model, [(ids[:, :-1], ids[:, 1:])], TrainConfig(steps=steps))
    return model, last.snapshot()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit and to the type, all the way down."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


# What is read is what was written


def test_all_of_a_run_comes_back(tmp_path):
    model, state = trained()
    extra = {"tokenizer": "é", "rates": [0.1, 1e-9, None, True]}
    path = save_checkpoint(tmp_path, model, state, extra)
    assert names(path) == ["checkpoint.json", "model.safetensors", "state.safetensors"]
    loaded = load_checkpoint(path)
    assert loaded.state is not None
    assert_same(vars(loaded.state), vars(state))
    assert len(loaded.state.optimizer or {}) > 0
    assert_same(dict(loaded.model.state_dict()), dict(model.state_dict()))
    assert (loaded.model.config, loaded.model.window, loaded.extra) == (model.config, 5, extra)


@pytest.mark.parametrize(
    "tree",
    [
        {"state": {0: {"step": torch.tensor(3.0)}, 12: {}}, "param_groups": [{"betas": (0.9, 0.95), "params": [0, 1]}]},
        {"0": {"a": 1}, "1": {0: torch.arange(3)}},
        {"scale": 65536.0, "none": None, "yes": True, "huge": float("inf"), "nested": [(1, [2, (3,)]), ()]},
        {"bytes": torch.arange(5, dtype=torch.uint8), "half": torch.ones(2, dtype=torch.bfloat16), "empty": {}},
        {"transposed": torch.arange(6.0).reshape(2, 3).T},
    ],
    ids=["adam", "numbers as names", "plain", "formats", "not contiguous"],
)
def test_any_nested_state_comes_back(tmp_path, tree):
    model, state = make_model(), State(step=1, optimizer=tree)
    write_checkpoint(tmp_path / "c", model, state)
    loaded = load_checkpoint(tmp_path / "c").state
    assert loaded is not None
    assert_same(loaded.optimizer, tree)
    tensors: dict[str, torch.Tensor] = {}
    assert_same(unflatten(json.loads(json.dumps(flatten(tree, tensors))), tensors), tree)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_an_ordinary_safetensors_file(tmp_path, tied):
    model = make_model(tie_embeddings=tied)
    save_weights(model, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert ("head.weight" in stored) != tied
    for name, p in model.named_parameters():
        assert torch.equal(stored[name], p)


def test_a_tied_head_stays_tied(tmp_path):
    model = make_model(tie_embeddings=True)
    loaded = load_checkpoint(save_checkpoint(tmp_path, model, State(step=1))).model
    assert loaded.head.weight is loaded.embedding.weight
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids), model(ids))


def test_weights_alone(tmp_path):
    model = make_model()
    write_checkpoint(tmp_path / "release", model)
    assert names(tmp_path / "release") == ["checkpoint.json", "model.safetensors"]
    loaded = load_checkpoint(tmp_path / "release")
    assert (loaded.state, loaded.extra) == (None, {})
    assert_same(dict(loaded.model.state_dict()), dict(model.state_dict()))


def test_an_empty_state_is_a_state(tmp_path):
    write_checkpoint(tmp_path / "begin", make_model(), State())
    assert load_checkpoint(tmp_path / "begin").state == State()


def test_nothing_is_unpickled(tmp_path):
    """Not even what carries the right hash."""
    source = Path(minillm.checkpoint.__file__).read_text(encoding="utf-8")
    assert not re.search(r"\.(load|save)\(|import pickle|marshal|eval\(|exec\(", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.checkpoint, "save_file", torch.save)
        path = save_checkpoint(tmp_path, make_model(), make_state(1))
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file: "):
        load_checkpoint(path)


# Which are kept


def test_the_newest_are_kept(tmp_path):
    model = make_model()
    for step in (1, 2, 10, 9999):
        save_checkpoint(tmp_path / "run", model, make_state(step), keep=3)
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000010", "step-00009999"]
    save_checkpoint(tmp_path / "run", model, make_state(10_000))
    assert names(tmp_path / "run") == ["step-00009999", "step-00010000"]
    save_checkpoint(tmp_path / "run", model, make_state(10_001), keep=1)
    assert names(tmp_path / "run") == ["step-00010001"]
    loaded = load_checkpoint(tmp_path / "run").state
    assert loaded is not None
    assert loaded.step == 10_001
    with pytest.raises(ValueError, match="keep must be at least 1, not 0"):
        save_checkpoint(tmp_path / "run", model, make_state(10_002), keep=0)
    assert names(tmp_path / "run") == ["step-00010001"]


def test_a_run_that_went_back_keeps_what_it_writes(tmp_path):
    for step in (100, 200):
        save_checkpoint(tmp_path, make_model(), make_state(step))
    path = save_checkpoint(tmp_path, make_model(1), make_state(150), keep=1)
    assert torch.equal(load_checkpoint(path).model.embedding.weight, make_model(1).embedding.weight)
    path = save_checkpoint(tmp_path, make_model(2), make_state(200), keep=1)  # written a second time
    assert torch.equal(load_checkpoint(path).model.embedding.weight, make_model(2).embedding.weight)


def test_other_files_and_leftovers_are_passed_over(tmp_path):
    path = save_checkpoint(tmp_path, make_model(), make_state(7))
    for name in (".step-00000009.1a2b3c4d.tmp", "step-00000008.bak", "step-9", "notes", "best"):
        (tmp_path / name).mkdir()
    assert checkpoints(tmp_path) == [path]
    state = load_checkpoint(tmp_path).state
    assert state is not None
    assert state.step == 7
    assert checkpoints(tmp_path / "nowhere") == []


def test_what_a_kill_left_long_ago_is_cleared_by_a_later_save(tmp_path):
    old, young = tmp_path / ".step-00000003.1a2b3c4d.tmp", tmp_path / ".step-00000004.1a2b3c4d.tmp"
    for leftover in (old, young):
        leftover.mkdir()
        (leftover / "model.safetensors").write_text("half")
    long_ago = time.time() - 2 * STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    save_checkpoint(tmp_path, make_model(), make_state(5))
    assert names(tmp_path) == [young.name, "step-00000005"]  # the young one may have a living owner


# Damage is named


def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, make_model(), make_state(3), {"note": "a"})


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "state.safetensors"])
def test_every_flipped_byte_is_noticed(tmp_path, name):
    """Every 37th byte of a file, in turn. Of the JSON only white space may change."""
    file = saved(tmp_path) / name
    whole = file.read_bytes()
    for at in range(0, len(whole), 37 if name == "checkpoint.json" else 211):
        if name == "checkpoint.json" and whole[at : at + 1].isspace():
            continue
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load_checkpoint(tmp_path)
    file.write_bytes(whole)
    assert load_checkpoint(tmp_path).extra == {"note": "a"}


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "state.safetensors"])
def test_truncated_files_are_named_with_the_way_out(tmp_path, name, share):
    file = saved(tmp_path) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    wrong = "cannot be read" if name == "checkpoint.json" else "is damaged: its sha256 is not the recorded one"
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} {wrong}.*; use an older checkpoint of the run"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_missing_files_are_named(tmp_path, name):
    file = saved(tmp_path) / name
    file.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} is missing; use an older checkpoint of the run"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_without_its_json_is_named(tmp_path):
    file = saved(tmp_path) / "checkpoint.json"
    file.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} cannot be read .*; use an older checkpoint"):
        load_checkpoint(tmp_path)


def test_nothing_to_load(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ValueError, match=rf"{path} holds no checkpoint; expected .*checkpoint.json or folders step-…"
        ):
            load_checkpoint(path)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": "pt"}', '{"version": 1}', "null"])
def test_foreign_json_is_refused(tmp_path, text):
    file = saved(tmp_path) / "checkpoint.json"
    file.write_text(text)
    with pytest.raises(ValueError, match='was not written by minillm; expected "format": "minillm-checkpoint"'):
        load_checkpoint(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = saved(tmp_path) / "checkpoint.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"checkpoint\.json cannot be read"):
        load_checkpoint(tmp_path)


def forged(tmp_path: Path, monkeypatch, **changes: Any) -> Path:
    """A checkpoint whose JSON says something else, with every hash in order."""
    dumps = json.dumps

    def forge(about: Any, **options: Any) -> str:
        return dumps({**about, **changes} if isinstance(about, dict) else about, **options)

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", forge)
        write_checkpoint(tmp_path / "forged", make_model(), make_state(3))
    return tmp_path / "forged"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {**asdict(make_model().config), "n_experts": 8}},
        {"model": {**asdict(make_model().config), "d_model": 16}},
        {"model": {"n_layers": 1}},
        {"state": {"step": 1, "phase": "moon"}},
        {"state": {"step": 1, "rng": {"tensor": "/gone"}}},
        {"sha256": {}},
    ],
    ids=["field", "size", "missing", "state", "tensor", "files"],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, monkeypatch, changes):
    path = forged(tmp_path, monkeypatch, **changes)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))}.* does not fit this version of minillm: .+$"
    ) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["norm.weight", "embedding.weight", "blocks.0.attention.output.weight"])
def test_a_missing_weight_is_not_left_to_chance(tmp_path, monkeypatch, tied, name):
    save_file = minillm.checkpoint.save_file
    drop = lambda tensors, path: save_file({k: v for k, v in tensors.items() if k != name}, path)  # noqa: E731
    monkeypatch.setattr(minillm.checkpoint, "save_file", drop)
    path = save_checkpoint(tmp_path, make_model(tie_embeddings=tied), make_state(1))
    with pytest.raises(ValueError, match="does not fit this version of minillm"):
        load_checkpoint(path)


def test_another_version_is_named(tmp_path):
    file = saved(tmp_path) / "checkpoint.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"version": 1', '"version": 2'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"checkpoint.json is of version 2; this minillm reads version 1"):
        load_checkpoint(tmp_path)


# A crash at any moment

STEPS = ["fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "open"]


class Killed(BaseException):
    """The process is no more: whatever it still tries fails too."""


def fail_at(monkeypatch, at: int, error: BaseException, forever: bool) -> list[int]:
    """Make step number `at` of those that change the disk fail, and those after it too if `forever`; count them."""
    count = [0]

    def counted(function, half=None):
        def step(*args, **options):
            count[0] += 1
            if count[0] - 1 == at or (forever and count[0] > at):
                if half:
                    half(*args)
                raise error
            return function(*args, **options)

        return step

    def half_a_file(_, path) -> None:
        Path(path).write_bytes(b"half")

    for name in STEPS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    save_file = minillm.checkpoint.save_file
    monkeypatch.setattr(minillm.checkpoint, "save_file", counted(save_file, half_a_file))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text))
    return count


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
@pytest.mark.parametrize("kind", ["kill", "full disk", "broken disk"])
def test_a_failure_at_any_step_leaves_a_whole_checkpoint(tmp_path, monkeypatch, kind, again):
    """One run for each step of a save that touches the disk; in each the last or the new checkpoint must load."""
    error = {
        "kill": Killed(),
        "full disk": OSError(errno.ENOSPC, "No space left on device"),
        "broken disk": OSError(errno.EIO, "Input/output error"),
    }[kind]
    before, after = make_model(1), make_model(2)
    for at in range(1000):
        run = tmp_path / str(at)
        save_checkpoint(run, before, make_state(1), keep=1)
        failed = False
        with monkeypatch.context() as patch:
            count = fail_at(patch, at, error, forever=kind == "kill")
            try:
                save_checkpoint(run, after, make_state(1 if again else 2), keep=1)
            except (OSError, Killed):
                failed = True
        if count[0] <= at:
            break
        loaded = load_checkpoint(run)
        assert loaded.state is not None
        written = torch.equal(loaded.model.embedding.weight, after.embedding.weight)
        assert written or torch.equal(loaded.model.embedding.weight, before.embedding.weight)
        assert written or failed
        for path in checkpoints(run):  # not only the newest
            load_checkpoint(path)
        if kind == "full disk" and failed and not written:
            assert names(run) == ["step-00000001"]  # nothing of the new one takes up room
        path = save_checkpoint(run, after, make_state(3), keep=1)  # and the run goes on
        assert checkpoints(run) == [path]
    assert at > 10


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    saved(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(minillm.checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"The disk is full: .*step-00000004"):
        save_checkpoint(tmp_path, make_model(), make_state(4))
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_real_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """Children that save in a loop are killed after a random time; the newest must load, and never go back."""
    program = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from minillm.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from minillm.model import ModelConfig, Transformer
from minillm.train import State

torch.set_num_threads(1)
run, chance, last = Path(sys.argv[1]), random.Random(0), 0
model = Transformer(ModelConfig(vocab_size=11, n_layers=1, n_heads=2, d_model=8))

def save(step):
    save_checkpoint(run, model, State(step=step, rng=torch.full((200_000,), step % 251, dtype=torch.uint8)))

save(1)
for _ in range(40):
    child = os.fork()
    if child == 0:
        for step in range(last, 10**6):  # the last one is written again, as a resumed run might
            save(max(step, 1))
    time.sleep(chance.uniform(0.005, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = load_checkpoint(run).state
    assert state.step >= last and (state.rng == state.step % 251).all(), (state.step, last)
    last = state.step
    for path in checkpoints(run):
        load_checkpoint(path)
print("saved", last)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_training_run_killed_and_resumed_ends_like_the_run_never_stopped(tmp_path):
    """One process is killed in the middle of a step, another goes on: the end is that of an undisturbed run."""
    program = """
import os, signal, sys
from pathlib import Path
import torch
from minillm.baseline import cross_entropy
from minillm.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from minillm.model import ModelConfig, Transformer
from minillm.train import TrainConfig, train

torch.set_num_threads(1)

def run(folder, kill_at):
    torch.manual_seed(1)
    ids = torch.randint(11, (3, 2, 9))
    if checkpoints(folder):
        loaded = load_checkpoint(folder)
        model, start = loaded.model, loaded.state
    else:
        model, start = Transformer(ModelConfig(vocab_size=11, n_layers=1, n_heads=2, d_model=8)), None
    calls = [0]

    def loss(model, inputs, targets):
        calls[0] += 1
        if calls[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return cross_entropy(model, torch.where(torch.rand(inputs.shape) < 0.1, 0, inputs), targets)

    for step in train(model, [(x[:, :-1], x[:, 1:]) for x in ids], TrainConfig(steps=8), loss=loss, start=start):
        if step.step % 3 == 0 or step.step == 8:
            save_checkpoint(folder, model, step.snapshot())

for folder, kill_at, expected in (("straight", 0, 0), ("killed", 5, -signal.SIGKILL), ("killed", 0, 0)):
    child = os.fork()
    if child == 0:
        run(Path(sys.argv[1], folder), kill_at)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
    print([path.name for path in checkpoints(Path(sys.argv[1], folder))])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "['step-00000003']"
    straight, killed = (load_checkpoint(tmp_path / run) for run in ("straight", "killed"))
    assert_same(dict(killed.model.state_dict()), dict(straight.model.state_dict()))
    assert straight.state is not None
    assert killed.state is not None
    assert killed.state.step == 8
    assert_same(killed.state.optimizer, straight.state.optimizer)
