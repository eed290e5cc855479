"""The contract of an index, kept by Milvus through a real server."""

from pathlib import Path

import pytest

from retrieval_engine.fingerprint import digest
from retrieval_engine.index import measured
from retrieval_engine.testing import BackendContract

pytestmark = pytest.mark.service


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build asks fewer queries of the server to know its recall and speed."""
    monkeypatch.setattr(measured, "_MAX_QUERIES", 100)
    monkeypatch.setattr(measured, "_TIMED_QUERIES", 5)


class TestMilvus(BackendContract):
    tolerance = 1e-3
    agreement = 0.97

    @pytest.fixture(autouse=True)
    def _server(self, milvus_uri: str) -> None:
        self._uri = milvus_uri

    def recipe(self, folder: Path) -> str:
        options = {
            "uri": f'"{self._uri}"',
            "collection": f'"c{digest(str(folder))[:12]}"',
            "keep_old_s": 0,
        }
        lines = (f"{name} = {value}" for name, value in options.items())
        text = "\n".join(('backend = "milvus"', "[options]", *lines))
        (folder / "milvus.toml").write_text(text)
        return str(folder / "milvus.toml")
