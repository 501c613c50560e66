"""Checkpoints that survive a crash at any moment.

A checkpoint is a folder of three files: the weights and the optimizer's tensors as safetensors, everything else as
JSON, with a hash of the other two. It is written under another name, flushed to the disk, and renamed; a rename happens
wholly or not at all. So whatever is called step-… is whole, and a kill leaves the one before.
Chapter: train.

Choice: nothing is pickled, so loading a checkpoint cannot run code.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minillm.model import ModelConfig, Transformer
from minillm.support.files import (
    remove_directory,
    remove_leftovers,
    replace_directory,
    restore_directory,
    sha256_of,
)
from minillm.train import State


FORMAT, VERSION = "minillm-checkpoint", 1


def flatten(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Move a nested structure's tensors into `tensors`; what returns is JSON with a pointer where each tensor was.

    >>> import torch; tensors = {}
    >>> flatten({"a": [1, torch.zeros(2)]}, tensors), list(tensors)
    ({'a': [1, {'tensor': '/a/1'}]}, ['/a/1'])
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().contiguous()
        return {"tensor": path}
    if isinstance(tree, dict):
        named = {key if isinstance(key, str) else f"#{key}": value for key, value in tree.items()}
        return {key: flatten(value, tensors, f"{path}/{key}") for key, value in named.items()}
    if isinstance(tree, tuple):
        return {"tuple": flatten(list(tree), tensors, path)}
    if isinstance(tree, list):
        return [flatten(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]
    return tree


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors back, and the tuples and whole numbers as keys, which JSON does not have."""
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        if set(tree) == {"tuple"}:
            return tuple(unflatten(tree["tuple"], tensors))
        return {int(k[1:]) if k[0] == "#" else k: unflatten(value, tensors) for k, value in tree.items()}
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    return tree


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` returns; `state` is None where only the weights were kept."""

    model: Transformer
    state: State | None
    extra: dict[str, Any]


def save_weights(model: nn.Module, path: Path) -> None:
    """The weights as one safetensors file; a tied head is stored once."""
    named = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in named.items()}, path)


def write_checkpoint(
    target: Path, model: Transformer, state: State | None = None, extra: dict[str, Any] | None = None
) -> None:
    """Write one checkpoint folder, whole or not at all; without a state it holds the weights alone.

    `extra` is JSON of the caller's. Raises OSError if the disk is full; what was there before stays.
    """
    with replace_directory(target) as folder:
        save_weights(model, folder / "model.safetensors")
        tree = None
        if state is not None:
            tensors: dict[str, Tensor] = {}
            tree = flatten(vars(state), tensors)
            save_file(tensors, folder / "state.safetensors")
        hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        about = {"format": FORMAT, "version": VERSION, "model": asdict(model.config), "window": model.window}
        about |= {"state": tree, "extra": extra or {}, "sha256": hashes}
        text = json.dumps({**about, "checksum": checksum(about)}, indent=1)
        (folder / "checkpoint.json").write_text(text, encoding="utf-8")


def save_checkpoint(
    directory: Path, model: Transformer, state: State, extra: dict[str, Any] | None = None, keep: int = 2
) -> Path:
    """Write `directory`/step-…, then delete the oldest so that `keep` are left up to it; return its path.

    Checkpoints of later steps, from before the run went back, stay.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: a run without a checkpoint cannot go on")
    target = directory / f"step-{state.step:08d}"
    clear_leftovers(directory)
    write_checkpoint(target, model, state, extra)
    for old in [path for path in checkpoints(directory) if path <= target][:-keep]:
        remove_directory(old)
    return target


def clear_leftovers(directory: Path) -> None:
    """Finish or undo what a kill interrupted; only for the one who writes there."""
    for path in directory.glob(".step-*") if directory.is_dir() else ():
        whole = directory / path.name.split(".")[1]
        restore_directory(whole)
        remove_leftovers(whole)


def checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    if not directory.is_dir():
        return []
    whole: dict[str, Path] = {}
    for path in sorted(directory.iterdir(), reverse=True):  # step-… comes before .step-….old, which may stand in for it
        if match := re.fullmatch(r"(step-\d{8})|\.(step-\d{8})\.old", path.name):
            whole.setdefault(match[1] or match[2], path)
    return [whole[name] for name in sorted(whole)]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or the newest one in a folder of them.

    ValueError, naming the file and the way out, for anything missing, truncated, changed, or written by something else.
    """
    path = Path(path)
    if not (path / "checkpoint.json").is_file():
        found = checkpoints(path)
        if not found:
            raise ValueError(f"{path} holds no checkpoint; expected {path / 'checkpoint.json'} or folders step-…")
        path = found[-1]
    about = read_about(path / "checkpoint.json")
    try:
        parts = {name: read_tensors(path / name, about["sha256"][name]) for name in sorted(about["sha256"])}
        model = Transformer(ModelConfig(**about["model"]), window=about["window"])
        weights = parts["model.safetensors"]
        if model.config.tie_embeddings:
            weights["head.weight"] = weights["embedding.weight"]
        model.load_state_dict(weights)
        state = State(**unflatten(about["state"], parts["state.safetensors"])) if about["state"] else None
        return Checkpoint(model, state, about["extra"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this version of minillm: {str(error).splitlines()[0]}") from error


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part, checked; ValueError says what is wrong with it."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use an older checkpoint of the run") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f'{path} was not written by minillm; expected "format": "{FORMAT}"')
    if about.get("version") != VERSION:
        raise ValueError(f"{path} is of version {about.get('version')}; this minillm reads version {VERSION}")
    if about.pop("checksum", None) != checksum(about):
        raise ValueError(f"{path} is damaged: its checksum is not the recorded one; use an older checkpoint of the run")
    return about


def checksum(about: dict[str, Any]) -> str:
    """The SHA-256 of the JSON part's content."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def read_tensors(path: Path, expected_sha256: str) -> dict[str, Tensor]:
    """A safetensors file, checked against its hash."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; use an older checkpoint of the run")
    if sha256_of(path) != expected_sha256:
        raise ValueError(f"{path} is damaged: its sha256 is not the recorded one; use an older checkpoint of the run")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
