"""Training runs on disk: begun, resumed, finished, loaded and handed out.

A run is a folder: `config.json` (the recipe), `tokenizer.json`, `data/train` and `data/held_out` (token shards),
`checkpoints/step-…`, `metrics.jsonl` (one line a step), and at the end `result.json`. The folder appears under its name
only when recipe, tokenizer and data are complete, so a run that exists can always go on, be it from its first step.

Nothing here prints: preparing reports to a function passed in; training is an iterator whose caller shows the steps.
"""

import errno
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.baseline import bits_per_byte, evaluate
from minillm.cache import KVCache
from minillm.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint, write_checkpoint
from minillm.generate import generate, sampler, stream_text
from minillm.model import ModelConfig, Transformer
from minillm.packing import Batches, TokenShards, held_out_batches, write_shards
from minillm.recipes import PRESETS
from minillm.support.corpora import Corpus, TextDocument, load_corpus
from minillm.support.files import DiskFullError, is_leftover, new_directory, write_text_atomic
from minillm.support.plots import loss_figure, save_figure
from minillm.tokenizer import Tokenizer
from minillm.train import State, Step, TrainConfig, train


END_OF_TEXT = "<|endoftext|>"
FORMAT = "minillm-run"
PROMPTS = {"shakespeare": "KING RICHARD.\n", "python": "def "}  # how a text of the corpus may well go on
VALIDATION_TOKENS = 16_384  # of the held-out text while training; the final figure reads all of it

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """All that decides a run. The model's vocabulary is a wish: a small text may not have so many tokens to learn."""

    corpus: str
    model: ModelConfig
    training: TrainConfig
    batch_size: int = 16
    save_seconds: float = 30.0
    keep: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be, before any work is done."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep}: a run without a checkpoint cannot go on")
        if not self.save_seconds >= 0:
            raise ValueError(f"save_seconds must be 0 or more, not {self.save_seconds}")
        if self.model.vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes, end of text), not {self.model.vocab_size}")


@dataclass(frozen=True)
class Run:
    """A run that can go on: `state` is None before its first checkpoint."""

    directory: Path
    recipe: Recipe
    prompt: str
    tokenizer: Tokenizer
    model: Transformer
    state: State | None

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.directory.name

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.directory / "checkpoints"


@dataclass(frozen=True)
class Result:
    """What a finished run has to show; `bits_per_byte` is on the whole held-out text."""

    bits_per_byte: float
    held_out_bytes: int
    steps: int
    tokens: int
    seconds: float
    sample: str


def recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by its preset's name, with changes to any field of the recipe, its model or its training.

    A change of None is none; `seq_len` is the model's max_seq_len. `steps` and `max_seconds` replace one another.
    Raises ValueError for an unknown name or field, and for a value that cannot be.

    >>> recipe("nano", steps=100, d_model=64).training.max_seconds is None
    True
    """
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    if "steps" in given and "max_seconds" in given:
        raise ValueError("steps and max_seconds are both given: leave one out, the other decides how long it trains")
    wanted = {**PRESETS[name], **given}
    if "steps" in given:
        wanted.pop("max_seconds", None)
    wanted["max_seq_len"] = wanted.pop("seq_len")

    def fields_of(kind: type) -> dict[str, Any]:
        return {field.name: wanted.pop(field.name) for field in fields(kind) if field.name in wanted}

    shape = wanted.pop("model")
    model, training = ModelConfig.preset(shape, **fields_of(ModelConfig)), TrainConfig(**fields_of(TrainConfig))
    made = Recipe(model=model, training=training, **fields_of(Recipe))
    if wanted:
        raise ValueError(f"a recipe has no field {', '.join(wanted)}")
    return made


def free_name(runs_dir: Path, stem: str) -> str:
    """The stem with the first number that no run has yet: nano-1, nano-2, …"""
    number = 1
    while (runs_dir / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def check_name(name: str, runs_dir: Path) -> None:
    """ValueError for a name that is taken or can't be a folder's."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} can't name a run: use letters, digits, - and _")
    if (runs_dir / name).exists():
        raise ValueError(
            f"{runs_dir / name} exists already: go on with it (minillm train --resume {name}) or choose another --name"
        )


def start_run(recipe: Recipe, runs_dir: Path, name: str, fallback: bool = False, say: Say = lambda text: None) -> Run:
    """Read the corpus, learn a tokenizer, pack the tokens, and make the run's folder of it, whole or not at all.

    With fallback, Python's library stands in for a Shakespeare that can't be fetched. Raises ValueError for a name that
    is taken, a corpus without text or shorter than a batch; ArtifactUnavailable; DiskFullError.
    """
    check_name(name, runs_dir)
    corpus = load_corpus(recipe.corpus, fallback)
    say(corpus.note)
    train_documents, held_out = corpus.split()
    with new_directory(runs_dir / name, needed=corpus.n_bytes) as folder:
        say(f"Learning a vocabulary of {recipe.model.vocab_size} tokens ...")
        texts = (document.text for document in train_documents)
        tokenizer = Tokenizer.train(texts, recipe.model.vocab_size, [END_OF_TEXT])
        tokenizer.save(folder / "tokenizer.json")
        recipe = replace(recipe, model=replace(recipe.model, vocab_size=tokenizer.vocab_size))
        tokens = pack(tokenizer, train_documents, folder / "data" / "train")
        Batches(tokens, recipe.batch_size, recipe.model.max_seq_len)  # refuses a text that is too short
        tested = pack(tokenizer, held_out, folder / "data" / "held_out")
        write_config(folder, recipe, corpus, held_out)
    say(f"{tokens.n_tokens:,} tokens to train on; held out: {tested.n_documents} documents, {tested.n_bytes:,} bytes.")
    return open_run(runs_dir / name)


def pack(tokenizer: Tokenizer, documents: list[TextDocument], directory: Path) -> TokenShards:
    """Write the documents' tokens, each document followed by the end-of-text token."""
    end = tokenizer.special_tokens[END_OF_TEXT]
    encoded = ([*tokenizer.encode(document.text), end] for document in documents)
    return write_shards(encoded, directory, tokenizer.vocab_size, sum(document.n_bytes for document in documents))


def write_config(directory: Path, recipe: Recipe, corpus: Corpus, held_out: list[TextDocument]) -> None:
    """Keep the recipe and where the text came from."""
    about = {"name": corpus.name, "note": corpus.note, "documents": len(corpus.documents), "bytes": corpus.n_bytes}
    about["held_out"] = [document.name for document in held_out]
    config = {"format": FORMAT, "version": 1, "recipe": asdict(recipe), "corpus": about}
    config["prompt"] = PROMPTS.get(corpus.name, "\n")
    write_text_atomic(directory / "config.json", json.dumps(config, indent=1) + "\n")


def read_config(directory: Path) -> tuple[Recipe, str]:
    """The recipe of a run and the prompt of its samples; ValueError for anything else."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']!r}")
        kept = dict(config["recipe"])
        parts = {"model": ModelConfig(**kept.pop("model")), "training": TrainConfig(**kept.pop("training"))}
        return Recipe(**parts, **kept), config["prompt"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the configuration of a minillm run ({error})") from error


def resume_run(name: str | Path, runs_dir: Path, say: Say = lambda text: None) -> Run:
    """Open a run, by name or folder, where its newest whole checkpoint left it.

    A damaged checkpoint is set aside (damaged-step-…) and the one before it used. Raises ValueError for what is no run.
    """
    directory = find_run(name, runs_dir)
    while True:
        try:
            return open_run(directory)
        except ValueError as error:
            found = checkpoints(directory / "checkpoints")
            if not found or str(found[-1]) not in str(error) or not any(usable(path) for path in found[:-1]):
                raise
            say(f"{error}. It is set aside; going on from {found[-2].name}.")
            found[-1].rename(found[-1].with_name(f"damaged-{found[-1].name}"))


def usable(checkpoint: Path) -> bool:
    """True for a checkpoint that can be loaded."""
    try:
        load_checkpoint(checkpoint)
    except ValueError:
        return False
    return True


def find_run(name: str | Path, runs_dir: Path) -> Path:
    """The folder of a run, by name or path; ValueError with the names that there are."""
    for directory in (runs_dir / name, Path(name)):
        if (directory / "config.json").is_file():
            return directory
    known = ", ".join(path.name for path in all_runs(runs_dir)) or "none yet"
    raise ValueError(f"there is no run {str(name)!r}; runs in {runs_dir}: {known}")


def all_runs(runs_dir: Path) -> list[Path]:
    """The runs in a folder, by name."""
    found = runs_dir.iterdir() if runs_dir.is_dir() else ()
    return sorted(path for path in found if not is_leftover(path) and (path / "config.json").is_file())


def open_run(directory: Path) -> Run:
    """Tokenizer, model and state of a run; before its first checkpoint, the model as the seed draws it."""
    recipe, prompt = read_config(directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    if checkpoints(directory / "checkpoints"):
        checkpoint = load_checkpoint(directory / "checkpoints")
        check_same_data(checkpoint, directory)
        model, state = checkpoint.model, checkpoint.state
    else:
        torch.manual_seed(recipe.training.seed)
        model, state = Transformer(recipe.model), None
    return Run(directory, recipe, prompt, tokenizer, model, state)


def check_same_data(checkpoint: Checkpoint, directory: Path) -> None:
    """ValueError where the tokens are no longer those that the run began with."""
    recorded, found = checkpoint.extra.get("data_sha256"), TokenShards.open(directory / "data" / "train").sha256
    if recorded != found:
        raise ValueError(f"{directory / 'data'} is not the data that the run began with: start a new run")


def train_run(run: Run, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Train to the recipe's end, yielding each step; metrics and checkpoints are written on the way.

    A checkpoint is saved every `save_seconds`, at the end, and when `stop()` is true after a step; then it ends. Raises
    Diverged and DiskFullError; the checkpoint before stays.
    """
    recipe, tokens = run.recipe, TokenShards.open(run.directory / "data" / "train")
    batches = Batches(tokens, recipe.batch_size, recipe.model.max_seq_len, recipe.training.seed)
    validate = Validation(run, VALIDATION_TOKENS)
    extra = {"data_sha256": tokens.sha256, "prompt": run.prompt}
    metrics = run.directory / "metrics.jsonl"
    trim_metrics(metrics, run.state.step if run.state else 0)
    saved = time.monotonic()
    with metrics.open("a", encoding="utf-8", buffering=1) as log, naming_full_disk(metrics):
        for step in train(run.model, batches, recipe.training, validate=validate, start=run.state):
            log.write(metrics_line(step))
            stopping = stop()
            if stopping or step.step == step.total_steps or time.monotonic() - saved >= recipe.save_seconds:
                save_checkpoint(run.checkpoints, run.model, step.snapshot(), extra, recipe.keep)
                saved = time.monotonic()
            yield step
            if stopping:
                return


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's word for a full disk into one that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and not isinstance(error, DiskFullError):
            raise DiskFullError(path) from error
        raise


def metrics_line(step: Step) -> str:
    """One line of metrics.jsonl."""
    numbers = {key: value for key, value in vars(step).items() if key != "snapshot" and value is not None}
    return json.dumps(numbers) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; a last line that a kill cut short is passed over."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def trim_metrics(path: Path, step: int) -> None:
    """Keep the lines up to a step: those behind the checkpoint that a run goes on from will be written again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))


def byte_lengths(tokenizer: Tokenizer) -> Tensor:
    """Bytes of text behind each token, (V,); a special token stands for none."""
    special = set(tokenizer.special_tokens.values())
    return torch.tensor([0 if i in special else len(token) for i, token in enumerate(tokenizer.tokens)])


class Validation:
    """Bits per byte on a run's held-out text, or on about `max_tokens` of it, spread evenly."""

    def __init__(self, run: Run, max_tokens: int | None = None) -> None:
        held_out = TokenShards.open(run.directory / "data" / "held_out")
        T = run.recipe.model.max_seq_len
        batches = held_out_batches(held_out, 32, T)
        every = 1 if max_tokens is None else max(1, round(len(batches) * 32 * T / max_tokens))
        self.batches: Iterable[tuple[Tensor, ...]] = batches
        if every > 1:
            self.batches = [batch for number, batch in enumerate(batches) if number % every == 0]
        lengths = byte_lengths(run.tokenizer)
        self.n_bytes = sum(int(lengths[targets[targets >= 0]].sum()) for _, targets, *_ in self.batches)

    def __call__(self, model: Any) -> float:
        """Measure."""
        nats, _ = evaluate(model, self.batches)
        return bits_per_byte(nats, self.n_bytes)


def finish_run(run: Run) -> Result:
    """Measure a trained run on all of its held-out text, let it write a sample, keep both in result.json."""
    state = resume_point(run)
    validate = Validation(run)
    score = validate(run.model)
    sample = run.prompt + "".join(continue_text(run.model, run.tokenizer, run.prompt, seed=0))
    result = Result(score, validate.n_bytes, state.step, state.tokens, state.seconds, sample)
    write_text_atomic(run.directory / "result.json", json.dumps(asdict(result), indent=1) + "\n")
    return result


def resume_point(run: Run) -> State:
    """The state of the newest checkpoint; ValueError for a run that has none."""
    state = load_checkpoint(run.checkpoints).state
    if state is None:
        raise ValueError(f"{run.directory} has weights but no training state")
    return state


def draw_run(directory: Path, path: Path | None = None) -> Path:
    """Draw the curves of a run into its loss.png or elsewhere; MatplotlibMissing where that can't be."""
    path = path or directory / "loss.png"
    metrics = read_metrics(directory / "metrics.jsonl")
    save_figure(loss_figure(metrics, f"{directory.name}: {len(metrics):,} steps"), path)
    return path


def continue_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 200,
    sample: Callable[[Tensor], Tensor] | None = None,
    stop: tuple[str, ...] = (),
    repetition_penalty: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Text that continues the prompt, piece by piece; an empty prompt begins a new document.

    Raises ValueError for a prompt that does not fit the model.
    """
    end = tokenizer.special_tokens.get(END_OF_TEXT)
    ids = tokenizer.encode(prompt) or ([] if end is None else [end])
    tokens = generate(
        model,
        ids,
        max_new_tokens,
        sample or sampler(temperature=0.8, seed=seed),
        KVCache(window=model.window),
        () if end is None else (end,),
        repetition_penalty,
    )
    return stream_text(tokens, tokenizer, stop)


@dataclass(frozen=True)
class Located:
    """Where a model lies: the folder of its checkpoint, and its tokenizer's file."""

    checkpoint: Path
    tokenizer: Path


def shipped_folder(kind: str) -> Path:
    """Where "models" or "notebooks" lie that come with the package: in the checkout, or inside the installed wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / {"models": "data/models"}.get(kind, kind)
    return checkout if (package.parent / "pyproject.toml").is_file() else package / f"_{kind}"


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in shipped_folder("models").glob("*/checkpoint.json"))


def locate(name: str | Path, runs_dir: Path = Path("runs")) -> Located:
    """Find a model: a run, by name or folder; a checkpoint's folder; or the name of one that comes with the package.

    Raises ValueError with the names that there are.
    """
    for directory in (runs_dir / name, Path(name), shipped_folder("models") / name):
        if (directory / "checkpoint.json").is_file():
            beside, of_the_run = directory / "tokenizer.json", directory.parent.parent / "tokenizer.json"
            return Located(directory, beside if beside.is_file() else of_the_run)
        if (directory / "config.json").is_file():
            found = checkpoints(directory / "checkpoints")
            if not found:
                raise ValueError(f"{directory} has no checkpoint yet: minillm train --resume {directory.name}")
            return Located(found[-1], directory / "tokenizer.json")
    known = [path.name for path in all_runs(runs_dir)] + shipped_models()
    raise ValueError(
        f"there is no model {str(name)!r}: give the folder of a run or a checkpoint, or one of {', '.join(known)}"
    )


def newest_model(runs_dir: Path) -> str | Path:
    """The run whose checkpoint is newest, else the small model that comes with the package."""
    trained = [(found[-1], run) for run in all_runs(runs_dir) if (found := checkpoints(run / "checkpoints"))]
    return max(trained, key=lambda pair: pair[0].stat().st_mtime)[1] if trained else "nano"


def open_model(located: Located) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and the notes kept with them; ValueError where they can't be read or don't belong together."""
    if not located.tokenizer.is_file():
        raise ValueError(f"{located.checkpoint} has no tokenizer beside it: expected {located.tokenizer}")
    checkpoint, tokenizer = load_checkpoint(located.checkpoint), Tokenizer.load(located.tokenizer)
    if tokenizer.vocab_size != checkpoint.model.config.vocab_size:
        raise ValueError(
            f"{located.tokenizer} has {tokenizer.vocab_size} tokens, the model in {located.checkpoint} "
            f"{checkpoint.model.config.vocab_size}: they don't belong together"
        )
    return checkpoint.model, tokenizer, checkpoint.extra


def load_model(name: str | Path, runs_dir: Path = Path("runs")) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a run or a checkpoint (by folder or name), or one that comes with the package.

    >>> model, tokenizer = load_model("nano")
    >>> model.config.vocab_size == tokenizer.vocab_size
    True
    """
    return open_model(locate(name, runs_dir))[:2]


def best_run(runs_dir: Path) -> Path:
    """The finished run with the fewest bits per byte; ValueError where none is finished."""
    finished = [path for path in all_runs(runs_dir) if (path / "result.json").is_file()]
    if not finished:
        raise ValueError(f"no run in {runs_dir} is finished: train one first (minillm train)")
    return min(finished, key=lambda path: json.loads((path / "result.json").read_text())["bits_per_byte"])


def export_run(directory: Path, target: Path, replace_model: bool = False) -> None:
    """Write a run's weights and tokenizer, without what only training needs, for `load_model(target)`.

    Raises ValueError where the target exists, unless it is a model that is to give way.
    """
    if target.exists() and not (replace_model and (target / "checkpoint.json").is_file()):
        raise ValueError(f"{target} exists already: choose another folder, or --replace a model")
    model, tokenizer, extra = open_model(locate(directory))
    notes = {"prompt": extra.get("prompt", ""), "corpus": json.loads((directory / "config.json").read_text())["corpus"]}
    with suppress(OSError):
        notes["bits_per_byte"] = json.loads((directory / "result.json").read_text())["bits_per_byte"]
    write_checkpoint(target, model, extra=notes)
    tokenizer.save(target / "tokenizer.json")
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors writes what only its owner may read
