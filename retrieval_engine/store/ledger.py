"""The failure ledger: which items could not be encoded, and why."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import StoreDamaged
from retrieval_engine.fingerprint import digest
from retrieval_engine.records import Failure
from retrieval_engine.store.manifest import FAILURES
from retrieval_engine.store.send import send
from retrieval_engine.strict_json import loads


def read_failures(path: Path) -> list[Failure]:
    """The ledger of the store at a path, oldest failure first.

    Raises:
        StoreDamaged: a line cannot be understood.
    """
    file = path / FAILURES
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        return [_failure(loads(line)) for line in lines if line]
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreDamaged(
            f"{file} cannot be understood ({error})",
            hint="delete it: the next `encode()` tries the failed items again",
        ) from error


def update_failures(
    path: Path, failures: Iterable[Failure], settled: Collection[tuple[str, str]]
) -> None:
    """Write the ledger anew, where it changes.

    Args:
        path: directory of the store.
        failures: new ones; a later failure of the same item replaces the earlier.
        settled: (source, item id) of items that are stored or gone now.
    """
    before = read_failures(path)
    after = {(f.source, f.item_id): f for f in before if (f.source, f.item_id) not in settled}
    for failure in failures:
        after[failure.source, failure.item_id] = failure
    if list(after.values()) != before:
        lines = [json.dumps(_signed(failure)) + "\n" for failure in after.values()]
        data = "".join(lines).encode()
        send(path, FAILURES, data)
        replace_file(path / FAILURES, data)


def _signed(failure: Failure) -> dict[str, str]:
    value = asdict(failure)
    return {**value, "checksum": digest(value)}


def _failure(line: Mapping[str, str]) -> Failure:
    value = {name: text for name, text in line.items() if name != "checksum"}
    if line.get("checksum", digest(value)) != digest(value):  # lines of before have none
        raise ValueError("the checksum of a line differs")
    return Failure(**value)
