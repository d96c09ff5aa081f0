"""Which names in a statement are left to the search_path, in PostgreSQL's own grammar."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pglast import parse_sql
from pglast.enums import A_Expr_Kind
from pglast.visitors import Visitor

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Those whose operator is written out; all others (IN, LIKE, BETWEEN, IS DISTINCT FROM, NULLIF) look it up by name.
_WRITTEN_OUT = {A_Expr_Kind.AEXPR_OP, A_Expr_Kind.AEXPR_OP_ANY, A_Expr_Kind.AEXPR_OP_ALL}

_PARAMETER = re.compile(r"%\(\w+\)s|%s")


def unqualified(statement: str) -> list[str]:
    """Return what a statement leaves to the search_path; ParseError where it is none."""
    found = _Names()
    found(parse_sql(_PARAMETER.sub("$1", statement).replace("%%", "%")))
    return sorted(found.names | {f"relation {name}" for name in found.relations - found.common})


class _Names(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.relations: set[str] = set()
        #: Of WITH, which no path is asked for.
        self.common: set[str] = set()

    def visit_FuncCall(self, _: Any, node: Any) -> None:  # noqa: N802
        self._check("function", node.funcname)

    def visit_TypeName(self, _: Any, node: Any) -> None:  # noqa: N802
        self._check("type", node.names)

    def visit_A_Expr(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.kind in _WRITTEN_OUT:
            self._check("operator", node.name)
        else:
            self.names.add(f"the operator of {A_Expr_Kind(node.kind).name}")

    def visit_SubLink(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.testexpr is not None:
            self._check("operator before a subquery", node.operName or ())

    def visit_SortBy(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.useOp:
            self._check("operator", node.useOp)

    def visit_JoinExpr(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.usingClause or node.isNatural:
            self.names.add("the operator of JOIN USING")

    def visit_CaseExpr(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.arg is not None:
            self.names.add("the operator of CASE x WHEN")

    def visit_CommonTableExpr(self, _: Any, node: Any) -> None:  # noqa: N802
        self.common.add(node.ctename)

    def visit_RangeVar(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.schemaname is None:
            self.relations.add(node.relname)

    def _check(self, kind: str, name: Sequence[Any]) -> None:
        if len(name) < 2:
            self.names.add(f"{kind} {name[0].sval if name else '='}")
