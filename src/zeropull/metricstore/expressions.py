"""Metric math: the part of CloudWatch's that target tracking and dashboards of endpoints use.

`+ - * / ^`, comparisons, AND and OR, parentheses, numbers, ids of other queries, `[a, b]`, and the
functions SUM, AVG, MIN, MAX, ABS, CEIL, FLOOR, FILL, IF and METRICS.
Source: Amazon CloudWatch user guide, "Using math expressions with CloudWatch metrics"
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html):
- A function of one series gives a number, the same function of several gives a series.
- Comparisons give 1 or 0. x / 0 has no datapoint.
- Missing values ("Basic arithmetic functions", "Comparison and logical operators", AVG): where only
  one of two series has a value, the other one counts as 0; so does a series without a value in the
  AVG of several. Where none has a value, there is no datapoint. SUM, MIN and MAX of several take
  the values that are there.
- IF ("Using IF expressions"): where the condition holds and the series that is chosen has no value,
  the value is 0; where it does not hold, there is none.

METRICS() is every metric of the request, not its expressions; METRICS("a") those with a in the id.
An operator acts on each of several series, with a number or one other series. The guide is silent
about the order of powers: here -a^2 is -(a^2) and 2^3^2 is 2^(3^2), as in mathematics. A root of a
negative value has no datapoint.
"""

from __future__ import annotations

import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from zeropull.errors import InvalidInput

Series = dict[int, float]
"""Values by period start."""
Value = float | Series | list[Series]
Result = Series | list[Series]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<symbol>>=|<=|==|!=|&&|\|\||[-+*/^()<>,\[\]])|(?P<text>\"[^\"]*\"))"
)
_TEXT = re.compile(r"\"[^\"]*\"")
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_INSIGHTS = re.compile(r"\s*SELECT\b")
MAX_DEPTH = 50
MAX_SERIES = 500
"""In an array, as many as a request has queries: one that names another twice doubles it."""
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def evaluate_expression(
    text: str,
    queries: Mapping[str, Result],
    *,
    timestamps: Sequence[int],
    metrics: Collection[str] | None = None,
    shared: Collection[int] | None = None,
) -> Result:
    """The series, or several, that `text` gives; `queries` by id, `timestamps` of the whole range
    (for FILL and for expressions that are a plain number), `metrics` the ids that METRICS() stands
    for (those of one series). `shared`: where periods of all series begin, when their lengths
    differ: operators between two series act there only.

    Raises:
        InvalidInput: names the expression and where it cannot be understood.
    """
    single = [name for name, value in queries.items() if isinstance(value, dict)]
    known = single if metrics is None else list(metrics)
    parser = _Parser(text, _tokens(text), queries, known, list(timestamps), shared)
    value = parser.whole()
    if isinstance(value, float):
        return dict.fromkeys(timestamps, value) if math.isfinite(value) else {}
    return value


def names_in(text: str) -> set[str]:
    """Ids that an expression refers to; function names are in upper case and not among them."""
    return {token for token in _tokens(text) if token[0].islower()}


def needs_all_metrics(text: str) -> bool:
    """Whether the expression uses METRICS()."""
    return "METRICS" in _tokens(text)


def _tokens(text: str) -> list[str]:
    _check_kind(text)
    tokens, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None:
            raise InvalidInput(f"the expression {text!r} has {stripped[at]!r} at position {at}")
        tokens.append(match.group().strip())
        at = match.end()
    return tokens


def _check_kind(text: str) -> None:
    """Raises InvalidInput for what CloudWatch takes and we do not, by its name."""
    if _INSIGHTS.match(text):
        raise InvalidInput(
            f"the expression {text!r} is a query of Metrics Insights: only metric math is evaluated"
        )
    for name in _CALL.findall(_TEXT.sub("", text)):
        if name in FUNCTIONS or name in ("AND", "OR"):
            continue
        kind = "function" if name in _OTHERS else "unknown function"
        raise InvalidInput(
            f"the expression {text!r} has the {kind} {name!r}: "
            f"{', '.join(sorted(FUNCTIONS))} are evaluated here, in capitals"
        )


@dataclass(slots=True)
class _Parser:
    text: str
    tokens: list[str]
    queries: Mapping[str, Result]
    metrics: list[str]
    timestamps: list[int]
    shared: Collection[int] | None
    at: int = 0
    depth: int = 0

    def whole(self) -> Value:
        value = self.either()
        if self.at < len(self.tokens):
            raise self.wrong(f"{self.tokens[self.at]!r} where the end was expected")
        return value

    def either(self) -> Value:
        return self.chain(self.both, {"OR": _either, "||": _either})

    def both(self) -> Value:
        return self.chain(self.comparison, {"AND": _both, "&&": _both})

    def comparison(self) -> Value:
        left = self.sum()
        sign = self.peek()
        if sign not in _COMPARISONS:
            return left
        self.at += 1
        compare = _COMPARISONS[sign]
        return self.zip(left, self.sum(), lambda a, b: float(compare(a, b)))

    def sum(self) -> Value:
        return self.chain(self.product, {sign: _ARITHMETIC[sign] for sign in "+-"})

    def product(self) -> Value:
        return self.chain(self.factor, {sign: _ARITHMETIC[sign] for sign in "*/"})

    def chain(
        self, part: Callable[[], Value], signs: Mapping[str, Callable[[float, float], float]]
    ) -> Value:
        value = part()
        while (sign := self.peek()) in signs:
            self.at += 1
            value = self.zip(value, part(), signs[sign])
        return value

    def factor(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.wrong(f"more than {MAX_DEPTH} levels")
        try:
            if self.peek() != "-":
                return self.power()
            self.at += 1
            return self.zip(0.0, self.factor(), operator.sub)
        finally:
            self.depth -= 1

    def power(self) -> Value:
        value = self.atom()
        if self.peek() != "^":
            return value
        self.at += 1
        return self.zip(value, self.factor(), _power)

    def atom(self) -> Value:
        word = self.take()
        if word == "(":
            value = self.either()
            self.expect(")")
            return value
        if word == "[":
            return self.several(self.arguments("]"))
        if word[0].isdigit() or word[0] == ".":
            return float(word)
        if self.peek() == "(":
            self.at += 1
            return self.call(word, self.arguments(")"))
        if word in self.queries:
            return self.queries[word]
        if word.isidentifier():
            raise self.wrong(f"the unknown id {word!r}")
        raise self.wrong(f"{word!r} where a value was expected")

    def arguments(self, end: str) -> list[Value | str]:
        found: list[Value | str] = []
        if self.peek() == end:
            self.at += 1
            return found
        while True:
            if self.peek() in ("REPEAT", "LINEAR") or self.peek().startswith('"'):
                found.append(self.take())
            else:
                found.append(self.either())
            word = self.take()
            if word == end:
                return found
            if word != ",":
                raise self.wrong(f"{word!r} where , or {end} was expected")

    def call(self, name: str, arguments: list[Value | str]) -> Value:
        match name:
            case "METRICS" if len(arguments) <= 1:
                return self.all_metrics(*arguments)
            case "FILL" if len(arguments) == 2:
                return self.fill(arguments[0], arguments[1])
            case "IF" if len(arguments) in (2, 3):
                return self.choose(arguments)
            case "SUM" | "AVG" | "MIN" | "MAX" if len(arguments) == 1:
                return self.aggregate(name, arguments[0])
            case "ABS" | "CEIL" | "FLOOR" if len(arguments) == 1:
                rounding = _ROUNDINGS[name]
                return self.zip(self.value(arguments[0]), 0.0, lambda a, _: float(rounding(a)))
            case "SUM" | "AVG" | "MIN" | "MAX" if arguments:
                raise self.wrong(
                    f"the function {name} with {len(arguments)} arguments: several series go in "
                    f"brackets, {name}([a, b])"
                )
            case _:
                raise self.wrong(f"the function {name} with {len(arguments)} arguments")

    def all_metrics(self, part: Value | str = '""') -> Value:
        if not isinstance(part, str) or not part.startswith('"'):
            raise self.wrong("METRICS with something else than a part of an id in quotes")
        names = [name for name in self.metrics if part.strip('"') in name]
        return [_only_series(self.queries[name]) for name in names]

    def aggregate(self, name: str, argument: Value | str) -> Value:
        function = _AGGREGATES[name]
        value = self.value(argument)
        if isinstance(value, float):
            return value
        if isinstance(value, dict):
            return _aggregated(function, list(value.values()))
        starts = sorted(set().union(*value)) if value else []
        missing = 0.0 if name == "AVG" else None
        values = {
            start: _aggregated(function, _values_at(value, start, missing)) for start in starts
        }
        return {start: value for start, value in values.items() if math.isfinite(value)}

    def fill(self, argument: Value | str, filler: Value | str) -> Value:
        value = self.value(argument)
        if isinstance(value, list):
            return [self.filled(series, filler) for series in value]
        if isinstance(value, float):
            return value
        return self.filled(value, filler)

    def filled(self, series: Series, filler: Value | str) -> Series:
        if isinstance(filler, float):
            if not math.isfinite(filler):
                return series  # such as the minimum of no datapoints
            return {start: series.get(start, filler) for start in self.timestamps}
        if isinstance(filler, dict):
            return {
                start: series[start] if start in series else filler[start]
                for start in self.timestamps
                if start in series or start in filler
            }
        if filler not in ("REPEAT", "LINEAR"):
            raise self.wrong("FILL with neither a number, a series, REPEAT nor LINEAR")
        known = sorted(series)
        result = dict(series)
        for start in self.timestamps:
            place = bisect_right(known, start)
            if start in series or place == 0:
                continue
            before = known[place - 1]
            if filler == "REPEAT":
                result[start] = series[before]
            elif place < len(known):
                after = known[place]
                share = (start - before) / (after - before)
                result[start] = series[before] + share * (series[after] - series[before])
        return dict(sorted(result.items()))

    def choose(self, arguments: list[Value | str]) -> Value:
        condition, *branches = (self.value(argument) for argument in arguments)
        if isinstance(condition, list) or any(isinstance(branch, list) for branch in branches):
            raise self.wrong("several series in an IF")
        if isinstance(condition, float) and math.isnan(condition):
            return {}  # a number that could not be told, such as the maximum of no datapoints
        starts = sorted(condition) if isinstance(condition, dict) else self.timestamps
        result: Series = {}
        for start in starts:
            holds = condition[start] if isinstance(condition, dict) else condition
            chosen = branches[0] if holds else (branches[1] if len(branches) > 1 else {})
            if isinstance(chosen, float):
                result[start] = chosen
            elif isinstance(chosen, dict) and start in chosen:
                result[start] = chosen[start]
            elif holds and isinstance(condition, dict):
                result[start] = 0.0
        return result

    def zip(self, left: Value, right: Value, function: Callable[[float, float], float]) -> Value:
        if isinstance(left, list) or isinstance(right, list):
            if isinstance(left, list) and isinstance(right, list):
                raise self.wrong("an operator between two lists of series")
            if isinstance(left, list):
                return [_only_series(self.zip(series, right, function)) for series in left]
            assert isinstance(right, list)
            return [_only_series(self.zip(left, series, function)) for series in right]
        if isinstance(left, float) and isinstance(right, float):
            return _safely(function, left, right)
        starts = _starts(left, right)
        if isinstance(left, dict) and isinstance(right, dict) and self.shared is not None:
            starts = [start for start in starts if start in self.shared]
        pairs = ((start, _at(left, start), _at(right, start)) for start in starts)
        values = {start: _safely(function, a, b) for start, a, b in pairs}
        return {start: value for start, value in values.items() if math.isfinite(value)}

    def several(self, values: list[Value | str]) -> list[Series]:
        found: list[Series] = []
        for value in values:
            if isinstance(value, list):
                found.extend(value)
            elif isinstance(value, dict):
                found.append(value)
            else:
                raise self.wrong("a number where a series was expected")
        if len(found) > MAX_SERIES:
            raise self.wrong(f"an array of {len(found)} series, at most {MAX_SERIES}")
        return found

    def value(self, argument: Value | str) -> Value:
        if isinstance(argument, str):
            raise self.wrong(f"{argument} where a value was expected")
        return argument

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise self.wrong("its end too early")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise self.wrong(f"no {token} where one was expected")

    def wrong(self, what: str) -> InvalidInput:
        return InvalidInput(f"the expression {self.text!r} has {what}")


def _starts(left: float | Series, right: float | Series) -> list[int]:
    """Where one of them has a value."""
    if isinstance(left, dict) and isinstance(right, dict):
        return sorted(left.keys() | right.keys())
    return sorted(left if isinstance(left, dict) else right if isinstance(right, dict) else ())


def _at(value: float | Series, start: int) -> float:
    return value.get(start, 0.0) if isinstance(value, dict) else value


def _values_at(several: Sequence[Series], start: int, missing: float | None) -> list[float]:
    """Of each series; `missing` stands for a value that is not there, None leaves it out."""
    found = (series.get(start, missing) for series in several)
    return [value for value in found if value is not None]


def _safely(function: Callable[[float, float], float], left: float, right: float) -> float:
    try:
        return float(function(left, right))
    except (ZeroDivisionError, OverflowError, ValueError):  # ValueError: ceil of what is no number
        return math.nan


def _power(base: float, exponent: float) -> float:
    """As math.pow, but nothing to a power, or to the power of nothing, stays nothing."""
    return base + exponent if math.isnan(base + exponent) else math.pow(base, exponent)


def _aggregated(function: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    try:
        return function(values) if values else math.nan
    except OverflowError:
        return math.nan


def _only_series(value: Value) -> Series:
    assert isinstance(value, dict)
    return value


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _both(left: float, right: float) -> float:
    return float(bool(left) and bool(right))


def _either(left: float, right: float) -> float:
    return float(bool(left) or bool(right))


_ROUNDINGS: dict[str, Callable[[float], float]] = {
    "ABS": abs, "CEIL": math.ceil, "FLOOR": math.floor,
}  # fmt: skip
_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "SUM": math.fsum, "AVG": _mean, "MIN": min, "MAX": max,
}  # fmt: skip
FUNCTIONS = frozenset({*_AGGREGATES, *_ROUNDINGS, "FILL", "IF", "METRICS"})
_OTHERS = frozenset(
    {
        "ANOMALY_DETECTION_BAND", "DATAPOINT_COUNT", "DATE", "DAY", "DB_PERF_INSIGHTS", "DIFF",
        "DIFF_TIME", "EPOCH", "FIRST", "HOUR", "INSIGHT_RULE_METRIC", "LAMBDA", "LAST", "LOG",
        "LOG10", "METRIC_COUNT", "MINUTE", "MONTH", "PERIOD", "RATE", "REMOVE_EMPTY", "RUNNING_SUM",
        "SEARCH", "SERVICE_QUOTA", "SLICE", "SORT", "STDDEV", "TIME_SERIES", "YEAR",
    }
)  # fmt: skip
"""What CloudWatch has besides."""
