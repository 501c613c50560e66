"""The chapters in order: the one list that the fold, the workbook, the checks and the tests go by.

A chapter's modules may import only modules that stand before them here.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chapter:
    """A notebook and the modules that it folds into; a module of a folder is written with a dot."""

    number: int
    slug: str
    modules: tuple[str, ...]
    part: str

    @property
    def notebook(self) -> str:
        """The notebook's file name, such as 05_attention.ipynb."""
        return f"{self.number:02}_{self.slug}.ipynb"


FIRST, TRANSFORMER, TRAINING, GENERATION = (
    "A first language model",
    "The transformer",
    "Training",
    "Generation",
)

CHAPTERS = (
    Chapter(0, "tour", (), "The whole at a glance"),
    Chapter(1, "tokenizer", ("tokenizer",), FIRST),
    Chapter(2, "packing", ("packing",), FIRST),
    Chapter(3, "baseline", ("baseline",), FIRST),
    Chapter(4, "embeddings", ("embeddings",), TRANSFORMER),
    Chapter(5, "attention", ("attention",), TRANSFORMER),
    Chapter(6, "blocks", ("blocks",), TRANSFORMER),
    Chapter(7, "model", ("model",), TRANSFORMER),
    Chapter(8, "optim", ("optim",), TRAINING),
    Chapter(9, "train", ("train", "checkpoint"), TRAINING),
    Chapter(10, "precision", ("precision",), TRAINING),
    Chapter(11, "memory", ("memory",), TRAINING),
    Chapter(12, "diagnose", ("diagnose",), TRAINING),
    Chapter(13, "generate", ("generate",), GENERATION),
    Chapter(14, "cache", ("cache",), GENERATION),
    Chapter(15, "pretrained", ("pretrained",), GENERATION),
)

# Modules that no notebook folds yet. A test fails when one of these is folded or another is not: the list only shrinks.
STILL_TO_COME = (
    "tokenizer",
    "packing",
    "baseline",
    "embeddings",
    "blocks",
    "model",
    "optim",
    "train",
    "checkpoint",
    "precision",
    "memory",
    "diagnose",
    "generate",
    "cache",
    "pretrained",
)


def module_order() -> list[str]:
    """The chapter modules in the order in which they are built, which is the order in which they may import."""
    return [module for chapter in CHAPTERS for module in chapter.modules]


@dataclass(frozen=True)
class Course:
    """A package and the chapters that it is made of."""

    package: Path
    chapters: tuple[Chapter, ...] = CHAPTERS
    still_to_come: tuple[str, ...] = STILL_TO_COME

    @property
    def name(self) -> str:
        """What the package is imported as."""
        return self.package.name

    @property
    def modules(self) -> list[str]:
        """The chapter modules in order, those included that do not exist yet."""
        return [module for chapter in self.chapters for module in chapter.modules]

    def file(self, module: str) -> Path:
        """Where a module's text lies."""
        return self.package / module_file(module)


def module_file(module: str) -> str:
    """The path of a module inside its package.

    >>> module_file("readers.text")
    'readers/text.py'
    """
    return module.replace(".", "/") + ".py"


def module_name(package: str, module: str) -> str:
    """What a module is imported as.

    >>> module_name("minillm", "attention"), module_name("minillm", "readers.__init__")
    ('minillm.attention', 'minillm.readers')
    """
    return f"{package}.{module}".removesuffix(".__init__")


def notebooks_directory() -> Path:
    """The course's own notebooks: those of the checkout, or those that travel inside the installed package.

    Raises FileNotFoundError when the package was installed without them.
    """
    package = Path(__file__).resolve().parents[1]
    checkout, packaged = package.parent / "notebooks", package / "_notebooks"
    if checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return checkout
    if packaged.is_dir():
        return packaged
    raise FileNotFoundError(
        f"There are no notebooks in {packaged} and none in {checkout}: install the wheel of minillm-course, or work in "
        "a checkout of its repository."
    )


COURSE = Course(Path(__file__).resolve().parents[1])
