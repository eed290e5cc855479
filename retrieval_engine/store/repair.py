"""Making a damaged store sound again: what is damaged goes, and the next encode makes it anew."""

from dataclasses import dataclass, replace
from pathlib import Path

from retrieval_engine.store.begin import lock_store, own_shards, sweep
from retrieval_engine.store.manifest import (
    Part,
    read_header,
    read_manifest,
    write_manifest,
)
from retrieval_engine.store.mirror import local_store
from retrieval_engine.store.shard_reader import check_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair did.

    Attributes:
        problems: one line for each damaged file that was dropped.
        swept: names of files that no manifest listed and that were deleted.
    """

    problems: tuple[str, ...]
    swept: tuple[str, ...]


def repair_store(path: str | Path) -> Repaired:
    """Drop damaged files from the manifest and delete whatever it does not list.

    Items whose image rows are gone stay known; the next `encode` of their source encodes
    them again and nothing else.

    Raises:
        StoreNotFound: there is no store.
        StoreDamaged: the manifest itself cannot be understood.
        StoreError: a writer is at work.
    """
    path = local_store(path)
    read_header(path)
    lock = lock_store(path)
    try:
        own_shards(path)
        manifest = read_manifest(path)
        bad = {entry.name: check_file(path, entry) for entry in manifest.files()}
        problems = tuple(problem for problem in bad.values() if problem)
        if problems:
            parts = (
                Part(number=p.number, files=tuple(f for f in p.files if not bad[f.name]))
                for p in manifest.parts
            )
            whole = tuple(part for part in parts if part.files)
            # What a merge took in before, the next one looks at again.
            shards = tuple(replace(entry, state="") for entry in manifest.shards)
            manifest = replace(manifest, parts=whole, shards=shards)
            write_manifest(path, manifest)
        return Repaired(problems=problems, swept=tuple(sweep(path, manifest)))
    finally:
        lock.release()
