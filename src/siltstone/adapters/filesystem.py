"""A `siltstone.Store` as an fsspec file system: `fsspec.filesystem("siltstone", path="/data/x")`.

Names with slashes are keys of a tree; directories exist while something lies below them. A file is
written whole or not at all, and is visible when it is closed. Pandas, Arrow, Dask and others read
and write through it: `pandas.read_parquet("siltstone://a.parquet", storage_options={"path": ...})`.
Needs the extra [adapters].
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

from fsspec.spec import AbstractFileSystem

from siltstone.errors import SiltstoneError
from siltstone.store.store import Store


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """`path`: of the store, opened here, or `store`: an open one; `tree`: where the files are."""

    protocol = "siltstone"
    root_marker = ""

    def __init__(
        self,
        path: Any = None,
        store: Store | None = None,
        tree: str = "files",
        read_only: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if store is None and path is None:
            raise ValueError('say which store: path="/data/x", or store= an open one')
        self.store = Store(path, read_only=read_only) if store is None else store
        try:
            self._tree = self.store.tree(tree) if tree else self.store
        except SiltstoneError:
            if store is None:
                self.store.close()
            raise
        self._tree_name = tree

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(super()._strip_protocol(path)).strip("/")

    def close(self) -> None:
        """Close the store. The instance must not be used afterwards."""
        self.store.close()
        self.clear_instance_cache()

    # Looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type of a file or directory."""
        name = self._strip_protocol(path)
        size = self._size(name.encode())
        if size is not None:
            return {"name": name, "size": size, "type": "file"}
        below = directory(name)
        if name == "" or next(iter(self._tree.keys(prefix=below, limit=1)), None) is not None:
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _size(self, key: bytes) -> int | None:
        try:
            with self._tree.open(key, "rb") as file:
                return file.seek(0, io.SEEK_END)
        except KeyError:
            return None

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is a file or directory of that name."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What lies directly in a directory, or the file itself."""
        name = self._strip_protocol(path)
        below = directory(name)
        found: list[dict[str, Any]] = []
        start = below
        while True:
            key: bytes | None = next(iter(self._tree.keys(start, prefix=below, limit=1)), None)
            if key is None:
                break
            part, slash, _rest = key[len(below) :].partition(b"/")
            length = 0 if slash else self._size(key) or 0
            kind = "directory" if slash else "file"
            found.append({"name": (below + part).decode(), "size": length, "type": kind})
            # "/" is followed by "0": the smallest key behind all that lie below this directory
            start = below + part + (b"0" if slash else b"\0")
        if not found and name:
            own = self.info(path)
            found = [own] if own["type"] == "file" else []
        return found if detail else [entry["name"] for entry in found]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes of a file, or a part; negative places count from its end."""
        key = self._strip_protocol(path).encode()
        if start is None and end is None:
            value: bytes | None = self._tree.get(key)
            if value is None:
                raise FileNotFoundError(path)
            return value
        with self._open(path, "rb") as file:
            size: int = file.seek(0, io.SEEK_END)
            first, last, _step = slice(start, end).indices(size)
            file.seek(first)
            return bytes(file.read(max(0, last - first)))

    # Changing

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        key = self._strip_protocol(path).encode()
        if mode == "rb":
            try:
                return self._tree.open(key, "rb")
            except KeyError:
                raise FileNotFoundError(path) from None
        self._check_name(path)
        if mode in ("xb", "wb"):
            if mode == "xb" and key in self._tree:
                raise FileExistsError(path)
            return WholeFile(self._tree.open(key, "wb"))
        if mode == "ab":
            return WholeFile(self._appending(key))
        raise ValueError(f'mode {mode!r}: use "rb", "wb", "xb" or "ab"')

    def _appending(self, key: bytes) -> Any:
        """A new version of the file that starts with the old one."""
        file: Any = self._tree.open(key, "wb")
        try:
            if key in self._tree:
                with self._tree.open(key, "rb") as old:
                    while chunk := old.read(1 << 20):
                        file.write(chunk)
        except BaseException:
            file.abandon()
            raise
        return file

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write a whole file."""
        self._check_name(path)
        key = self._strip_protocol(path).encode()
        if mode != "create":
            self._tree[key] = value
        elif not self._tree.compare_and_set(key, None, value):
            raise FileExistsError(path)

    def _check_name(self, path: str) -> None:
        if not self._strip_protocol(path):
            raise IsADirectoryError(errno.EISDIR, "the root is a directory: name a file", path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file; directories need none."""
        if self.isdir(path1):
            return
        with self._open(path1, "rb") as old, self._open(path2, "wb") as new:
            while chunk := old.read(1 << 20):
                new.write(chunk)

    def rm_file(self, path: str) -> None:
        """Delete a file."""
        if not self._tree.delete(self._strip_protocol(path).encode()):
            raise FileNotFoundError(path)

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files; with `recursive` all below directories, in one batch a path.

        `maxdepth`: only so many levels down. ValueError below 1, as fsspec has it. A name that
        there is not is a pattern, as in `glob()`.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        given = path if isinstance(path, list) else [path]
        for name in [one for each in given for one in self._matching(each)]:
            key = self._strip_protocol(name).encode()
            if not recursive:
                self.rm_file(name)
                continue
            if not self.exists(name):
                raise FileNotFoundError(name)
            with self.store.batch() as batch:
                part = batch.tree(self._tree_name) if self._tree_name else batch
                part.delete(key)
                top = directory(key.decode())
                for below in self._tree.keys(prefix=top):
                    if maxdepth is None or below.count(b"/", len(top)) < maxdepth:
                        part.delete(below)

    def _matching(self, path: str) -> list[str]:
        return [path] if self.exists(path) else list(self.expand_path(path))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing to do: a directory is there as soon as a file is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing to do: see mkdir."""

    def rmdir(self, path: str) -> None:
        """Nothing to do for an empty directory; an error for another."""
        if self.ls(path, detail=False):
            raise OSError(f"{path} is not empty")


class WholeFile(io.RawIOBase):
    """A file being written: whole at its close, or not at all.

    Those who wrap it, for text or compression, close it also where a `with` block was left by an
    exception. So one that is closed while an exception is being handled that was not there when
    it was opened is given up.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self._known = sys.exc_info()[1]

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Bytes written: all."""
        return int(self._value.write(data))

    def tell(self) -> int:
        return int(self._value.tell())

    def abandon(self) -> None:
        """Give the file up; nothing of it stays. Idempotent."""
        self._value.abandon()
        super().close()

    def close(self) -> None:
        """The file is there, whole, from now on; see the class for when it is not. Idempotent."""
        if self.closed:
            return
        error = sys.exc_info()[1]
        if error is not None and error is not self._known:
            self.abandon()
            return
        try:
            self._value.close()
        finally:
            super().close()

    def __del__(self) -> None:
        self._value.abandon()


def directory(name: str) -> bytes:
    """The prefix of all keys below a directory; that of the root is empty."""
    return name.encode() + b"/" if name else b""
