"""The package's names, and what it costs to ask for one."""

from __future__ import annotations

import subprocess
import sys

import pytest

import siltstone


def test_every_name_is_there_and_listed():
    assert set(siltstone.__all__) <= set(dir(siltstone))
    for name in siltstone.__all__:
        assert getattr(siltstone, name) is getattr(siltstone, name)
    with pytest.raises(AttributeError, match="no attribute 'Cachet'"):
        _ = siltstone.Cachet  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("statement", "others"),
    [
        (
            "import siltstone",
            ("siltstone.cache", "siltstone.store", "siltstone.metrics", "asyncio"),
        ),
        ("from siltstone import Cache", ("siltstone.store", "siltstone.metrics", "numpy")),
        ("from siltstone import Store", ("siltstone.cache", "siltstone.metrics", "numpy")),
        ("from siltstone import Metrics", ("siltstone.cache", "siltstone.store")),
    ],
)
def test_who_wants_one_engine_pays_for_no_other(statement, others):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(others) & set(ran.stdout.split())
