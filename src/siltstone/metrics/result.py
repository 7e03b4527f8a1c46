"""The answer to a query, and the forms in which others take it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from siltstone.metrics.decimals import rows_text
from siltstone.metrics.labels import Labels
from siltstone.metrics.numbers import number_text
from siltstone.metrics.source import Times, Values

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

Kind = Literal["scalar", "vector", "matrix", "string"]

# What Go's encoder escapes beside what JSON demands, so that the bytes are the same.
GO_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def json_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).translate(GO_ESCAPES)


@lru_cache(1 << 14)  # dashboards ask for the same series again and again: 4 us each
def metric_json(labels: Labels) -> bytes:
    pairs = [f"{json_string(name)}:{json_string(value)}" for name, value in labels]
    return ("{" + ",".join(pairs) + "}").encode()


@dataclass(frozen=True, eq=False)
class Result:
    """Series by rows, times by columns.

    A "vector" or "scalar" has one time. A "matrix" of an instant query (`up[5m]`) has the times of
    its samples. A "string" has its text in `text` and no rows.
    """

    kind: Kind
    pairs: Sequence[Labels]  # the labels of each row, see labels.py
    times: Times  # of each column, int64 Unix milliseconds
    values: Values  # (row, column)
    present: npt.NDArray[np.bool_]  # where there is a sample: NaN can be one
    text: str = ""
    tiers: tuple[str, ...] = ()  # steps of the tiers that were read in place of samples
    warnings: tuple[str, ...] = ()  # where the answer is less exact than was asked for

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def labels(self) -> list[dict[str, str]]:
        """Of each row."""
        return [dict(pairs) for pairs in self.pairs]

    @property
    def seconds(self) -> Values:
        """The times as Unix seconds."""
        return self.times / 1000.0

    def to_numpy(self) -> Values:
        """The values, (series, time), NaN where there is no sample."""
        return np.where(self.present, self.values, np.nan)

    # Prometheus' JSON -----------------------------------------------------------------------

    def to_json(self, most: int | None = None) -> str:
        """The `data` of Prometheus' answer: {"resultType": ..., "result": ...}. `most`: only the
        first so many series."""
        return f'{{"resultType":"{self.kind}","result":{self._result_json(most)}}}'

    def _result_json(self, most: int | None) -> str:
        if self.kind == "string":
            return f"[{number_text(self.seconds[0])},{json_string(self.text)}]"
        if self.kind == "scalar":
            return f'[{number_text(self.seconds[0])},"{number_text(self.values[0, 0])}"]'
        heads = list(map(metric_json, self.pairs[:most]))
        present = np.ascontiguousarray(self.present[:most]).view(np.uint8)
        values = np.ascontiguousarray(self.values[:most])
        times = np.ascontiguousarray(self.times)
        return rows_text(heads, times, values, present, self.kind == "vector")

    # Tables: a row a sample -----------------------------------------------------------------

    def label_names(self) -> list[str]:
        """Every label that occurs, sorted."""
        return sorted({name for labels in self.labels for name in labels})

    def columns(self) -> dict[str, Any]:
        """A sample a row: "time" (datetime64[ms], UTC), a column a label, "value".

        A label called time or value gets an underscore behind it; one that a series does not have
        is None there.
        """
        rows, at = np.nonzero(self.present)
        table: dict[str, Any] = {"time": self.times[at].astype("datetime64[ms]")}
        for name in self.label_names():
            texts = np.array([labels.get(name) for labels in self.labels], object)
            table[name + "_" if name in ("time", "value") else name] = texts[rows]
        table["value"] = self.values[rows, at]
        return table

    def to_pandas(self) -> pandas.DataFrame:
        """A sample a row; needs pandas."""
        import pandas

        frame = pandas.DataFrame(self.columns())
        frame["time"] = frame["time"].dt.tz_localize("UTC")
        return frame

    def to_polars(self) -> polars.DataFrame:
        """A sample a row; needs polars."""
        import polars

        return polars.DataFrame(self)

    def to_arrow(self) -> pyarrow.Table:
        """A sample a row; needs pyarrow."""
        import pyarrow

        return pyarrow.table(self)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The samples as an Arrow stream, for whatever library reads that protocol."""
        from siltstone.metrics.arrow import export_stream

        return export_stream(self.columns())
