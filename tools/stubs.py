"""Check each compiled module's .pyi against the module itself (mypy's stubtest)."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
# Cython's own: every compiled module and class has them, no caller uses them.
ALLOWED = (
    r".*\.__test__",
    r".*\.__pyx_capi__",
    r".*\.__reduce_cython__",
    r".*\.__setstate_cython__",
    r".*\.__reduce__",
    r".*\.__pyx_vtable__",
    # __cinit__'s parameters are not visible at run time
    r".*\.__init__",
    r".*\.__new__",
)


def main() -> int:
    modules = sorted(
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in SOURCE.rglob("*.pyi")
        if path.with_suffix(".pyx").exists()
    )
    allowlist = Path(".mypy_cache") / "stubtest-allowed.txt"
    allowlist.parent.mkdir(exist_ok=True)
    allowlist.write_text("\n".join(ALLOWED) + "\n")
    command = [sys.executable, "-m", "mypy.stubtest", "--allowlist", str(allowlist)]
    command += ["--mypy-config-file", "pyproject.toml"]
    command += [
        "--ignore-unused-allowlist",
        "--ignore-missing-stub",
        "--ignore-disjoint-bases",
        *modules,
    ]
    return subprocess.run(command, env={**os.environ, "MYPYPATH": str(SOURCE)}).returncode


if __name__ == "__main__":
    sys.exit(main())
