"""What `verify` and imports found: `Report.ok`, `Report.problems`, and how much was read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """The result of a check. `problems` are sentences that name place and finding."""

    segments: int = 0
    chunks: int = 0
    samples: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems
