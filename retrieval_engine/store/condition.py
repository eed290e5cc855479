"""A filter's words, taken apart by DuckDB's parser: a condition over columns, and nothing else.

What people write may come from a stranger, through `serve`. So DuckDB says what it understood, as
a tree, and only what is named here passes: comparisons, `and`, `or`, `not`, `in`, `between`,
`like`, casts to plain types, and functions whose work and answer are of a bounded size. No other
table, file, setting or statement can be named. What then runs is the tree, not the words.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from retrieval_engine.errors import UsageError

FUNCTIONS = frozenset(
    {
        *("+", "-", "*", "/", "//", "%", "**", "^", "||"),
        *("~~", "!~~", "~~*", "!~~*", "~~~", "like_escape", "not_like_escape"),
        *("ilike_escape", "not_ilike_escape", "regexp_matches", "regexp_full_match"),
        *("contains", "starts_with", "ends_with", "prefix", "suffix", "lower", "upper", "trim"),
        *("length", "len", "abs", "round", "floor", "ceil", "trunc", "least", "greatest", "nullif"),
        *("sqrt", "sin", "cos", "tan", "asin", "acos", "atan2", "radians", "degrees", "pi"),
        *("list_value", "list_contains", "list_has", "list_has_any", "list_has_all"),
        *("array_contains", "array_length", "list_position", "struct_extract"),
        *("year", "month", "day", "hour", "minute", "second", "dayofweek", "isodow", "dayofyear"),
        *("week", "quarter", "dayname", "monthname", "date_part", "date_trunc", "date_diff"),
        *("to_years", "to_months", "to_weeks", "to_days", "to_hours", "to_minutes"),
    }
)
"""What a filter may call; operators stand under the names that DuckDB gives them."""
_TYPES = {
    *("date", "timestamp", "time", "interval", "boolean", "bool", "varchar", "text", "string"),
    *("smallint", "integer", "int", "bigint", "float", "real", "double"),
}
_CLASSES = {
    *("COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CONSTANT", "COLUMN_REF", "CAST"),
    *("BETWEEN", "CASE", "TYPE"),
}
_BEFORE = "SELECT 1 FROM items WHERE "
_ALONE = f"{_BEFORE}true"
_LONGEST = 2000
# DuckDB has no infix `contains`. Where its parser stumbles over that word, an operator that it
# knows takes the place; in the tree it becomes the function `contains`, of strings and lists.
_CONTAINS, _STANDS_IN = b"contains", b"<->     "
_DATES = ("taken",)
_MONTH = re.compile(r"\d{4}(-\d{2})?")
_UNKNOWN_PLACE = 1 << 62

_HINT = (
    "a condition is written as in SQL: taken >= '2023-05' and camera like 'iPhone%' and "
    "subjects contains 'dog'; text stands in single quotes"
)

Node = dict[str, Any]
Sql = Callable[[str, list[str]], Any]
"""Runs a statement with its parameters, and gives the one value it answers with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition.

    Attributes:
        text: as it was written.
        sql: as DuckDB writes it.
        columns: its columns, by the names they have in `items`.
    """

    text: str
    sql: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """A filter.

    Attributes:
        whole: all of it.
        parts: what `and` joins at the top; the whole alone where there is no `and`.
        leaves: the conditions in it that compare a column with a value.
    """

    whole: Condition
    parts: tuple[Condition, ...]
    leaves: tuple[Condition, ...]


def read_condition(text: str, run: Sql, column: Callable[[str], str]) -> Conditions:
    """What a filter says.

    Args:
        text: as it was written.
        run: of a DuckDB.
        column: gives the name in `items` of a column that people name, or says what there is.

    Raises:
        UsageError: it is no condition, holds what a filter may not hold, or names no column.
    """
    if not text.strip():
        raise UsageError("`where` is empty", hint="ask for something: \"taken >= '2023-05'\"")
    if "\0" in text:
        raise UsageError("`where` holds a NUL character", hint=_HINT)
    if len(text) > _LONGEST:
        raise UsageError(f"`where` has {len(text):,} characters; at most {_LONGEST:,} are read")
    try:
        reader = _Reader(text, run, column)
        return reader.conditions()
    except RecursionError:
        raise UsageError("`where` is nested too deep") from None


class _Reader:
    def __init__(self, text: str, run: Sql, column: Callable[[str], str]) -> None:
        self.source = _BEFORE.encode() + text.encode(errors="replace")
        self.run, self.column = run, column

    def conditions(self) -> Conditions:
        statement = self._tree()
        node: Node = statement["node"]
        top: Node = node.pop("where_clause") or {}
        plain = json.loads(self.run("SELECT json_serialize_sql(?)", [_ALONE]))["statements"][0]
        del plain["node"]["where_clause"]
        if _unplaced(statement) != _unplaced(plain) or not top:
            raise UsageError("`where` holds more than a condition", hint=_HINT)
        self._check(top)
        self._frame = statement
        inner = [n for n in _nodes(top) if _is_leaf(n)]
        parts = top["children"] if top["type"] == "CONJUNCTION_AND" else [top]
        return Conditions(
            whole=self._condition(top),
            parts=tuple(map(self._condition, parts)),
            leaves=tuple(map(self._condition, inner)),
        )

    def _tree(self) -> Node:
        """DuckDB's tree of the one statement."""
        while True:
            text = self.source.decode(errors="replace")
            found = json.loads(self.run("SELECT json_serialize_sql(?)", [f"{text}\n"]))
            if not found["error"]:
                if len(found["statements"]) == 1:
                    return found["statements"][0]  # type: ignore[no-any-return]
                raise UsageError("`where` holds more than a condition", hint=_HINT)
            if found["error_type"] != "parser":
                raise UsageError("`where` holds more than a condition", hint=_HINT)
            at = int(found.get("position") or 0)
            word = self.source[at : at + len(_CONTAINS)]
            if at < len(_BEFORE) or word.lower() != _CONTAINS:
                said = found["error_message"].splitlines()[0]
                raise UsageError(f"`where` is no condition: {said}", hint=_HINT)
            self.source = self.source[:at] + _STANDS_IN + self.source[at + len(word) :]

    def _check(self, node: Node) -> None:
        """Refuse what may not be; name columns as `items` does, and write whole dates."""
        kind = node["class"]
        if kind not in _CLASSES:
            raise UsageError(f"`where` may hold no {_shown(node)}", hint=_HINT)
        if kind == "COLUMN_REF":
            names: list[str] = node["column_names"]
            if names[0].lower() == "meta" and len(names) > 1:
                names = [f"meta.{names[1]}", *names[2:]]
            node["column_names"] = [self.column(names[0]), *names[1:]]
        if kind == "FUNCTION":
            self._check_function(node)
        if kind == "TYPE" and (node["type_name"].lower() not in _TYPES or node["children"]):
            raise UsageError(
                f"`where` may cast to no {node['type_name'].lower()}",
                hint=f"it may cast to: {', '.join(sorted(_TYPES))}",
            )
        children = list(_children(node))
        for child in children:
            self._check(child)
        if any(c["class"] == "COLUMN_REF" and c["column_names"][-1] in _DATES for c in children):
            for child in children:
                _complete_date(child)

    def _check_function(self, node: Node) -> None:
        if node["function_name"] == _STANDS_IN.decode().strip():
            path = {"path": ["contains"]}
            node |= {"function_name": "contains", "is_operator": False, "qualified_name": path}
        path_of = node["qualified_name"]["path"]
        if path_of != [node["function_name"]] or path_of[0] not in FUNCTIONS:
            words = ", ".join(sorted(name for name in FUNCTIONS if name.isidentifier()))
            raise UsageError(
                f"`where` may not call {'.'.join(path_of)}", hint=f"it may call: {words}"
            )

    def _condition(self, node: Node) -> Condition:
        """A node as text, and as DuckDB writes it."""
        frame = {**self._frame, "node": {**self._frame["node"], "where_clause": node}}
        value = json.dumps({"error": False, "statements": [frame]})
        sql: str = self.run("SELECT json_deserialize_sql(?)", [value])
        assert sql.startswith(_BEFORE)
        places = [
            (n["query_location"], n["query_location"] + n["query_location_length"])
            for n in _nodes(node)
            if n["query_location"] < _UNKNOWN_PLACE
        ]
        start, stop = min(p for p, _ in places), max(p for _, p in places)
        text = self.source[start:stop].replace(_STANDS_IN, _CONTAINS)
        columns = [n["column_names"][0] for n in _nodes(node) if n["class"] == "COLUMN_REF"]
        return Condition(
            text=text.decode(errors="replace"),
            sql=sql.removeprefix(_BEFORE),
            columns=tuple(dict.fromkeys(columns)),
        )


def _children(node: Any) -> Iterator[Node]:
    """The nearest nodes below one."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and "class" in value:
            yield value
        elif isinstance(value, dict | list):
            yield from _children(value)


def _nodes(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _is_leaf(node: Node) -> bool:
    """Whether a node compares one column with values."""
    if node["class"] not in ("COMPARISON", "BETWEEN", "FUNCTION", "OPERATOR"):
        return False
    kinds = [child["class"] for child in _children(node)]
    return "COLUMN_REF" in kinds and "CONSTANT" in kinds and len(set(kinds)) == 2


def _complete_date(node: Node) -> None:
    """2023 and 2023-05 are the first day of those."""
    if node["class"] == "CONSTANT" and node["literal"].get("kind") == "STRING":
        text = node["literal"]["text"]
        if _MONTH.fullmatch(text):
            node["literal"]["text"] = f"{text}-01" if "-" in text else f"{text}-01-01"


def _unplaced(value: Any) -> Any:
    """A tree without where in the text its nodes stand."""
    if isinstance(value, dict):
        return {k: _unplaced(v) for k, v in value.items() if not k.startswith("query_location")}
    return [_unplaced(v) for v in value] if isinstance(value, list) else value


def _shown(node: Node) -> str:
    return str(node["class"]).lower().replace("_", " ")
