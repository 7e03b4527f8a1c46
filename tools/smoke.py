"""A few calls on an installed siltstone, away from the source tree: does the wheel hold all?"""

import tempfile

import siltstone

with (
    tempfile.TemporaryDirectory() as directory,
    siltstone.Cache(directory, ram="8MiB", flash="16MiB") as cache,
):
    for number in range(1000):
        cache[f"key {number}"] = {"number": number, "text": "x" * 1000}
    assert all(cache[f"key {number}"]["number"] == number for number in range(1000))
    print("siltstone", siltstone.__version__, "works:", len(cache), "items")
