"""What `verify` and `repair` found: `Report.ok`, `Report.problems`, and how much was read."""

from __future__ import annotations

from dataclasses import dataclass

from siltstone import report as reports


@dataclass(kw_only=True)
class Report(reports.Report):
    """The result of a check. `problems` are sentences that name place and finding; `records` are
    those of all trees, or of a page cache those of its pages in the log."""

    trees: int = 0
    pages: int = 0
    records: int = 0
