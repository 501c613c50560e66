"""Run what the reader wrote within limits: it ends in time, and leaves the random numbers as they were."""

import ctypes
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Stop(SystemExit):
    """Thrown into a thread that ran out of time; no `except Exception` of its function holds it up."""


def run_limited(function: Callable[[], object], seconds: float) -> BaseException | None:
    """Call a function in a thread of its own; what it raised, or TimeoutError if it did not end.

    A thread works in Jupyter and on every system, where signals do not. One that runs Python is stopped; one that is
    stuck inside a library lives on until the program ends.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return raised[0] if raised else None
    for _ in range(3):  # a function that catches everything may catch the first
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop))
        thread.join(0.3)
        if not thread.is_alive():
            break
    return TimeoutError(f"did not end within {seconds:g} s")


@contextmanager
def same_randomness() -> Iterator[None]:
    """Seed every generator for a mechanism and leave them as they were: a check changes nothing that comes after it."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (it is the old global generator that must not change)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
