"""minillm: a language model built from scratch, one module a chapter."""

__version__ = "0.1.0"
