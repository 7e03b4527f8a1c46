"""One function call in a fresh process: for what must not share a heap, or must be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any


def _main(function: Callable[..., Any], arguments: tuple[Any, ...], end: Any, kill: bool) -> None:
    try:
        end.send((True, function(*arguments)))
    except Exception as error:
        traceback.print_exc()
        end.send((False, f"{type(error).__name__}: {error}"))
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)


def call(function: Callable[..., Any], *arguments: Any, kill: bool = False) -> Any:
    """`function(*arguments)` in a new interpreter; with `kill` that process ends by SIGKILL.

    What the function leaves open is then never closed: it must hand its result back, and keep a
    reference to whatever shall be open when the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(function, arguments, theirs, kill))
    process.start()
    theirs.close()
    try:
        good, result = ours.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__}: the process died") from None
    finally:
        process.join()
    if not good:
        raise RuntimeError(f"{function.__name__}: {result}")
    return result
