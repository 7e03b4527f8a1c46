"""A query's tree as JSON, in the form of Prometheus 3's /api/v1/parse_query: what editors and
explainers of queries draw. Pure functions of trees; syntax.py reads the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import promql_parser as parser
from promql_parser import Expr

from siltstone.metrics.numbers import number_text
from siltstone.metrics.syntax import matchers_of, matching_of, milliseconds, moment_ms

SETS = frozenset({"and", "or", "unless"})
_CARDINALITIES = {"": "one-to-one", "left": "many-to-one", "right": "one-to-many"}
_ENDS = {"AtModifierType.Start": "start", "AtModifierType.End": "end"}


def tree(node: Expr) -> dict[str, Any]:
    """Objects for JSON; each has a "type"."""
    if isinstance(node, parser.AggregateExpr):
        return _aggregation(node)
    if isinstance(node, parser.BinaryExpr):
        return _binary(node)
    if isinstance(node, parser.Call):
        function = {
            "name": node.func.name,
            "argTypes": [_type(one) for one in node.func.arg_types],
            "variadic": int(node.func.variadic),
            "returnType": _type(node.func.return_type),
        }
        return {"type": "call", "func": function, "args": [tree(one) for one in node.args]}
    if isinstance(node, parser.MatrixSelector):
        found = tree(node.vector_selector)
        return {**found, "type": "matrixSelector", "range": milliseconds(node.range)}
    if isinstance(node, parser.SubqueryExpr):
        spans = {"range": milliseconds(node.range), "step": milliseconds(node.step)}
        return {"type": "subquery", "expr": tree(node.expr), **spans, **_moment(node)}
    if isinstance(node, parser.VectorSelector):
        return {
            "type": "vectorSelector",
            "name": node.name or "",
            "matchers": [
                {"name": one.name, "type": one.op, "value": one.value} for one in matchers_of(node)
            ],
            **_moment(node),
        }
    if isinstance(node, parser.NumberLiteral):
        return {"type": "numberLiteral", "val": number_text(node.val)}
    if isinstance(node, parser.StringLiteral):
        return {"type": "stringLiteral", "val": node.val}
    if isinstance(node, parser.UnaryExpr):
        return {"type": "unaryExpr", "op": "-", "expr": tree(node.expr)}
    assert isinstance(node, parser.ParenExpr), "there is no other"
    return {"type": "parenExpr", "expr": tree(node.expr)}


def _aggregation(node: parser.AggregateExpr) -> dict[str, Any]:
    modifier = node.modifier
    return {
        "type": "aggregation",
        "op": str(node.op),
        "expr": tree(node.expr),
        "param": None if node.param is None else tree(node.param),
        "grouping": _names(modifier.labels if modifier else ()),
        "without": modifier is not None and modifier.type == parser.AggModifierType.Without,
    }


def _binary(node: parser.BinaryExpr) -> dict[str, Any]:
    op, how = str(node.op), matching_of(node)
    matching = None
    if not (_is_scalar(node.lhs) or _is_scalar(node.rhs)):
        matching = {
            "card": "many-to-many" if op in SETS else _CARDINALITIES[how.many],
            "labels": _names(how.names),
            "on": how.on,
            "include": _names(how.include),
        }
    return {
        "type": "binaryExpr",
        "op": op,
        "lhs": tree(node.lhs),
        "rhs": tree(node.rhs),
        "matching": matching,
        "bool": how.return_bool,
    }


def _is_scalar(node: Expr) -> bool:
    if isinstance(node, parser.ParenExpr | parser.UnaryExpr):
        return _is_scalar(node.expr)
    if isinstance(node, parser.BinaryExpr):
        return _is_scalar(node.lhs) and _is_scalar(node.rhs)
    if isinstance(node, parser.Call):
        return _type(node.func.return_type) == "scalar"
    return isinstance(node, parser.NumberLiteral)


def _moment(node: parser.VectorSelector | parser.SubqueryExpr) -> dict[str, Any]:
    end = _ENDS.get(str(node.at.type)) if node.at else None
    return {
        "offset": milliseconds(node.offset),
        "timestamp": None if end else moment_ms(node, 0, 0),
        "startOrEnd": end,
    }


def _type(kind: parser.ValueType) -> str:
    return str(kind).rpartition(".")[2].lower()


def _names(names: Iterable[str]) -> list[str]:
    return list(names)
