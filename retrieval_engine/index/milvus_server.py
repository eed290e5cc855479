"""A Milvus server as an index needs it: collections that say whose they are, and one-line errors."""

import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from retrieval_engine.errors import IndexFailure, MissingExtra, UsageError, one_line

TOKEN = "MILVUS_TOKEN"
"""Environment variable with `user:password` or an API key; it is written nowhere."""
VECTOR, ROW, ITEM = "vector", "row", "item"
"""Fields of a collection; row r of item i is i * vectors an item + r."""
OURS = "vlre."  # what names of our properties begin with
_LOOK_S = 0.2  # between two looks at what takes long
_GONE = (100, 4)  # what servers answer of collections that are not there


def import_pymilvus() -> Any:
    """The client library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pymilvus
    except ModuleNotFoundError as error:
        raise MissingExtra("pymilvus", "milvus") from error
    # They print a traceback for every call that fails, before it raises.
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def check_uri(uri: str) -> str:
    """The address of a server, or the absolute path of a Milvus Lite file.

    Raises:
        UsageError: it is neither, or holds a password.
    """
    if re.match(r"https?://", uri):
        if "@" in uri:
            raise UsageError(
                "`uri` holds a user or a password, which would be written into the index",
                hint=f"set the environment variable {TOKEN} to user:password in place of it",
            )
        return uri.rstrip("/")
    if "://" in uri or not uri.endswith(".db"):
        raise UsageError(
            f"`uri` is {uri!r}; it is http://HOST:PORT, https://HOST:PORT or a FILE.db of Milvus Lite"
        )
    return str(Path(uri).resolve())


class Server:
    """A connection; every call ends in time, and says what went wrong in one line.

    Args:
        uri: as `check_uri` gives it.
        timeout_s: of each call.

    Raises:
        MissingExtra: the client, or Milvus Lite for a file, is not installed.
        IndexFailure: nothing answers there, or it lets nobody in.
    """

    def __init__(self, uri: str, timeout_s: float) -> None:
        self.uri, self.timeout_s = uri, timeout_s
        if uri.endswith(".db") and importlib.util.find_spec("milvus_lite") is None:
            raise MissingExtra("milvus-lite", "milvus-lite")
        with self._asked("be reached"):
            self._client = _client(uri, timeout_s, os.environ.get(TOKEN, ""), os.getpid())
            version = self._client.get_server_version(timeout=timeout_s)
        self.is_lite = "lite" in version
        self.version = version

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """What a method of the client returns.

        Raises:
            IndexFailure: the server refused, was lost, or took longer than the time given.
        """
        with self._asked(name.replace("_", " ")):
            return getattr(self._client, name)(*arguments, timeout=self.timeout_s, **named)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        import grpc

        failures = (import_pymilvus().exceptions.MilvusException, grpc.RpcError, OSError)
        try:
            yield
        except failures as error:
            raise IndexFailure(
                f"Milvus at {self.uri} cannot {what}: {_reason(error)}",
                hint=_how_to_reach(self.uri) if what == "be reached" else "",
            ) from error

    def described(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The name and our properties of a collection, by its own name or an alias; None: none."""
        exceptions = import_pymilvus().exceptions
        try:
            found = self._client.describe_collection(name, timeout=self.timeout_s)
        except exceptions.MilvusException as error:
            if error.code in _GONE or "not found" in str(error) or "not exist" in str(error):
                return None
            raise IndexFailure(
                f"Milvus at {self.uri} cannot describe {name}: {_reason(error)}"
            ) from error
        properties = {
            key.removeprefix(OURS): str(value)
            for key, value in found.get("properties", {}).items()
            if key.startswith(OURS)
        }
        return str(found["collection_name"]), properties

    def mark(self, name: str, properties: Mapping[str, str]) -> None:
        """Write our properties of a collection."""
        self.call("alter_collection_properties", name, {OURS + k: v for k, v in properties.items()})

    def create(self, name: str, dim: int, properties: Mapping[str, str]) -> None:
        """Make an empty collection: float16 vectors where the server has them, else float32."""
        kind = import_pymilvus().DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ROW, kind.INT64, is_primary=True)
        schema.add_field(ITEM, kind.INT64)
        vectors = kind.FLOAT_VECTOR if self.is_lite else kind.FLOAT16_VECTOR
        schema.add_field(VECTOR, vectors, dim=dim)
        marked = {OURS + k: v for k, v in properties.items()}
        self.call("create_collection", name, schema=schema, properties=marked)

    def drop(self, name: str) -> None:
        """Take a collection away."""
        self.call("drop_collection", name)

    def count(self, name: str) -> int:
        """Number of rows, after all that was written."""
        found = self.call(
            "query", name, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(found[0]["count(*)"])

    def make_searchable(self, name: str, index_type: str, parameters: Mapping[str, int]) -> None:
        """Index the vectors of a collection, where a killed build has not, and have it answer.

        Raises:
            IndexFailure: the server cannot index them.
        """
        self.call("flush", name)
        if VECTOR not in self.call("list_indexes", name):
            wanted = self._client.prepare_index_params()
            wanted.add_index(
                VECTOR,
                index_name=VECTOR,
                index_type=index_type,
                metric_type="IP",
                params=dict(parameters),
            )
            self.call("create_index", name, wanted, sync=False)
        # Hours for many rows: each look ends in time, the whole has none.
        while True:
            found = self.call("describe_index", name, VECTOR)
            if found["state"] == "Failed":
                raise IndexFailure(f"Milvus at {self.uri} cannot index {name}: {found}")
            if found["state"] == "Finished" and not found["pending_index_rows"]:
                break
            time.sleep(_LOOK_S)
        self.load(name)

    def load(self, name: str) -> None:
        """Have a collection in the memory of the server."""
        self.call("load_collection", name, _async=True)
        while str(self.call("get_load_state", name)["state"]) != "Loaded":
            time.sleep(_LOOK_S)

    def point(self, alias: str, name: str) -> str:
        """Have an alias stand for a collection; the name of the one it stood for, or empty."""
        found = self.described(alias)
        if found is None:
            self.call("create_alias", name, alias)
            return ""
        if found[0] != name:
            self.call("alter_alias", name, alias)
        return found[0]


@cache
def _client(uri: str, timeout_s: float, token: str, _process: int) -> Any:
    """One client for each address: a file can be opened once, and threads may share it."""
    return import_pymilvus().MilvusClient(uri, token=token, timeout=timeout_s)


def _how_to_reach(uri: str) -> str:
    if uri.endswith(".db"):
        return (
            "one process at a time opens a file; a server over it lets several in (docs/milvus.md)"
        )
    return f"is it running, and is {TOKEN} right where it wants one?"


def _reason(error: BaseException) -> str:
    text = one_line(error)
    found = re.search(r"message=(.*)", text)
    return (found[1] if found else text).rstrip(")>").strip()
