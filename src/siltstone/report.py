"""What a check found: `Report.ok` and `Report.problems`. Each engine adds how much it looked at."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Report:
    """The result of a check. `problems` are sentences that name place and finding."""

    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems
