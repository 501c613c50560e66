"""Runs on disk: begun whole, resumed exactly, measured right, found again."""

import errno
import json
import math
from pathlib import Path

import pytest
import torch

from minillm import checkpoint as checkpoint_module
from minillm import runs
from minillm.checkpoint import checkpoints, load_checkpoint, write_checkpoint
from minillm.packing import TokenShards
from minillm.recipes import PRESETS
from minillm.runs import (
    END_OF_TEXT,
    Validation,
    continue_text,
    export_run,
    finish_run,
    free_name,
    load_model,
    locate,
    newest_model,
    open_run,
    read_config,
    read_metrics,
    recipe,
    resume_run,
    shipped_models,
    start_run,
    train_run,
    trim_metrics,
)
from minillm.support.files import DiskFullError
from minillm.tokenizer import Tokenizer
from minillm.train import Diverged, TrainConfig


@pytest.fixture(autouse=True)
def one_thread():
    """The same numbers in every process, and no quarrel for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(6):
        words = " ".join(f"word{(i * i + number) % 89} café" for i in range(500))
        (folder / f"{number}.txt").write_text(f"Text number {number}.\n\n{words}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    torch.set_num_threads(1)
    run = start_run(recipe("tiny", corpus=str(texts), steps=12), tmp_path_factory.mktemp("runs"), "whole")
    for _ in train_run(run):
        pass
    finish_run(run)
    return run.directory


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(directory / "metrics.jsonl")]


def begin(texts: Path, folder: Path, name: str = "run", **changes) -> runs.Run:
    return start_run(recipe("tiny", corpus=str(texts), **{"steps": 12, **changes}), folder, name)


@pytest.mark.parametrize("name", ["accumulation", "lr", "matrix_lr", "seed"])
def test_what_the_presets_say_of_training_is_its_default(name: str):
    assert {preset[name] for preset in PRESETS.values()} == {getattr(TrainConfig(), name)}


def test_presets_are_whole_recipes():
    for name, preset in PRESETS.items():
        made = recipe(name)
        assert made.batch_size == preset["batch_size"]
        assert made.model.max_seq_len == preset["seq_len"]
        assert made.training.lr == preset["lr"]
        assert made.training.max_seconds == preset.get("max_seconds")


def test_changes_reach_every_part():
    made = recipe("nano", steps=7, seq_len=64, vocab_size=500, lr=0.5, keep=3, n_layers=1)
    assert (made.training.steps, made.training.max_seconds, made.training.lr) == (7, None, 0.5)
    assert (made.model.max_seq_len, made.model.vocab_size, made.model.n_layers, made.keep) == (64, 500, 1, 3)
    assert recipe("tiny", max_seconds=3.0).training.max_seconds == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 3, "max_seconds": 1.0}, "both given"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"keep": 0}, "keep must be at least 1, not 0"),
        ({"vocab_size": 256}, "at least 257"),
        ({"save_seconds": -1.0}, "save_seconds must be 0 or more, not -1.0"),
        ({"colour": 3}, "no field colour"),
        ({"lr": -1.0}, "lr must be positive, not -1.0"),
        ({"seq_len": 0}, "max_seq_len must be positive, not 0"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        recipe("nano", **changes)


def test_a_run_keeps_its_recipe(finished: Path, texts: Path):
    kept, prompt = read_config(finished)
    wanted = recipe("tiny", corpus=str(texts), steps=12)
    assert kept.training == wanted.training
    assert kept.model.vocab_size == Tokenizer.load(finished / "tokenizer.json").vocab_size
    assert prompt == "\n"


def test_documents_end_with_end_of_text_and_are_held_out_whole(finished: Path, texts: Path):
    tokenizer = Tokenizer.load(finished / "tokenizer.json")
    end = tokenizer.special_tokens[END_OF_TEXT]
    seen = {}
    for part in ("train", "held_out"):
        shards = TokenShards.open(finished / "data" / part)
        documents = [shards.document(i).tolist() for i in range(shards.n_documents)]
        assert all(ids[-1] == end and end not in ids[:-1] for ids in documents)
        seen[part] = {tokenizer.decode(ids[:-1]) for ids in documents}
    assert seen["train"] | seen["held_out"] == {path.read_text(encoding="utf-8") for path in texts.iterdir()}
    assert not seen["train"] & seen["held_out"]


def test_bits_per_byte_counts_every_token_of_the_held_out_text(finished: Path):
    """Against a calculation of its own: one window after another, log-probabilities added up, real bytes counted."""
    run = open_run(finished)
    shards = TokenShards.open(finished / "data" / "held_out")
    stream = torch.from_numpy(shards.document(0)) if shards.n_documents == 1 else None
    assert stream is not None
    T, nats = run.recipe.model.max_seq_len, 0.0
    before = torch.cat((stream[-1:], stream[:-1]))  # the very first token is predicted from the last
    run.model.eval()
    with torch.no_grad():
        for begin in range(0, len(stream), T):
            logits = run.model(before[begin : begin + T][None])[0]
            nats -= logits.log_softmax(-1)[range(len(logits)), stream[begin : begin + T]].sum().item()
    n_bytes = len(run.tokenizer.decode(stream[:-1].tolist()).encode())
    assert Validation(run).n_bytes == n_bytes == shards.n_bytes
    assert Validation(run)(run.model) == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert json.loads((finished / "result.json").read_text())["bits_per_byte"] == Validation(run)(run.model)


def test_validation_while_training_reads_a_part(finished: Path):
    run = open_run(finished)
    whole, part = Validation(run), Validation(run, max_tokens=1)
    assert 0 < part.n_bytes <= whole.n_bytes
    assert part(run.model) == pytest.approx(whole(run.model), rel=0.3)


def test_metrics_hold_every_step(finished: Path):
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["tokens"] == 12 * 4 * 32
    assert [line["step"] for line in lines if "validation" in line] == [10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("stop_after", [1, 5])
def test_a_stopped_run_goes_on_as_if_never_stopped(finished: Path, texts: Path, tmp_path: Path, stop_after: int):
    run, made = begin(texts, tmp_path), []
    for step in train_run(run, stop=lambda: len(made) + 1 == stop_after):
        made.append(step.step)
    assert made == list(range(1, stop_after + 1))
    resumed = resume_run("run", tmp_path)
    assert resumed.state is not None
    assert resumed.state.step == stop_after
    for _ in train_run(resumed):
        pass
    assert losses(run.directory) == losses(finished)
    for name, p in load_checkpoint(finished / "checkpoints").model.state_dict().items():
        assert torch.equal(p, resumed.model.state_dict()[name]), name


def test_a_run_killed_before_its_first_checkpoint_begins_again(finished: Path, texts: Path, tmp_path: Path):
    run = begin(texts, tmp_path)
    steps = iter(train_run(run))
    next(steps)
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    with (run.directory / "metrics.jsonl").open("a") as log:
        log.write('{"step": 2, "lo')
    assert checkpoints(run.checkpoints) == []
    for _ in train_run(resume_run("run", tmp_path)):
        pass
    assert losses(run.directory) == losses(finished)


def test_accumulated_runs_resume_exactly(texts: Path, tmp_path: Path):
    for name in ("whole", "halved"):
        run, count = begin(texts, tmp_path, name, accumulation=3, steps=6), 0
        for _ in train_run(run, stop=lambda name=name: name == "halved"):
            count += 1
        while count < 6:
            for _ in train_run(resume_run(name, tmp_path), stop=lambda: True):
                count += 1
    assert losses(tmp_path / "whole") == losses(tmp_path / "halved")


def test_a_time_budget_is_kept_over_a_stop(texts: Path, tmp_path: Path):
    run = begin(texts, tmp_path, steps=None, max_seconds=0.5)
    log = run.directory / "metrics.jsonl"
    last = list(train_run(run, stop=lambda: "total_steps" in read_metrics(log)[-1]))[-1]
    resumed = resume_run("run", tmp_path)
    assert resumed.state is not None
    assert resumed.state.total_steps == last.total_steps
    assert list(train_run(resumed))[-1].step == last.total_steps


def test_checkpoints_come_by_time_and_only_the_newest_stay(texts: Path, tmp_path: Path):
    often = begin(texts, tmp_path, "often", save_seconds=0.0, keep=3)
    for step in train_run(often):
        assert checkpoints(often.checkpoints)[-1].name == f"step-{step.step:08d}"
    assert [path.name[-2:] for path in checkpoints(often.checkpoints)] == ["10", "11", "12"]
    seldom = begin(texts, tmp_path, "seldom", save_seconds=1000.0)
    for step in train_run(seldom):
        assert len(checkpoints(seldom.checkpoints)) == (step.step == 12)


def test_a_damaged_checkpoint_is_set_aside(finished: Path, texts: Path, tmp_path: Path):
    run, said = begin(texts, tmp_path, save_seconds=0.0), []
    list(train_run(run, stop=lambda: len(losses(run.directory)) == 6))
    newest = checkpoints(run.checkpoints)[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    resumed = resume_run("run", tmp_path, said.append)
    assert resumed.state is not None
    assert resumed.state.step == 5
    assert "damaged" in said[0]
    for _ in train_run(resumed):
        pass
    assert losses(run.directory) == losses(finished)


def test_when_every_checkpoint_is_damaged_nothing_is_touched(texts: Path, tmp_path: Path):
    run = begin(texts, tmp_path, save_seconds=0.0, steps=3)
    for _ in train_run(run):
        pass
    for folder in checkpoints(run.checkpoints):
        (folder / "state.safetensors").write_bytes(b"")
    before = sorted(run.checkpoints.iterdir())
    with pytest.raises(ValueError, match="damaged"):
        resume_run("run", tmp_path)
    assert sorted(run.checkpoints.iterdir()) == before


def test_other_data_is_noticed(texts: Path, tmp_path: Path):
    run = begin(texts, tmp_path, steps=2)
    for _ in train_run(run):
        pass
    index = run.directory / "data" / "train" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "sha256": "0" * 64}))
    with pytest.raises(ValueError, match="not the data that the run began with"):
        resume_run("run", tmp_path)


def test_a_full_disk_loses_nothing(finished: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, real, written = begin(texts, tmp_path, save_seconds=0.0), checkpoint_module.save_file, []

    def fails_later(tensors, path):
        written.append(path)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", fails_later)
    with pytest.raises(DiskFullError, match=r"The disk is full: .*step-00000004.* nothing was written"):
        list(train_run(run))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000002", "step-00000003"]
    monkeypatch.undo()
    for _ in train_run(resume_run("run", tmp_path)):
        pass
    assert losses(run.directory) == losses(finished)


def test_a_full_disk_while_packing_leaves_no_run(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "pack", full)
    with pytest.raises(DiskFullError, match="run"):
        begin(texts, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_for_the_metrics(tmp_path: Path):
    with pytest.raises(DiskFullError, match=r"metrics\.jsonl"), runs.naming_full_disk(tmp_path / "metrics.jsonl"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), runs.naming_full_disk(tmp_path / "metrics.jsonl"):
        raise PermissionError("no")


def test_divergence_is_reported_and_the_checkpoint_before_stays(texts: Path, tmp_path: Path):
    run = begin(texts, tmp_path, save_seconds=0.0)
    steps = train_run(run)
    for _ in range(3):
        next(steps)
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    with pytest.raises(Diverged, match="step 4: loss nan"):
        next(steps)
    assert checkpoints(run.checkpoints)[-1].name == "step-00000003"


def test_names_are_never_taken_twice(texts: Path, tmp_path: Path):
    assert free_name(tmp_path, "nano") == "nano-1"
    begin(texts, tmp_path, "nano-1")
    assert free_name(tmp_path, "nano") == "nano-2"
    before = (tmp_path / "nano-1" / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"nano-1 exists already: .*--resume nano-1.* another --name"):
        begin(texts, tmp_path, "nano-1", steps=3)
    assert (tmp_path / "nano-1" / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "-x"])
def test_names_are_names_of_folders(texts: Path, tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="can't name a run"):
        begin(texts, tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_text_shorter_than_a_batch_leaves_no_run(tmp_path: Path):
    (tmp_path / "short.txt").write_text("to be or not to be\n\nthat is the question\n" * 2)
    with pytest.raises(ValueError, match="a batch of 4 x 32 reads 129"):
        start_run(recipe("tiny", corpus=str(tmp_path / "short.txt")), tmp_path / "runs", "run")
    assert list((tmp_path / "runs").iterdir()) == []


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.30000000000000004}\n{"step": 3}\n{"ste')
    trim_metrics(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.30000000000000004}\n'


def test_models_are_found_in_every_way(finished: Path):
    folder = checkpoints(finished / "checkpoints")[-1]
    for name in (finished, folder, str(finished), "whole"):
        model, tokenizer = load_model(name, finished.parent)
        assert torch.equal(model.head.weight, load_checkpoint(folder).model.head.weight)
        assert tokenizer.vocab_size == model.config.vocab_size
    assert newest_model(finished.parent) == finished


def test_a_shipped_model_is_there_without_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "nano" in shipped_models()
    assert newest_model(tmp_path) == "nano"
    model, tokenizer = load_model("nano")
    text = "".join(continue_text(model, tokenizer, "KING", max_new_tokens=5, seed=0))
    assert text == "".join(continue_text(model, tokenizer, "KING", max_new_tokens=5, seed=0))


def test_an_empty_prompt_begins_a_document():
    model, tokenizer = load_model("nano")
    assert list(continue_text(model, tokenizer, "", max_new_tokens=3, seed=0))


def test_a_missing_model_is_named_with_what_there_is(finished: Path):
    with pytest.raises(ValueError, match=r"no model 'nope'.*whole, nano"):
        load_model("nope", finished.parent)


def test_foreign_folders_are_refused(tmp_path: Path, finished: Path):
    (tmp_path / "checkpoint.json").write_text('{"format": "something else"}')
    (tmp_path / "tokenizer.json").write_bytes((finished / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="was not written by minillm"):
        load_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer beside it"):
        load_model(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"format": "minillm-run", "recipe": 3}')
    with pytest.raises(ValueError, match="not the configuration of a minillm run"):
        resume_run("run", tmp_path)


def test_model_and_tokenizer_must_belong_together(finished: Path, tmp_path: Path):
    model, _ = load_model(finished)
    write_checkpoint(tmp_path / "mixed", model)
    Tokenizer.train(["abc abc"], 257, [END_OF_TEXT]).save(tmp_path / "mixed" / "tokenizer.json")
    with pytest.raises(ValueError, match="don't belong together"):
        load_model(tmp_path / "mixed")


def test_a_run_without_checkpoint_has_no_model(texts: Path, tmp_path: Path):
    begin(texts, tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint yet: minillm train --resume run"):
        locate("run", tmp_path)
    assert newest_model(tmp_path) == "nano"


def test_export_keeps_the_weights_and_drops_the_state(finished: Path, tmp_path: Path):
    export_run(finished, tmp_path / "small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "checkpoint.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert load_checkpoint(tmp_path / "small").state is None
    ours, _ = load_model(tmp_path / "small")
    theirs, _ = load_model(finished)
    ids = torch.arange(20)[None]
    assert torch.equal(ours(ids), theirs(ids))
    with pytest.raises(ValueError, match="exists already"):
        export_run(finished, tmp_path / "small")
    export_run(finished, tmp_path / "small", replace_model=True)
    with pytest.raises(ValueError, match="exists already"):
        export_run(finished, tmp_path, replace_model=True)
