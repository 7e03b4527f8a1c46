"""The data directory of an engine: made when it is missing, and never that of another engine."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from siltstone.errors import Corruption, EnvironmentFailure, WrongFormat
from siltstone.log.device import rename_file, superblock_of

# The file of each engine in its data directory: `data` is a store's or a page cache's.
ENGINE_FILES: Final = ("data", "flash", "metrics")
UNFINISHED: Final = "unfinished"


def make_directory(path: str | os.PathLike[str], *, mode: int = 0o700) -> None:
    """With its parents, if it is missing. EnvironmentFailure: it cannot be had."""
    name = os.fspath(path)
    try:
        os.makedirs(name, mode, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise EnvironmentFailure(
            errno.ENOTDIR, f"{name} is no directory: a file is in the way"
        ) from error
    except OSError as error:
        raise EnvironmentFailure(error.errno, f"{name}: {error.strerror}") from error


@contextmanager
def made_whole(path: str, file: str) -> Iterator[str]:
    """Where to make the files of a new data directory, which has them when the block has ended.

    `file` comes last. After an error nothing of them stays, and after a crash nothing that opens.
    EnvironmentFailure: `path` has something in it.
    """
    if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise EnvironmentFailure(errno.EEXIST, f"{path} exists: name a new directory")
    part = os.path.join(path, UNFINISHED)
    make_directory(part)
    try:
        yield part
        for name in sorted(os.listdir(part), key=lambda name: name == file):
            rename_file(os.path.join(part, name), os.path.join(path, name))
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_free_for(file: str, directory: str | os.PathLike[str]) -> None:
    """WrongFormat when the engine's `file` would be made in a directory of another engine."""
    if os.path.lexists(os.path.join(directory, file)):
        return
    found = engine_in(directory)
    if found is not None:
        raise WrongFormat(
            f"{os.fspath(directory)} is the data directory of another engine, {found}: "
            "name another one",
            path=os.fspath(directory),
            found=found,
        )


def engine_in(directory: str | os.PathLike[str]) -> str | None:
    """Whose data directory it is; None: nobody's."""
    for file in ENGINE_FILES:
        try:
            found = superblock_of(os.path.join(directory, file))
        except Corruption:
            continue  # somebody else's file of that name
        if found is not None:
            return found.engine
    return None
