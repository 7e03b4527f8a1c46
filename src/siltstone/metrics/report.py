"""What `verify` and imports found: `Report.ok`, `Report.problems`, and how much was read."""

from __future__ import annotations

from dataclasses import dataclass

from siltstone import report as reports


@dataclass(kw_only=True)
class Report(reports.Report):
    """The result of a check. `problems` are sentences that name place and finding."""

    segments: int = 0
    chunks: int = 0
    samples: int = 0
    bytes: int = 0
