"""Whether the gallery holds what the model was trained on: by id, by content, and nearly.

A training set is known from a record: `training.json` of a model or head directory, a store, or a
JSON file that names items. What is not known is said to be unknown, never taken for clean.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_engine.duplicates import StoredPictures, crossing
from retrieval_engine.errors import EvaluationError, SourceError, UsageError
from retrieval_engine.models.checkpoint import shipped
from retrieval_engine.records import Json, Modality
from retrieval_engine.sources import open_source
from retrieval_engine.store import Gallery, Store, open_store
from retrieval_engine.store.gallery import shared_strings
from retrieval_engine.urls import only_named

if TYPE_CHECKING:
    from retrieval_engine.heads import SavedHead

RECORD = "training.json"
NEAR = 0.98  # cosine of features from which two files that cannot be read count as one image
_TRAINED_SPLITS = ("train", "")
_EXAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What something was trained on, as far as it is known.

    Attributes:
        what: where the knowledge comes from, for people.
        items: (source, id) of each item; an empty source where only ids are known.
        keys: sha256 of each image's bytes.
        store: where features of the images are, to find near-duplicates.
        split: of that store.
    """

    what: str
    items: frozenset[tuple[str, str]] = frozenset()
    keys: frozenset[str] = frozenset()
    store: Store | None = None
    split: str | None = None

    @classmethod
    def of_store(cls, what: str, store: Store, split: str | None) -> "TrainingRecord":
        """All items of a store, or of one of its splits."""
        table = store.items(split)
        sources, ids, keys = (table[name].to_pylist() for name in ("source", "id", "key"))
        items = frozenset(zip(sources, ids, strict=True))
        return cls(what=what, items=items, keys=frozenset(keys), store=store, split=split)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakReport:
    """What gallery and training sets share; counts are of images in the gallery.

    Attributes:
        trained_on: what was compared with; empty when nothing is known.
        unknown: what could not be compared, and why.
        shared_ids: images whose id is in a training set.
        shared_contents: images whose bytes are.
        near_duplicates: other images that are a training image resized, cropped a little, encoded
            again or brightened, by their pixels.
        near: cosine of features from which it is so where pixels cannot be read.
        examples: a few of them all, as `reason: id`.
    """

    trained_on: tuple[str, ...]
    unknown: tuple[str, ...]
    shared_ids: int = 0
    shared_contents: int = 0
    near_duplicates: int = 0
    near: float = NEAR
    examples: tuple[str, ...] = field(default=())

    @property
    def found(self) -> int:
        """Images of the gallery that the training saw or nearly saw, each reason counted."""
        return self.shared_ids + self.shared_contents + self.near_duplicates

    def to_json(self) -> dict[str, Json]:
        """As JSON values; counts are null where nothing is known."""
        known = bool(self.trained_on)
        return {
            "trained_on": list(self.trained_on),
            "not_compared": list(self.unknown),
            "shared_ids": self.shared_ids if known else None,
            "shared_contents": self.shared_contents if known else None,
            "near_duplicates": self.near_duplicates if known else None,
            "near_duplicate_cosine": self.near,
            "examples": list(self.examples),
        }


def known_training_records(
    gallery: Gallery, named: Sequence[Path] = ()
) -> tuple[list[TrainingRecord], list[str]]:
    """What is known of the training: named records, the checkpoint's own, the store's train split.

    Args:
        gallery: what will be evaluated.
        named: records that the user names; see `read_training_record`.

    Returns:
        The training sets, and for what is not known a line each.
    """
    store, unknown, sources = gallery.store, [], set(shared_strings(gallery.sources).tolist())
    found = [read_training_record(path, sources) for path in named]
    checkpoint = store.spec.checkpoint
    folder = shipped().get(checkpoint, Path(checkpoint))
    if (folder / RECORD).is_file():
        try:
            found.append(read_training_record(folder, sources))
        except EvaluationError as error:
            unknown.append(error.message)
    elif not named:
        unknown.append(f"{checkpoint} says nothing of what it was trained on")
    if gallery.split not in (None, "train") and "train" in _splits(store):
        found.append(TrainingRecord.of_store("split train of this store", store, "train"))
    return found, unknown


def read_training_record(path: Path, sources: Collection[str]) -> TrainingRecord:
    """Read from a record what a model was trained on.

    Args:
        sources: names of the gallery's sources; another source's items are not listed, for none
            of them can be in the gallery by id.
        path: a store; a directory with `training.json`; or a JSON file: a list of item ids, or an
            object with any of `ids`, `keys` (sha256 of image bytes), `source` and `split`.

    Raises:
        EvaluationError: it is none of these, or names no item.
    """
    if (path / "store.json").is_file():
        store = open_store(path)
        split = "train" if "train" in _splits(store) else None
        what = f"store {path}" + (f", split {split}" if split else "")
        return TrainingRecord.of_store(what, store, split)
    file = path / RECORD if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(f"{file} is no JSON: {error}") from error
    if isinstance(record, list):
        record = {"ids": record}
    return _from_record(file, record, sources)


def of_head(saved: "SavedHead", gallery: Gallery) -> tuple[TrainingRecord, list[str]]:
    """What a head was trained on, and a remark where images of the gallery selected its weights."""
    seen = saved.trained_on()
    columns = zip(seen.sources, seen.ids, seen.keys, seen.roles, strict=True)
    trained = [(source, name, key) for source, name, key, role in columns if role == "train"]
    record = TrainingRecord(
        what=f"head {saved.path}",
        items=frozenset((source, name) for source, name, _ in trained),
        keys=frozenset(key for *_, key in trained),
    )
    chose = seen.seen(gallery.sources, gallery.ids, gallery.keys).count("val")
    remark = f"{chose:,} images selected the best weights of head {saved.path}, which flatters them"
    return record, [remark] if chose else []


def find_leaks(
    gallery: Gallery,
    training: Sequence[TrainingRecord],
    *,
    unknown: Sequence[str] = (),
    near: float = NEAR,
) -> LeakReport:
    """Compare a gallery with training sets.

    Args:
        gallery: what is evaluated.
        training: what is known of the training.
        unknown: remarks to pass on.
        near: cosine from which two images count as nearly one where pixels cannot be read.
    """
    by_id, by_key, nearly = (np.zeros(len(gallery), bool) for _ in range(3))
    remarks = list(unknown)
    for known in training:
        ids = zip(gallery.sources, gallery.ids, strict=True)
        by_id |= [pair in known.items or ("", pair[1]) in known.items for pair in ids]
        by_key |= [key in known.keys for key in gallery.keys]
        if known.store is None:
            continue
        if feature := _comparable(gallery.store, known.store):
            trained = StoredPictures.of(known.store.gallery(known.split))
            nearly |= crossing(StoredPictures.of(gallery), trained, feature, alone=near).near
        else:
            remarks.append(f"no near-duplicates looked for in {known.what}: another encoder's")
    nearly &= ~(by_id | by_key)
    examples = [
        f"{reason}: {gallery.ids[i]}"
        for reason, where in (("id", by_id), ("content", by_key), ("near", nearly))
        for i in np.flatnonzero(where)[:_EXAMPLES]
    ]
    return LeakReport(
        trained_on=tuple(known.what for known in training),
        unknown=tuple(remarks),
        shared_ids=int(by_id.sum()),
        shared_contents=int(by_key.sum()),
        near_duplicates=int(nearly.sum()),
        near=near,
        examples=tuple(examples),
    )


def _from_record(file: Path, record: dict[str, Any], sources: Collection[str]) -> TrainingRecord:
    config = record.get("config")
    settings = record | config if isinstance(config, dict) else record
    items = {("", str(i)) for i in settings.get("ids", ())}
    keys = frozenset(map(str, settings.get("keys", ())))
    what = f"{file.parent.name}/{file.name}"
    if spec := str(settings.get("source") or ""):
        what += f": {spec}"
    if spec and not items:
        items = _source_items(file, spec, settings.get("split"), sources)
    elif not items and not keys:
        raise EvaluationError(
            f"{file} names no training item", hint="it needs 'ids', 'keys' or 'source'"
        )
    return TrainingRecord(what=what, items=frozenset(items), keys=keys)


def _source_items(
    file: Path, spec: str, split: object, sources: Collection[str]
) -> set[tuple[str, str]]:
    """(source, id) of what a training on a source saw; no image is read."""
    try:
        with only_named():  # a record comes with a model, and may be a stranger's
            source = open_source(spec)
            if source.name not in sources:
                return set()
            splits = (split,) if split else _TRAINED_SPLITS
            return {(source.name, item.id) for item in source.items() if item.split in splits}
    except (SourceError, UsageError) as error:
        raise EvaluationError(
            f"{file} says the training read {spec}, which cannot be listed: {error.message}"
        ) from error


def _splits(store: Store) -> set[str]:
    return set(store.items()["split"].unique().to_pylist())


def _comparable(ours: Store, theirs: Store) -> str:
    """A feature of images that both stores hold under one fingerprint; empty when there is none."""
    here, there = ours.features(Modality.IMAGES), theirs.features(Modality.IMAGES)
    for name in ("pooled", "itc"):
        if name in here and name in there and here[name].fingerprint == there[name].fingerprint:
            return name
    return ""
