"""What a build needs and this machine lacks, in one clear line; called by the Makefile.

Runs under whatever python3 there is, so it keeps to what every Python 3 understands.
"""

import os
import shutil
import sys

# What meson-python calls from PATH when it is not isolated.
BUILD_TOOLS = ["meson>=1.3", "ninja"]


def problem():
    if sys.version_info < (3, 11):
        return (
            "Python 3.11 or newer; this is %d.%d (make PYTHON=python3.12 names another)"
            % (sys.version_info[:2])
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv module (Debian: apt install python3-venv)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")):
        return "a C compiler (Debian: apt install gcc)"
    import sysconfig

    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "Python's C headers (Debian: apt install python3-dev)"
    return None


def requirements(extras):
    """What a build and the named extras need: everything is said once, in pyproject.toml."""
    import tomllib

    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    wanted = project["build-system"]["requires"] + BUILD_TOOLS + project["project"]["dependencies"]
    for extra in extras:
        wanted += project["project"]["optional-dependencies"][extra]
    return wanted


if __name__ == "__main__":
    if sys.argv[1:2] == ["--requirements"]:
        print("\n".join(requirements(sys.argv[2:])))
    elif problem():
        sys.exit("siltstone needs " + problem())
