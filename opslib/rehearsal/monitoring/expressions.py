"""Metric math: arithmetic on series, and the functions that alarms and dashboards use most.

Source: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from opslib.rehearsal.calls import ServiceError

Series = dict[float, float]
"""Values by the start of their period, in seconds since 1970."""
Value = float | Series | list[Series]

_LONGEST = 2048
_BINARY: dict[type[ast.operator], Callable[[float, float], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    "SUM": sum,
    "MIN": min,
    "MAX": max,
    "AVG": lambda values: sum(values) / len(values),
}


def evaluate(expression: str, known: Mapping[str, Series], period_seconds: int, starts: list[float]) -> Series:
    """Return what an expression makes of the series it names.

    Args:
        expression: e.g. `errors / requests * 100`, `SUM(METRICS())` or `FILL(m1, 0)`.
        known: The series by their ids.
        period_seconds: What PERIOD() returns.
        starts: The starts of all periods that were asked for.

    Raises:
        ServiceError: ValidationError; it is no expression, or one that is not rehearsed.
    """
    if len(expression) > _LONGEST:
        raise _refused(expression, "it is too long")
    try:
        # CloudWatch writes a power as ^, which Python reads as something else with another precedence.
        tree = ast.parse(expression.replace("^", "**"), mode="eval").body
        found = _Evaluation(known, period_seconds, starts).value(tree)
    except (SyntaxError, RecursionError, ValueError, TypeError, KeyError) as error:
        raise _refused(expression, str(error)) from error
    if isinstance(found, list):
        raise _refused(expression, "it returns several time series")
    return found if isinstance(found, dict) else dict.fromkeys(starts, found)


class _Evaluation:
    def __init__(self, known: Mapping[str, Series], period_seconds: int, starts: list[float]) -> None:
        self.known, self.period_seconds, self.starts = known, period_seconds, starts

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name):
                return self.known[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _paired(operator.mul, self.value(operand), -1.0)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _paired(_BINARY[type(op)], self.value(left), self.value(right))
            case ast.List(elts=parts):
                return [self._series(part) for part in parts]
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._called(name.upper(), [self.value(one) for one in arguments])
        raise ValueError(f"{ast.unparse(node)} is not rehearsed")

    def _series(self, node: ast.expr) -> Series:
        found = self.value(node)
        return found if isinstance(found, dict) else dict.fromkeys(self.starts, float(found))

    def _called(self, name: str, arguments: list[Value]) -> Value:
        match name, arguments:
            case "METRICS", []:
                return list(self.known.values())
            case "PERIOD", [dict()]:
                return float(self.period_seconds)
            case "ABS", [dict() as series]:
                return {at: abs(value) for at, value in series.items()}
            case "FILL", [dict() as series, float() as filling]:
                return {at: series.get(at, filling) for at in self.starts}
            case _, [list() as several] if name in _REDUCTIONS:
                times = sorted({at for series in several for at in series})
                return {at: _REDUCTIONS[name]([one[at] for one in several if at in one]) for at in times}
            case _, [dict() as series] if name in _REDUCTIONS:
                return _REDUCTIONS[name](list(series.values())) if series else {}
        raise ValueError(f"{name} with these arguments is not rehearsed")


def _combined(apply: Callable[[float, float], Any], left: float, right: float) -> Series | float:
    """Return what an operator makes of two numbers; no data where it makes no number, as of a division by zero."""
    try:
        found = apply(left, right)
    except ArithmeticError:
        return {}
    return found if isinstance(found, float) and math.isfinite(found) else {}


def _paired(apply: Callable[[float, float], Any], left: Value, right: Value) -> Value:
    if isinstance(left, list) or isinstance(right, list):
        raise TypeError("an operator between several time series")
    if not isinstance(left, dict) and not isinstance(right, dict):
        return _combined(apply, left, right)
    times = [at for one in (left, right) if isinstance(one, dict) for at in one]
    found: Series = {}
    for at in sorted(set(times)):
        a = left.get(at) if isinstance(left, dict) else left
        b = right.get(at) if isinstance(right, dict) else right
        if a is not None and b is not None and isinstance(value := _combined(apply, a, b), float):
            found[at] = value
    return found


def _refused(expression: str, why: str) -> ServiceError:
    return ServiceError("ValidationError", f"Error in expression '{expression[:200]}': {why}")
