"""The command line: `minillm train`, `generate`, `tokenize`, `corpora`, `info`, and the course's own commands.

Text goes to stdout, everything about the work to stderr. An expected failure is one line that names the value and the
way out, and exit code 1; wrong usage is exit code 2, Ctrl-C 130. PyTorch is imported by the commands that compute, so
that `minillm --help` is quick.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from minillm import __version__
from minillm.course.commands import register as register_course
from minillm.recipes import PRESETS
from minillm.support.artifacts import ArtifactUnavailable, cache_directory
from minillm.support.files import human_bytes
from minillm.support.progress import say, training_display


app = typer.Typer(help="A language model built from scratch: train one, let it write.", add_completion=False)

RunsDir = Annotated[Path, typer.Option(help="The folder of all runs.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A run, by name or folder, a checkpoint's folder, or a model that comes with minillm.",
        show_default="the newest run, else nano",
    ),
]


def by_preset(key: str, help: str) -> Any:
    """An option whose default is the preset's; the help shows it for each preset that has one."""
    shown = ", ".join(f"{name} {preset[key]}" for name, preset in PRESETS.items() if key in preset)
    values = {preset.get(key) for preset in PRESETS.values()}
    return typer.Option(help=help, show_default=str(values.pop()) if len(values) == 1 else shown)


def show_version(wanted: bool | None) -> bool | None:
    """Print the version and end."""
    if wanted:
        print(f"minillm {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A language model built from scratch: train one, let it write."""


@app.command("train")
def train_command(
    preset: Annotated[str, typer.Option(help=", ".join(PRESETS) + ".")] = "nano",
    corpus: Annotated[str | None, by_preset("corpus", "shakespeare, python, or a folder of text files.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.", show_default="nano-1, nano-2, …")] = None,
    steps: Annotated[int | None, by_preset("steps", "Optimizer steps.")] = None,
    max_seconds: Annotated[float | None, by_preset("max_seconds", "Train for so long, instead of --steps.")] = None,
    batch_size: Annotated[int | None, by_preset("batch_size", "Rows of a batch.")] = None,
    accumulation: Annotated[int | None, by_preset("accumulation", "Batches whose gradients make one step.")] = None,
    vocab_size: Annotated[int | None, by_preset("vocab_size", "Tokens of the vocabulary.")] = None,
    seq_len: Annotated[int | None, by_preset("seq_len", "Tokens of a row, and of the model's context.")] = None,
    lr: Annotated[float | None, by_preset("lr", "Learning rate of AdamW: tables and vectors.")] = None,
    matrix_lr: Annotated[float | None, by_preset("matrix_lr", "Learning rate of Muon: matrices.")] = None,
    seed: Annotated[int | None, by_preset("seed", "Decides first weights and the order of batches.")] = None,
    keep: Annotated[int | None, by_preset("keep", "Checkpoints to keep.")] = None,
    save_seconds: Annotated[float | None, by_preset("save_seconds", "Seconds between checkpoints.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run, by name or folder.", show_default="a new run")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train a model, on Shakespeare unless told otherwise; Ctrl-C saves, --resume goes on."""
    from minillm.runs import free_name, recipe, resume_run, start_run

    changes = {
        "steps": steps, "max_seconds": max_seconds, "batch_size": batch_size, "accumulation": accumulation,
        "vocab_size": vocab_size, "seq_len": seq_len, "lr": lr, "matrix_lr": matrix_lr, "seed": seed, "keep": keep,
        "save_seconds": save_seconds,
    }  # fmt: skip
    with stoppable() as stop:
        if resume is not None:
            given = [f"--{key.replace('_', '-')}" for key, value in {**changes, "corpus": corpus, "name": name}.items()
                     if value is not None]  # fmt: skip
            if given:
                raise ValueError(f"a resumed run keeps the settings it began with: leave out {', '.join(given)}")
            run = resume_run(resume, runs_dir, say)
        else:
            chosen = recipe(preset, corpus=corpus, **changes)
            run = start_run(chosen, runs_dir, name or free_name(runs_dir, preset), fallback=corpus is None, say=say)
        train_and_finish(run, stop)


def train_and_finish(run: Any, stop: "Stop") -> None:
    """Train a run to its end, show what it has learned; or stop on a signal and say how to go on."""
    from minillm.model import count_parameters
    from minillm.runs import train_run

    again = f"minillm train --resume {run.name if run.directory.parent == Path('runs') else run.directory}"
    done = f", going on after step {run.state.step}" if run.state else ""
    say(f"Training {run.directory} ({count_parameters(run.model):,} parameters{done}). Ctrl-C saves and stops.")
    try:
        with training_display() as show, stop.gently():
            for step in train_run(run, stop=lambda: stop.requested):
                show(step)
        if not stop.requested:
            show_result(run)
            return
    except OSError as error:
        raise OSError(f"{error} Then go on: {again}") from error
    except KeyboardInterrupt:
        stop.requested = True
    say(f"Stopped; nothing is lost. Go on with: {again}")
    raise typer.Exit(130)


def show_result(run: Any) -> None:
    """Held-out bits per byte and a sample on stdout; the picture, where it can be drawn."""
    from minillm.runs import draw_run, finish_run
    from minillm.support.plots import MatplotlibMissing

    say("Measuring on all of the held-out text ...")
    result = finish_run(run)
    try:
        say(f"Curves: {draw_run(run.directory)}")
    except MatplotlibMissing as error:
        say(f"No picture of the curves: {error}")
    print(f"held-out: {result.bits_per_byte:.3f} bits per byte ({result.held_out_bytes:,} bytes)", flush=True)
    print(f"\n{result.sample.rstrip()}\n", flush=True)
    say(f"Let it write: minillm generate --model {run.name if run.directory.parent == Path('runs') else run.directory}")


class Stop:
    """What SIGINT and SIGTERM do: they interrupt, or in a `gently` block ask once and then interrupt."""

    def __init__(self) -> None:
        self.requested = False
        self.gentle = False

    def __call__(self, *_: Any) -> None:
        """Handle a signal."""
        if not self.gentle or self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Inside, the first signal only sets `requested`."""
        self.gentle = True
        try:
            yield
        finally:
            self.gentle = False


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Route SIGINT and SIGTERM to a Stop."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command("generate")
def generate_command(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue.", show_default="one that suits the model")
    ] = None,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token; 1 samples as learned.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest.", show_default="off")] = None,
    top_p: Annotated[float | None, typer.Option(help="Among the likeliest of sum p.", show_default="off")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Among those at least p times as likely as the best.", show_default="off")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, what occurred becomes less likely.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same.", show_default="another")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Continue a text, piece by piece as it is written."""
    from minillm.generate import sampler
    from minillm.runs import continue_text, locate, newest_model, open_model

    if not repetition_penalty > 0:
        raise ValueError(f"repetition_penalty must be positive, not {repetition_penalty}")
    sample = sampler(temperature, top_k, top_p, min_p, seed)
    located = locate(model or newest_model(runs_dir), runs_dir)
    network, tokenizer, notes = open_model(located)
    say(f"Model: {located.checkpoint}")
    text = notes.get("prompt", "\n") if prompt is None else prompt
    pieces = continue_text(network, tokenizer, text, max_new_tokens, sample, tuple(stop or ()), repetition_penalty)
    for number, piece in enumerate(pieces):
        print(text * (number == 0) + piece, end="", flush=True)
    print()


@app.command("tokenize")
def tokenize_command(
    text: Annotated[str | None, typer.Argument(help="Text to cut into tokens.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from a file; - is stdin.")] = None,
    model: ModelOption = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json.", show_default="the model's")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show the tokens of a text and their ids."""
    from minillm.runs import locate, newest_model
    from minillm.tokenizer import Tokenizer

    if (text is None) == (file is None):
        raise typer.BadParameter("give either a TEXT or a --file")
    if tokenizer and model:
        raise typer.BadParameter("give either --model or --tokenizer")
    content = text.encode() if text is not None else read_bytes(file)
    path = tokenizer or locate(model or newest_model(runs_dir), runs_dir).tokenizer
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the tokenizer.json of a run")
    cutter = Tokenizer.load(path)
    ids = cutter.encode(content)
    if sys.stdout.isatty():
        show_pieces([cutter.token_bytes(i) for i in ids], ids)
    else:
        for i in ids:
            print(f"{i}\t{show_bytes(cutter.token_bytes(i))}")
    say(f"{len(ids)} tokens for {len(content)} bytes; {path} has {cutter.vocab_size} tokens")


def read_bytes(file: Path | None) -> bytes:
    """A file's content, or what comes on stdin for -."""
    return sys.stdin.buffer.read() if file == Path("-") or file is None else file.read_bytes()


def show_bytes(token: bytes) -> str:
    r"""A token in quotes, its bytes shown where they are not whole characters.

    >>> print(show_bytes(b"the\n"), show_bytes(b"\xc3"))
    'the\n' b'\xc3'
    """
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)


def show_pieces(pieces: Sequence[bytes], ids: Sequence[int]) -> None:
    """The text in coloured pieces, then the ids in the same colours, for a terminal."""
    from rich.console import Console
    from rich.text import Text

    styles = [f"black on {colour}" for colour in ("bright_cyan", "bright_yellow", "bright_green", "bright_magenta")]
    shown, numbers = Text(), Text()
    for place, (piece, i) in enumerate(zip(pieces, ids)):
        letters = piece.decode("utf-8", "backslashreplace").replace("\n", "⏎\n")
        shown.append(letters, styles[place % 4])
        numbers.append(str(i), styles[place % 4]).append(" ")
    console = Console()
    console.print(shown)
    console.print(numbers)


@app.command("corpora")
def corpora_command() -> None:
    """List the texts there are to train on."""
    from minillm.support.corpora import describe

    rows = [("name", "texts", "size", "licence", "from", "on this machine")]
    for corpus in describe():
        here = "yes" if corpus.cached else "fetched at first use"
        rows.append(
            (corpus.name, str(corpus.documents), human_bytes(corpus.n_bytes), corpus.licence, corpus.source, here)
        )
    rows.append(("FOLDER", "", "", "", "any folder of text files of yours", "yes"))
    print_table(rows)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


@app.command("info")
def info_command(model: ModelOption = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Show versions, the machine, where things lie, and the size and cost of a model."""
    import platform

    import torch

    from minillm.model import count_parameters, flops_per_token
    from minillm.runs import all_runs, locate, newest_model, open_model, shipped_models

    located = locate(model or newest_model(runs_dir), runs_dir)
    network, _, notes = open_model(located)
    config = network.config
    rows = [
        ("minillm", f"{__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}"),
        ("device", f"{device_name()}, {torch.get_num_threads()} threads"),
        ("cache", str(cache_directory())),
        ("runs", ", ".join(path.name for path in all_runs(runs_dir)) or f"none in {runs_dir}"),
        ("shipped models", ", ".join(shipped_models())),
        ("", ""),
        ("model", str(located.checkpoint)),
        ("parameters", f"{count_parameters(network):,}"),
        ("vocabulary", f"{config.vocab_size:,} tokens"),
        ("context", f"{config.max_seq_len:,} tokens"),
        (
            "layers",
            f"{config.n_layers} of width {config.d_model}, {config.n_heads} heads, {config.n_kv_heads} for keys",
        ),
        ("forward pass", f"{flops_per_token(config) / 1e6:,.2f} MFLOP a token"),
        ("training", f"{flops_per_token(config, training=True) / 1e6:,.2f} MFLOP a token"),
    ]
    if "bits_per_byte" in notes:
        rows.append(("held-out", f"{notes['bits_per_byte']:.3f} bits per byte"))
    print_table(rows)


def device_name() -> str:
    """The device that PyTorch could use here; the course runs on the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cpu (cuda is there: {torch.cuda.get_device_name()})"
    return "cpu (mps is there)" if torch.backends.mps.is_available() else "cpu"


@app.command("plot")
def plot_command(
    run: Annotated[str | None, typer.Argument(help="A run.", show_default="the best finished one")] = None,
    to: Annotated[Path | None, typer.Option(help="The picture's file.", show_default="loss.png in the run")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Draw a run's loss curves again."""
    from minillm.runs import best_run, draw_run, find_run

    print(draw_run(find_run(run, runs_dir) if run else best_run(runs_dir), to))


@app.command("export")
def export_command(
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    run: Annotated[str | None, typer.Argument(help="A run.", show_default="the best finished one")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="An earlier model in the folder gives way.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a run's weights and tokenizer without what only training needs."""
    from minillm.runs import best_run, export_run, find_run
    from minillm.support.files import sha256_of

    export_run(find_run(run, runs_dir) if run else best_run(runs_dir), to, replace)
    for path in sorted(to.iterdir()):
        print(f"{sha256_of(path)}  {path}")


register_course(app)


def is_expected(error: Exception) -> bool:
    """True for a failure that a user can cause and mend; anything else is a mistake in minillm and keeps its trace."""
    training = sys.modules.get("minillm.train")
    expected = (ValueError, OSError, ArtifactUnavailable, *([training.Diverged] if training else []))
    return isinstance(error, expected) and not os.environ.get("MINILLM_DEBUG")


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    command = typer.main.get_command(app)
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        return int(command.main(args=given or ["--help"], prog_name="minillm", standalone_mode=False) or 0)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own word for wrong usage
            say(f"minillm: {error.format_message()} (minillm --help shows how)")  # pyright: ignore[reportAttributeAccessIssue]
            return 2
        if not is_expected(error):
            raise
        say(f"minillm: {one_line(error)}")
        return 1
