"""docs/reference/promql.md from the PromQL scripts: what is covered, by how many queries.

Prints the page; `--write` puts it in its place. A test compares the page with the scripts.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import promql_parser as parser

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conformance.promqlscript import Case, scripts  # noqa: E402

from siltstone.errors import InvalidQuery  # noqa: E402
from siltstone.metrics import syntax  # noqa: E402
from siltstone.metrics.aggregations import COUNTED, PLAIN  # noqa: E402
from siltstone.metrics.functions import FUNCTIONS  # noqa: E402
from siltstone.metrics.matching import ARITHMETIC, COMPARISON  # noqa: E402
from siltstone.metrics.promql import SETS, WINDOWED  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "promql.md"
AGGREGATIONS = PLAIN | COUNTED | {"quantile", "count_values"}
OPERATORS = set(ARITHMETIC) | set(COMPARISON) | SETS | {"unary -"}
ALL_FUNCTIONS = set(FUNCTIONS) | WINDOWED | {"absent", "absent_over_time", "timestamp"}
# Not in Prometheus 2.42.
NEWER = {
    "double_exponential_smoothing", "mad_over_time", "first_over_time", "sort_by_label",
    "sort_by_label_desc", "limitk", "histogram_avg", "histogram_stddev", "histogram_stdvar",
}  # fmt: skip
# They speak of native histograms, which are not stored: the answer is empty.
NATIVE = {name for name in ALL_FUNCTIONS if name.startswith("histogram_")} - {"histogram_quantile"}

HEAD = """\
# PromQL

The language of Prometheus 2.42, without native histograms; what is newer is marked. The meaning is
Prometheus' own: a sample counts for five minutes unless a staleness marker ends its series, ranges
are closed on both sides (Prometheus 3 opened them on the left), rates are extrapolated.

This page is made from the scripts in `tests/conformance/promql/` by `tools/promqlpage.py`. Each
query there is answered by siltstone and, where Debian's prometheus 2.42 is installed, by it: both
must give what the script says. Beside the scripts, a generator makes random expressions over
counters with resets, gauges, gaps, NaN, infinities and histograms, and compares the answers
(`tests/conformance/test_promql_prometheus.py`; `PROMQL_SEED` and `PROMQL_COUNT` ask for more).

"""
LIMITS = """\
## Not supported

Native histograms, `info`, `limit_ratio`, `or` between label matchers, `fill` modifiers, durations
as expressions. A query has at most 1,000 operators and brackets, nested at most 200 deep.

Where Prometheus leaves the order to chance (`histogram_quantile` at one moment, sums of the values
of a subquery), siltstone has a fixed one: as the series come, that is by their labels. `NaN` and
times beyond the year 30 million have no calendar: `year(vector(NaN))` is NaN.

## Samples or tiers

A query reads samples, and gives what Prometheus would. Where a series has more than 65,536 of them
in the range (`tier_from_samples`), or some have expired, a tier is read instead, if it serves as
well: instant selectors, `sum_over_time`, `avg_over_time`, `min_over_time`, `max_over_time`,
`count_over_time` and `present_over_time`, where start, step and window are multiples of the tier's
step; the coarsest such tier is taken. The answer is the same: points keep the last sample of their
bucket, and the sample right at the start of a window is one of those. Only sums may round
differently in the last bits. `Result.tiers` says which tiers were read.

Where samples have expired and points do not serve (`rate(x[10m])`, a step of 77 seconds), the last
sample of each bucket stands in, of the finest tier that goes back so far. A rate is then that of
fewer samples: choose a window of several steps of the tier. An instant selector sees each of them
until the next one is due. `Result.warnings` says up to when that is so. What is older than
`retention_time` is gone from tiers, too.
"""


def used(node: parser.Expr) -> set[str]:
    """Names of functions, aggregations, operators and modifiers in a tree."""
    found = set().union(*(used(child) for child in syntax.children(node)))
    if isinstance(node, parser.Call):
        found.add(node.func.name)
    elif isinstance(node, parser.AggregateExpr):
        found.add(str(node.op))
    elif isinstance(node, parser.UnaryExpr):
        found.add("unary -")
    elif isinstance(node, parser.BinaryExpr):
        found.add(str(node.op))
        how = syntax.matching_of(node)
        if node.modifier and node.modifier.matching:
            found.add("on" if how.on else "ignoring")
        if how.many:
            found.add(f"group_{how.many}")
        if how.return_bool:
            found.add("bool")
    elif isinstance(node, parser.SubqueryExpr):
        found.add("subquery")
    if isinstance(node, parser.VectorSelector | parser.SubqueryExpr):
        found |= {"offset"} if node.offset else set()
        found |= {"@"} if node.at else set()
    if isinstance(node, parser.VectorSelector):
        found |= {m.op for m in syntax.matchers_of(node)}
    return found


def cases_by_name() -> dict[str, list[Case]]:
    by_name: dict[str, list[Case]] = defaultdict(list)
    for script in scripts():
        for case in script.cases:
            try:
                names = used(syntax.parse(case.query))
            except InvalidQuery:
                continue
            for name in names:
                by_name[name].append(case)
    return by_name


def table(title: str, names: set[str], by_name: dict[str, list[Case]]) -> str:
    lines = [f"## {title}", "", "| name | queries | notes |", "|---|---|---|"]
    for name in sorted(names):
        notes = ["newer than 2.42"] if name in NEWER else []
        notes += ["always empty"] if name in NATIVE else []
        notes += sorted(
            {case.differs for case in by_name[name] if case.differs and case.query.startswith(name)}
            - {"newer than 2.42"}
        )
        lines.append(f"| `{name}` | {len(by_name[name])} | {'; '.join(notes)} |")
    return "\n".join([*lines, "", ""])


def page() -> str:
    by_name = cases_by_name()
    counts = Counter(script.name for script in scripts() for _ in script.cases)
    text = HEAD + f"{counts.total()} queries: "
    text += ", ".join(f"{count} in {name}" for name, count in sorted(counts.items())) + ".\n\n"
    text += table("Functions", ALL_FUNCTIONS, by_name)
    text += table("Aggregations", AGGREGATIONS, by_name)
    text += table("Operators", OPERATORS, by_name)
    modifiers = {"on", "ignoring", "group_left", "group_right", "bool", "offset", "@", "subquery"}
    text += table("Modifiers and selectors", modifiers | {"=", "!=", "=~", "!~"}, by_name)
    return text + LIMITS


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page())
    else:
        print(page(), end="")
