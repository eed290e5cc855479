"""What can be compared: heads, the encoder's own ITC, other stores, and saved figures."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import EvaluationError
from retrieval_engine.heads import load_head
from retrieval_engine.records import Json
from retrieval_engine.store import Store, open_store
from retrieval_engine.train.runlog import read_log

ITC = "itc"
_LOG = "log.jsonl"
_FIGURES = "metrics.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run to compare: a head, the encoder's own ITC, a store, or saved figures.

    Attributes:
        name: for tables and plots.
        kind: `linear`, `mlp`, `untrained`, `itc`, or `figures`.
        note: a few words about it.
        store: what its vectors are read from; None for figures alone.
        figures: what a certificate or a file of figures said; None where it is computed.
        log: epochs of its training.
    """

    name: str
    kind: str
    note: str = ""
    store: Store | None = None
    figures: Mapping[str, Any] | None = None
    log: Sequence[Mapping[str, Any]] = ()


def open_runs(names: Sequence[str], store: Path) -> list[ComparedRun]:
    """Open the runs that are to be compared, by name.

    Args:
        names: each a directory of a head, a store, a JSON file or a directory of figures, or the
            word `itc`; `NAME=` before it gives another name.
        store: the store that heads read and that `itc` is of.

    Raises:
        EvaluationError: a name is none of these, or two runs have one name.
        StoreNotFound, FingerprintMismatch: as for a store and its heads.
    """
    runs = [_open(name, store) for name in names]
    named = [run.name for run in runs]
    if twice := {name for name in named if named.count(name) > 1}:
        raise EvaluationError(
            f"several runs are called {sorted(twice)[0]!r}", hint="name them: NAME=PATH"
        )
    return runs


def _open(text: str, store: Path) -> ComparedRun:
    given, _, place = text.rpartition("=")
    path = Path(os.path.expanduser(place))
    if place == ITC:
        return ComparedRun(
            name=given or "ITC", kind=ITC, note="as encoded", store=open_store(store)
        )
    name = given or path.stem
    if (path / "head.json").is_file():
        return _head(name, path, store)
    if (path / "store.json").is_file():
        return ComparedRun(name=name, kind=ITC, note="as encoded", store=open_store(path))
    file = path / _FIGURES if path.is_dir() else path
    if file.is_file():
        return ComparedRun(
            name=name, kind="figures", note=str(file), figures=_figures(file), log=_log(path)
        )
    raise EvaluationError(
        f"{place} is no head, no store and no file of figures",
        hint="runs are directories from `train_head()`, stores, certificates of `evaluate_store()`, "
        "or the word itc",
    )


def _head(name: str, path: Path, store: Path) -> ComparedRun:
    saved = load_head(path)
    config, record = saved.config, saved.record
    untrained = bool(record.get("untrained"))
    recipe = record.get("recipe")
    note = f"{config.feature} to {config.dim} dimensions"
    if isinstance(recipe, dict):
        train = record.get("train")
        images = train.get("images") if isinstance(train, dict) else None
        note += f", {images:,} images, {recipe.get('captions')} captions"
    return ComparedRun(
        name=name,
        kind="untrained" if untrained else config.kind.value,
        note=note,
        store=ProjectedStore(open_store(store), saved),
        log=_log(path),
    )


def _log(path: Path) -> list[Mapping[str, Any]]:
    lines = read_log(path / _LOG) if (path / _LOG).is_file() else []
    return [line for line in lines if "epoch" in line and "mean_recall" in line]


def _figures(file: Path) -> dict[str, Json]:
    """Both directions of a certificate or of an evaluation as JSON."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if "results" in value:
            value = value["data"] | next(iter(value["results"].values()))
        figures: dict[str, Json] = {
            name: value[name]
            for name in ("image_to_text", "text_to_image", "mean_recall", "n_images", "n_captions")
        }
        return figures | {"interval": value.get("interval")}
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise EvaluationError(
            f"{file} holds no figures of recall: {error}",
            hint="certificates of `evaluate_store()` hold them",
        ) from error
