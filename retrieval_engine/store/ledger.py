"""The failure ledger: which items could not be encoded, and why."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import StoreDamaged
from retrieval_engine.records import Failure
from retrieval_engine.store.manifest import FAILURES


def read_failures(path: Path) -> list[Failure]:
    """The ledger of the store at a path, oldest failure first.

    Raises:
        StoreDamaged: a line cannot be understood.
    """
    file = path / FAILURES
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [Failure(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
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
        lines = [json.dumps(asdict(failure)) + "\n" for failure in after.values()]
        replace_file(path / FAILURES, "".join(lines).encode())
