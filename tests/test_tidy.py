"""The house rules that a machine can check: layers, seams, lengths, stubs, and what is listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "siltstone"
SOURCES = sorted(
    path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd", ".pyi")
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"]
CYTHON = [path for path in SOURCES if path.suffix in (".pyx", ".pxd")]
COMPILED = [path for path in SOURCES if path.suffix == ".pyx"]

LINES_MAX = {".py": 700, ".pyx": 900, ".pxd": 900, ".pyi": 700}
FUNCTION_LINES_MAX = 60
COLUMNS_MAX = 100

# Arrows point downwards only. What stands beside the layers may be used by all of them.
BESIDE = {"errors", "config", "clock", "codecs", "report"}
MAY_IMPORT = {
    "errors": set(),
    "clock": {"errors"},
    "config": {"errors"},
    "codecs": {"errors"},
    "report": set(),
    "log": {"errors", "config", "clock", "log"},
    "cache": BESIDE | {"log", "cache"},
    "metrics": BESIDE | {"log", "metrics"},
    "store": BESIDE | {"log", "store"},
    "serve": BESIDE | {"log", "cache", "metrics", "store", "serve"},
}
TOP = {
    "adapters",
    "aio",
    "recipes",
    "cli",
    "chart",
    "client",
    "daemon",
    "demo",
    "load",
    "memcached_flags",
    "netdata_map",
    "metrics_commands",
    "segment_map",
    "transfer",
    "store_commands",
    "top",
}  # commands: use everything, are used by no layer

# One seam to the operating system, one to time and chance.
SEAMS = {
    "log/device.py",
    "log/foreign.py",
    "log/machine.py",
    "log/device_io.pyx",
    "log/arena.pyx",
    "clock.py",
}
# Outside the data: files and times of the person at the terminal. Each with its reason.
ALLOWED = {
    ("config.py", "read_text"),  # the TOML file that a person names
    ("adapters/diskcache.py", "read_bytes"),  # files of diskcache's
    ("aio/store.py", "open"),  # a method of that name, as in the next two
    ("store/face.py", "open"),
    ("store/snapshot.py", "open"),
    ("daemon.py", "write_text"),  # the pid file, for whoever started the server
    ("daemon.py", "open"),  # /dev/null, when it goes into the background
    ("demo/files.py", "open"),  # what it stores, and the server's log
    ("serve/machine.py", "read_text"),  # what the kernel says of the machine
    ("metrics/netdata.py", "open"),  # the name of its own function
    ("serve/server.py", "write_text"),  # MEMCACHED_PORT_FILENAME: the ports, for test harnesses
}
SEAM_CALLS = re.compile(
    r"(?<![\w.])(?:os\.)?(open|fdopen|pread|preadv|preadv2|pwrite|pwritev|fsync|fdatasync)\("
    r"|\.(read_text|read_bytes|write_text|write_bytes)\("
    r"|(?<![\w.])(time\.time|time\.time_ns|datetime\.now)\("
    r"|(?<![\w.])(random\.(?!Random\b)\w+)"
)


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name)


# The import graph ---------------------------------------------------------------------------


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_by_python(path: Path) -> Iterator[str]:
    package = ["siltstone", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (package[: len(package) - node.level + 1] if node.level else []) + (
                node.module.split(".") if node.module else []
            )
            yield from (".".join([*base, alias.name]) for alias in node.names)


def imported_by_cython(path: Path) -> Iterator[str]:
    text = re.sub(r"\(\s*\n([^)]*)\)", lambda m: m[1].replace("\n", " "), path.read_text())
    for line in text.splitlines():
        if match := re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.+)", line):
            for alias in match[2].split("#")[0].split(","):
                yield f"{match[1]}.{alias.split(' as ')[0].strip()}"
        elif match := re.match(r"\s*c?import\s+([\w.]+)", line):
            yield match[1]


def layer(module: str) -> str:
    """The layer of `siltstone.a.b`; '' for the root package itself and its names."""
    first = module.split(".")[1] if "." in module else ""
    known = (PACKAGE / first).is_dir() or any(PACKAGE.glob(f"{first}.py*"))
    return first if first and known else ""


@each([path for path in SOURCES if path.suffix != ".pyi"])
def test_arrows_point_downwards(path: Path) -> None:
    own = layer("siltstone." + module_of(path)) if module_of(path) else ""
    if own in TOP or own == "":
        return
    find = imported_by_python if path.suffix == ".py" else imported_by_cython
    for module in find(path):
        if module.split(".")[0] != "siltstone":
            continue
        other = layer(module)
        # a layer may know its version, and nothing else of the root
        assert other or module == "siltstone.__version__", f"{name(path)} imports {module}"
        allowed = MAY_IMPORT.get(own, set(MAY_IMPORT))
        assert not other or other in allowed, f"{name(path)} ({own}) imports {module}"


def test_the_graph_check_sees_an_upward_arrow() -> None:
    source = PACKAGE / "log" / "arena.pyx"
    assert "siltstone.log.atomics.cpu_pause" in set(imported_by_cython(source))
    assert "siltstone.errors.ConfigError" in set(imported_by_python(PACKAGE / "config.py"))
    assert layer("siltstone.serve.session") == "serve"
    assert "serve" not in MAY_IMPORT["cache"]


# Seams --------------------------------------------------------------------------------------


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines without comments and without docstrings."""
    inside = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        quotes = line.count('"""')
        if not inside and quotes == 0:
            yield number, line.split("#")[0]
        inside ^= quotes % 2 == 1


@each([path for path in SOURCES if path.suffix in (".py", ".pyx")])
def test_only_the_seams_touch_files_time_and_chance(path: Path) -> None:
    if name(path) in SEAMS:
        return
    for number, line in code_lines(path):
        for match in SEAM_CALLS.finditer(line):
            called = next(group for group in match.groups() if group)
            assert (name(path), called) in ALLOWED, f"{name(path)}:{number}: {line.strip()}"


@pytest.mark.parametrize(
    "line",
    ["fd = open(path)", "os.pread(fd, 1, 0)", "now = time.time()", "x = random.random()",
     "path.read_bytes()", "os.fdatasync(fd)"],
)  # fmt: skip
def test_the_seam_check_sees(line: str) -> None:
    assert SEAM_CALLS.search(line)


@pytest.mark.parametrize("line", ["device.open(path)", "reopen(x)", "rng = random.Random(1)"])
def test_the_seam_check_lets_through(line: str) -> None:
    assert not SEAM_CALLS.search(line)


# Shape --------------------------------------------------------------------------------------


@each(SOURCES)
def test_files_are_short_and_lines_narrow(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LINES_MAX[path.suffix]
    wide = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX]
    assert not wide, f"{name(path)}: lines {wide}"


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


CYTHON_FUNCTION = re.compile(r"(\s*)(?:async\s+)?(?:def|cdef|cpdef)\s[^=]*?(\w+)\s*\(.*")


def cython_functions(path: Path) -> Iterator[tuple[str, int]]:
    lines = path.read_text().splitlines()
    for start, line in enumerate(lines):
        match = CYTHON_FUNCTION.match(line)
        if not match or match[0].lstrip().startswith(("cdef class", "cdef extern", "cdef struct")):
            continue
        indent, last, opened = len(match[1]), start, False
        for number in range(start, len(lines)):
            text = lines[number]
            opened = opened or text.split("#")[0].rstrip().endswith(":")
            if opened and number > start and text.strip() and not text.strip().startswith("#"):
                # continuation lines of the signature are indented too, so any dedent ends it
                if len(text) - len(text.lstrip()) <= indent and not text.lstrip().startswith(")"):
                    break
                last = number
            elif not opened and number > start and len(text) - len(text.lstrip()) <= indent:
                break
        yield match[2], last - start + 1


@each([path for path in SOURCES if path.suffix in (".py", ".pyx")])
def test_functions_fit_a_screen(path: Path) -> None:
    find = python_functions if path.suffix == ".py" else cython_functions
    long = [(who, size) for who, size in find(path) if size > FUNCTION_LINES_MAX]
    assert not long


def test_function_lengths_are_measured() -> None:
    sizes = dict(cython_functions(PACKAGE / "log" / "arena.pyx"))
    assert sizes["lock_try"] == 2
    assert 5 <= sizes["frame_give"] <= 15


@each([path for path in SOURCES if path.suffix in (".py", ".pyx", ".pxd")])
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert not text or text.startswith('"""')  # an empty __init__ says it all


UNFINISHED = re.compile("FIX" + "ME|TO" + r"DO|XX" + "X")


def test_nothing_is_left_for_later() -> None:
    folders = ("src", "tests", "tools", "docs", "bench")
    kinds = (".py", ".pyx", ".pxd", ".pyi", ".md", ".toml", ".build")
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in kinds:
                assert not UNFINISHED.search(path.read_text()), path


IMPORT = re.compile(r"(?m)^(?:from [\w.]+ c?import (\([^)]*\)|[^\n(]*)|import ([\w., ]+))\n")


def unused_in(text: str) -> list[str]:
    """Names that a Cython module imports and does not use; C code within it counts as use."""
    code = IMPORT.sub("", re.sub(r"#(?!\s*(?:define|if)).*", "", text))
    code = re.sub(r'"""[\s\S]*?"""', lambda match: match[0] * ("#include" in match[0]), code)
    words = set(re.findall(r"\w+", code))
    unused = []
    for match in IMPORT.finditer(text):
        for alias in re.sub(r"#.*|[()\n]", " ", match[1] or match[2]).split(","):
            name = alias.split(" as ")[-1].strip().split(".")[0]
            if name not in {"", "*", *words}:
                unused.append(name)
    return unused


@each(COMPILED)  # ruff does not read these
def test_what_is_imported_is_used(path: Path) -> None:
    assert unused_in(path.read_text()) == []


def test_the_check_of_imports_sees() -> None:
    text = "from a cimport (b, c,  # d\n    e as f)\nimport os.path\ncdef b x = os.sep  # c f\n"
    assert unused_in(text) == ["c", "f"]


# Lists and stubs ----------------------------------------------------------------------------


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    map_of = dict(re.findall(r"(?m)^\| `?(\w[\w ]*)/?`? \| \|\n\|---\|---\|\n((?:\|.*\n)+)", text))
    for folder in ("log", "cache", "store", "metrics", "serve"):
        named = set(re.findall(r"`(\w+)`", map_of.pop(folder)))
        there = {path.stem for path in SOURCES if name(path).startswith(f"{folder}/")}
        assert named == there - {"__init__"}, folder
    beside = {path.stem for path in SOURCES if path.parent == PACKAGE} - BESIDE - {"__init__"}
    assert beside <= set(re.findall(r"`(\w+)`", map_of["on top"]))


def test_meson_builds_every_compiled_module_and_no_other() -> None:
    text = (PACKAGE / "meson.build").read_text()
    listed = {f"{folder}/{noun}.pyx" for folder, noun in re.findall(r"\['(\w+)', '(\w+)'\]", text)}
    assert listed == {name(path) for path in COMPILED}


PUBLIC = re.compile(r"(?:cdef |cpdef |)(?:class (?!_)\w+|def (?!_)\w+)|cpdef (?!_)\w+")


@each(COMPILED)
def test_compiled_modules_with_public_names_have_a_stub(path: Path) -> None:
    public = any(PUBLIC.match(line) for line in path.read_text().splitlines())
    assert not public or path.with_suffix(".pyi").exists()


def test_the_public_surface_is_on_one_screen() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert (tree.body[-1].end_lineno or 0) <= 100
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert "__version__" in assigned


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_versions_agree() -> None:
    found = {
        re.search(pattern, (ROOT / file).read_text())[1]  # type: ignore[index]
        for file, pattern in (
            ("pyproject.toml", r'(?m)^version = "([^"]+)"'),
            ("meson.build", r"version: '([^']+)'"),
            ("src/siltstone/__init__.py", r'__version__ = "([^"]+)"'),
        )
    }
    assert len(found) == 1
