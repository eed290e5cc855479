"""Filters over items, by DuckDB: which of them satisfy `taken >= '2023-05' and width > 800`.

DuckDB reads the Arrow table where it lies, on one thread, in memory, without access to files or
network, with its settings locked, and with a bound on time; see `condition` for what it is given.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval_engine import arrow as pc
from retrieval_engine.errors import UsageError
from retrieval_engine.records import Json
from retrieval_engine.store.condition import Condition, Conditions, read_condition
from retrieval_engine.store.items import SCHEMA

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Mask = NDArray[np.bool_]

COLUMNS = (
    *("id", "source", "uri", "split", "folder", "taken", "camera", "latitude", "longitude"),
    *("width", "height", "size_bytes"),
)
"""What can be asked of every item; null where it is not known. `size_bytes` is of the image."""

_SETTINGS = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": "1GB",
    "temp_directory": "",
    "threads": "1",
    "lock_configuration": "true",
}
SECONDS = 10.0
"""A filter that takes longer than this is given up."""
_OF_META = "json_transform(json_extract(meta, ?), ?)"
_KEPT_BYTES, _FEWEST_KEPT = 64 << 20, 4  # of answers
_SHOWN = _WIDEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that filters can name.

    Attributes:
        name: of it.
        type: as DuckDB calls it, e.g. `timestamp`, `varchar[]`.
        count: number of items that have a value.
        example: one of them as text, or empty.
    """

    name: str
    type: str
    count: int
    example: str

    def to_json(self) -> dict[str, Json]:
        """The column as one JSON object."""
        return asdict(self)


class ItemFilter:
    """Evaluates filters over one table of items; each answer is kept. Safe to use from threads.

    Args:
        table: columns as `Store.items` has them; what is not there counts as null.
        within: (items,) the items that may be answers at all; None for all.
    """

    def __init__(self, table: Any, within: Mask | None = None) -> None:
        self._table = _asked_of(table)
        self._within = np.ones(len(table), bool) if within is None else within
        self._turn = threading.RLock()
        self._duckdb: DuckDBPyConnection | None = None
        self._keys: list[str] | None = None
        self._masks: OrderedDict[str, Mask] = OrderedDict()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def mask(self, where: str) -> Mask:
        """(items,) which items satisfy a filter; read-only.

        Raises:
            UsageError: it is no condition over these columns, or takes too long.
        """
        # Without the lock: what is known waits for nobody's slow filter.
        if (known := self._masks.get(where)) is not None:
            return known
        with self._turn:
            if (known := self._masks.get(where)) is not None:
                return known
            found = self._evaluated(self._read(where)) & self._within
            found.flags.writeable = False
            while len(self._masks) >= max(_FEWEST_KEPT, _KEPT_BYTES // max(1, len(self))):
                self._masks.popitem(last=False)
            self._masks[where] = found
            return found

    def emptied_by(self, where: str) -> str:
        """A line that says which part of a filter no item satisfies; empty where some satisfy it."""
        if self.mask(where).any():
            return ""
        with self._turn:
            conditions = self._read(where)
            total = int(self._within.sum())
            counts = [(p, int((self._run_mask(p) & self._within).sum())) for p in conditions.parts]
            if not (failed := [part for part, count in counts if not count]):
                each = ", ".join(f"{part.text} {count:,}" for part, count in counts)
                return f"the filter leaves none of {total:,} items; alone, its parts leave: {each}"
            names = [name for part in failed for name in part.columns]
            unknown = [n for n in names if self._table[n].null_count == len(self)]
            why = f" ({', '.join(unknown)} is not known of any)" if unknown else ""
            what = ", ".join(part.text for part in failed)
            return f"the filter leaves none of {total:,} items: {what} holds for none{why}"

    def columns(self) -> list[Column]:
        """What filters can name, metadata last."""
        with self._turn:
            found = self._described({name: f'"{name}"' for name in COLUMNS}, "items", [])
            form = self._value("SELECT json_group_structure(meta::JSON) FROM items", [])
            form = json.loads(form or "null")
            form = _plain(form) or {} if isinstance(form, dict) else {}  # "JSON": always {}
            taken = {key: f"meta.{key}" for key in form if key.lower() in COLUMNS}
            if keys := {taken.get(key, key): f"x.{_quoted(key)}" for key in form}:
                of = "(SELECT json_transform(meta, ?) AS x FROM items)"
                found += self._described(keys, of, [json.dumps(form)])
            return found

    # What DuckDB does

    def _described(self, named: Mapping[str, str], of: str, how: list[str]) -> list[Column]:
        """Columns by name, given as expressions over a table."""
        types = self._run(f"DESCRIBE SELECT {', '.join(named.values())} FROM {of}", how).fetchall()
        pairs = ", ".join(f"count({value}), any_value({value})" for value in named.values())
        values = self._run(f"SELECT {pairs} FROM {of}", how).fetchall()[0]
        found = []
        for name, (_, kind, *_), count, example in zip(
            named, types, values[::2], values[1::2], strict=True
        ):
            text = "" if example is None else str(example)
            text = text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
            found.append(Column(name=name, type=kind.lower(), count=int(count), example=text))
        return found

    def _run(self, sql: str, parameters: list[str]) -> Any:
        if self._duckdb is None:
            import duckdb

            self._duckdb = duckdb.connect(":memory:", config=dict(_SETTINGS))
            self._duckdb.register("items", self._table)
        return self._duckdb.execute(sql, parameters)

    def _value(self, sql: str, parameters: list[str]) -> Any:
        return self._run(sql, parameters).fetchall()[0][0]

    def _read(self, where: str) -> Conditions:
        import duckdb

        try:
            return read_condition(where, self._value, self._name)
        except duckdb.Error as error:
            raise UsageError(f"`where` cannot be read: {_said(error)}") from error

    def _run_mask(self, condition: Condition) -> Mask:
        with self._bounded():
            found = self._run(
                f"SELECT CASE WHEN {condition.sql} THEN true ELSE false END AS m FROM items", []
            )
            mask: Mask = np.array(found.fetchnumpy()["m"], bool)
        return mask

    def _evaluated(self, conditions: Conditions) -> Mask:
        import duckdb

        try:
            return self._run_mask(conditions.whole)
        except duckdb.Error as error:
            for leaf in conditions.leaves:
                try:
                    self._run_mask(leaf)
                except duckdb.Error as own:
                    raise self._misfit(leaf, own) from error
            raise UsageError(f"`where` cannot be evaluated: {_said(error)}") from error

    def _misfit(self, leaf: Condition, error: Exception) -> UsageError:
        [name] = leaf.columns
        kind = self._described({name: _quoted(name)}, "items", [])[0].type
        shown = name.removeprefix("meta.")
        hint = "a number is written without quotes"
        if kind.endswith("[]"):
            hint = f"{shown} holds lists: {shown} contains 'value'"
        elif kind == "varchar":
            hint = "text stands in single quotes"
        elif kind.startswith(("timestamp", "date")):
            hint = "a time is written '2023', '2023-05', '2023-05-17' or '2023-05-17 14:30'"
        return UsageError(
            f"`where`: {leaf.text}: column {shown} is {kind}: {_said(error)}", hint=hint
        )

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        import duckdb

        assert self._duckdb is not None
        timer = threading.Timer(SECONDS, self._duckdb.interrupt)
        timer.start()
        try:
            yield
        except duckdb.InterruptException as error:
            raise UsageError(f"`where` took longer than {SECONDS:g} s and was given up") from error
        finally:
            timer.cancel()

    # Metadata

    def _name(self, asked: str) -> str:
        """The column of the table that a name stands for; of metadata it is made when first asked."""
        if (name := asked.lower()) in COLUMNS:
            return name
        key = asked.removeprefix("meta.")
        known = self._meta_keys()
        if key not in known:
            key = next((k for k in known if k.lower() == key.lower()), key)
        name = f"meta.{key}"
        if name not in self._table.column_names:
            if key not in known:
                listed = [*COLUMNS, *known][:_SHOWN]
                said = f"`where`: no column {asked!r}; known: {', '.join(listed)}"
                raise UsageError(said, hint="text stands in single quotes")
            assert self._duckdb is not None
            value = self._duckdb.sql(f"SELECT {_OF_META} FROM items", params=self._form(key))
            self._table = self._table.append_column(name, value.to_arrow_table().column(0))
            self._duckdb.register("items", self._table)
        return name

    def _meta_keys(self) -> list[str]:
        if self._keys is None:
            rows = self._run("SELECT DISTINCT unnest(json_keys(meta)) AS k FROM items", [])
            self._keys = sorted(key for (key,) in rows.fetchall())
        return self._keys

    def _form(self, key: str) -> list[str]:
        """Where a key is in the metadata, and of what type its values are."""
        pointer = "/" + key.replace("~", "~0").replace("/", "~1")
        sql = "SELECT json_group_structure(json_extract(meta, ?)) FROM items"
        form = _plain(json.loads(self._value(sql, [pointer]) or "null"))
        return [pointer, json.dumps(form or "VARCHAR")]


def _asked_of(table: Any) -> Any:
    """The columns that filters can name, and `meta`."""

    def column(name: str) -> Any:
        if name in table.column_names:
            return table[name]
        return pa.chunked_array([pa.nulls(len(table), SCHEMA.field(name).type)])

    own = column("size_bytes")
    # Arrays in place of 0 and None: to make a scalar pyarrow imports pandas, half a second.
    none, is_less = pa.nulls(len(table), own.type), pc.less(own, pc.subtract(own, own))
    columns = {name: column(name) for name in COLUMNS}
    columns["size_bytes"] = pc.coalesce(column("bytes"), pc.if_else(is_less, none, own))
    return pa.table({**columns, "meta": column("meta")})


def _quoted(name: str) -> str:
    """As SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _plain(form: Any) -> Any:
    """A structure of JSON values as types that can be compared; None where all are null."""
    if isinstance(form, dict):
        lower: dict[str, Any] = {}
        for name, value in form.items():  # DuckDB tells no upper from lower case
            lower.setdefault(name.lower(), (name, _plain(value) or "VARCHAR"))
        return dict(lower.values()) or None
    if isinstance(form, list):
        return [_plain(form[0]) or "VARCHAR"]
    return {"UBIGINT": "BIGINT", "HUGEINT": "BIGINT", "JSON": "VARCHAR", "NULL": None}.get(
        form, form
    )


def _said(error: Exception) -> str:
    """The first line of what DuckDB says."""
    return str(error).splitlines()[0].partition(" Error: ")[2] or str(error).splitlines()[0]
