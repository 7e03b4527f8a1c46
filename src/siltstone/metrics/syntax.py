"""From a query's text to its tree: promql-parser's nodes, and the small readings of them we need.

The parser checks names and types. It knows more than Prometheus 2.42 does; what we do not evaluate
is refused here, before any data is touched.
"""

from __future__ import annotations

import functools
import re
from datetime import timedelta

import promql_parser as parser
from promql_parser import Expr

from siltstone.errors import InvalidQuery
from siltstone.metrics.matching import Matching
from siltstone.metrics.source import NAME_LABEL, Matcher

# A query of this many bytes is a program's mistake.
QUERY_BYTES_MAX = 1 << 20
# Dashboards send the same texts again and again; short ones are parsed once (20 us and more each).
QUERIES_KEPT = 256
KEPT_CHARS_MAX = 4096
# The tree is walked by recursion, here and in the parser (whose stack ends some thousands deep).
DEPTH_MAX = 200
OPERATORS_MAX = 1000
_LITERAL = re.compile(
    r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`[^`]*`|#[^\n]*|\{[^{}\"'`]*\}", re.DOTALL
)
_OPERATOR = re.compile(r"[-+*/%^<>=!(\[{]|\b(?:and|or|unless|atan2)\b", re.IGNORECASE)

# Times beyond it could overflow when ranges and offsets are added.
MOMENT_MS_MAX = 1 << 62

# Of newer Prometheus versions, parsed but not evaluated here.
UNSUPPORTED_FUNCTIONS = frozenset({"info"})
UNSUPPORTED_AGGREGATIONS = frozenset({"limit_ratio"})

_MATRIX, _SCALAR = parser.ValueType.Matrix, parser.ValueType.Scalar
# The name that double_exponential_smoothing had until Prometheus 3.
parser.register_extra_functions(
    [
        parser.Function(
            "holt_winters", [_MATRIX, _SCALAR, _SCALAR], return_type=parser.ValueType.Vector
        )
    ]
)

# The parser's enumerations cannot be hashed; their names can.
_OPERATORS = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}
# The parser's own reading of a time before 1970 fails; its debug text has it.
_MOMENT = re.compile(r"tv_sec:\s*(-?\d+),\s*tv_nsec:\s*(\d+)")


def parse(query: str, parameter: str = "query") -> Expr:
    """The tree of a query, not to be changed; `InvalidQuery` says what is wrong with the text.

    The message names the `parameter` as Prometheus' API does: this is where clients see it.
    """
    return (_parse if len(query) > KEPT_CHARS_MAX else _parse_kept)(query, parameter)


def _parse(query: str, parameter: str) -> Expr:
    try:
        _check_size(query)
        tree = parser.parse(query)
        _check(tree)
    except ValueError as error:  # InvalidQuery is one too
        raise InvalidQuery(f'invalid parameter "{parameter}": parse error: {error}') from None
    return tree


_parse_kept = functools.lru_cache(QUERIES_KEPT)(_parse)


def formatted(query: str) -> str:
    """The query in the parser's own layout, or as it is where that would say something else."""
    tree = parse(query)
    text = str(tree.prettify())
    try:
        again = parser.parse(text)
    except ValueError:
        return query  # the parser prints some trees as what it cannot read (a subquery's [10m:])
    return text if str(again) == str(tree) else query


def selector(text: str, parameter: str = "match[]") -> list[Matcher]:
    """The conditions of a series selector, as `labels`, `series` and `delete` take it."""
    tree = parse(text, parameter)
    if not isinstance(tree, parser.VectorSelector) or tree.offset or tree.at:
        raise InvalidQuery(f'invalid parameter "{parameter}": parse error: not a series selector')
    return matchers_of(tree)


def _check_size(query: str) -> None:
    """Deep brackets and long chains of operators would exhaust the stack in the parser already."""
    if len(query.encode(errors="surrogatepass")) > QUERY_BYTES_MAX:
        raise InvalidQuery(f"a query is at most {QUERY_BYTES_MAX} bytes long")
    bare = _LITERAL.sub("", query)
    operators = len(_OPERATOR.findall(bare))
    if operators > OPERATORS_MAX:
        raise InvalidQuery(f"more than {OPERATORS_MAX} operators and brackets")


def _check(node: Expr, depth: int = 0) -> None:
    if depth > DEPTH_MAX:
        raise InvalidQuery(f"more than {DEPTH_MAX} expressions inside each other")
    if isinstance(node, parser.Call):
        if node.func.name in UNSUPPORTED_FUNCTIONS:
            raise InvalidQuery(f'function "{node.func.name}" is not supported')
    elif isinstance(node, parser.AggregateExpr):
        if str(node.op) in UNSUPPORTED_AGGREGATIONS:
            raise InvalidQuery(f'aggregation "{node.op}" is not supported')
    elif isinstance(node, parser.BinaryExpr):
        fill = node.modifier and node.modifier.fill_values
        if fill and (fill.lhs is not None or fill.rhs is not None):
            raise InvalidQuery("fill modifiers are not supported")
    if isinstance(node, parser.VectorSelector):
        matchers_of(node)
    if isinstance(node, parser.VectorSelector | parser.SubqueryExpr):
        moment_ms(node, 0, 0)
    for child in children(node):
        _check(child, depth + 1)


def children(node: Expr) -> list[Expr]:
    if isinstance(node, parser.Call):
        return list(node.args)
    if isinstance(node, parser.BinaryExpr):
        return [node.lhs, node.rhs]
    if isinstance(node, parser.AggregateExpr):
        return [node.expr] if node.param is None else [node.param, node.expr]
    if isinstance(node, parser.MatrixSelector):
        return [node.vector_selector]
    if isinstance(node, parser.ParenExpr | parser.UnaryExpr | parser.SubqueryExpr):
        return [node.expr]
    return []


def unwrapped(node: Expr) -> Expr:
    """Without the parentheses around it."""
    while isinstance(node, parser.ParenExpr):
        node = node.expr
    return node


def matchers_of(selector: parser.VectorSelector) -> list[Matcher]:
    if selector.matchers.or_matchers:
        raise InvalidQuery('"or" between label matchers is not supported')
    matchers = [Matcher(m.name, _OPERATORS[str(m.op)], m.value) for m in selector.matchers.matchers]
    if selector.name is not None:
        matchers.append(Matcher(NAME_LABEL, "=", selector.name))
    return matchers


def matching_of(node: parser.BinaryExpr) -> Matching:
    modifier = node.modifier
    if modifier is None:
        return Matching()
    by = modifier.matching
    many = {
        "VectorMatchCardinality.ManyToOne": "left",
        "VectorMatchCardinality.OneToMany": "right",
    }.get(str(modifier.card), "")
    return Matching(
        on=by is not None and by.type == parser.LabelModifierType.Include,
        names=tuple(by.labels) if by is not None else (),
        many=many,
        include=tuple(modifier.group_labels or ()),
        return_bool=modifier.return_bool,
    )


def milliseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else round(duration / timedelta(milliseconds=1))


def moment_ms(
    node: parser.VectorSelector | parser.SubqueryExpr, start_ms: int, end_ms: int
) -> int | None:
    """Where `@` nails the expression, in Unix milliseconds."""
    if node.at is None:
        return None
    if node.at.type == parser.AtModifierType.Start:
        return start_ms
    if node.at.type == parser.AtModifierType.End:
        return end_ms
    seconds, nanoseconds = _MOMENT.findall(repr(node))[-1]
    moment = int(seconds) * 1000 + round(int(nanoseconds) / 1e6)
    if abs(moment) > MOMENT_MS_MAX:
        raise InvalidQuery("timestamp out of bounds for @ modifier")
    return moment
