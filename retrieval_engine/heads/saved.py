"""A head on disk: weights, what they were trained on, and the encoder they belong to.

head.json             form, fingerprints, training record, metrics
head.safetensors      weights
trained_on.parquet    source, id and key of every image of the training and validation sets
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load, save

from retrieval_engine.durable import replacing_file
from retrieval_engine.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    FingerprintMismatch,
    HubFailure,
)
from retrieval_engine.fingerprint import digest
from retrieval_engine.heads.head import Head
from retrieval_engine.heads.projection import HeadConfig
from retrieval_engine.network import from_hub, hub_id
from retrieval_engine.records import Feature, Json, Modality
from retrieval_engine.strict_json import loads

RECORD = "head.json"
WEIGHTS = "head.safetensors"
ITEMS = "trained_on.parquet"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """The images a head has seen, column by column.

    Attributes:
        sources: names of their sources.
        ids: their ids there.
        keys: sha256 of their bytes.
        roles: `train`, or `val` for those that only chose the best weights.
    """

    sources: Sequence[str] = ()
    ids: Sequence[str] = ()
    keys: Sequence[str] = ()
    roles: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """sha256 over the sorted (source, id, role), 64 hex digits."""
        rows = sorted(zip(self.sources, self.ids, self.roles, strict=True))
        return digest([list(row) for row in rows])

    def seen(self, sources: Sequence[str], ids: Sequence[str], keys: Sequence[str]) -> list[str]:
        """For each image its role here, or an empty string.

        An image is known again by its bytes, or by its id within the same source.
        """
        by_key = dict(zip(self.keys, self.roles, strict=True))
        by_id = dict(zip(zip(self.sources, self.ids, strict=True), self.roles, strict=True))
        return [
            by_key.get(key) or by_id.get((source, item_id), "")
            for source, item_id, key in zip(sources, ids, keys, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedHead:
    """A head with what must be known to use it rightly.

    Attributes:
        path: its directory.
        head: the module, on the CPU, in evaluation mode.
        encoder: fingerprint of the encoder whose features it was trained on.
        checkpoint: what that encoder was called.
        inputs: fingerprint of the feature it reads, by modality.
        record: all else that `head.json` says.
        weights: sha256 of the weights' file; empty before the first `save_head`.
    """

    path: Path
    head: Head
    encoder: str
    checkpoint: str
    inputs: Mapping[Modality, str]
    record: Mapping[str, Json]
    weights: str = ""

    @property
    def config(self) -> HeadConfig:
        """Kind and sizes of the head."""
        return self.head.config

    @property
    def feature(self) -> str:
        """Name of the feature it emits; differs from head to head."""
        return f"head-{self.weights[:12]}"

    def emits(self, modality: Modality, vectors: int, dtype: str) -> Feature:
        """Shape, dtype and fingerprint of the feature that the head emits.

        Args:
            modality: which side.
            vectors: number of vectors of the input.
            dtype: what it is kept in.
        """
        return Feature(
            name=self.feature,
            shape=(vectors, self.config.dim),
            dtype=dtype,
            fingerprint=digest({"weights": self.weights, "input": self.inputs[modality]}),
        )

    def check(self, features: Mapping[Modality, Mapping[str, Feature]], encoder: str) -> None:
        """Refuse features that another encoder made.

        Only the two features that the head reads count: an adapter that leaves them as they are
        leaves the head in force.

        Args:
            features: what a store or an encoder has, by modality and name.
            encoder: its fingerprint, for the message.

        Raises:
            FingerprintMismatch: the features are not those the head was trained on.
        """
        name = self.config.feature
        for modality in Modality:
            form = features[modality].get(name)
            if form is not None and form.fingerprint != self.inputs[modality]:
                raise FingerprintMismatch(
                    f"head {self.path} (of {self.checkpoint})",
                    seen=self.encoder,
                    expected=encoder,
                    hint="train a head for this store: `train_head(store=STORE, out=DIR)`",
                )

    def trained_on(self) -> TrainedOn:
        """The images that the head was trained on or selected with.

        Raises:
            CheckpointInvalid: the list is damaged.
        """
        path = self.path / ITEMS
        try:
            columns = pq.read_table(path).to_pydict()
        except (OSError, pa.ArrowException) as error:
            raise CheckpointInvalid(f"cannot read {path}: {error}") from error
        return TrainedOn(
            sources=columns["source"],
            ids=columns["id"],
            keys=columns["key"],
            roles=columns["role"],
        )


def save_head(saved: SavedHead, trained_on: TrainedOn) -> SavedHead:
    """Write a head; the directory is made when absent.

    Files are replaced one by one, the record last: its hash of the weights tells a half-replaced
    head.

    Returns:
        The head, with the hash of its weights filled in.
    """
    path = saved.path
    path.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in saved.head.state_dict().items()}
    weights = save(tensors)
    saved = replace(saved, weights=hashlib.sha256(weights).hexdigest())
    table = pa.table(
        {
            "source": list(trained_on.sources),
            "id": list(trained_on.ids),
            "key": list(trained_on.keys),
            "role": list(trained_on.roles),
        },
        schema=pa.schema([(name, pa.string()) for name in ("source", "id", "key", "role")]),
    )
    record: dict[str, Json] = {
        "format": _FORMAT,
        "config": saved.config.to_json(),
        "encoder": saved.encoder,
        "checkpoint": saved.checkpoint,
        "inputs": {str(m): fingerprint for m, fingerprint in saved.inputs.items()},
        "weights": saved.weights,
        "trained_on": {"images": len(trained_on), "sha256": trained_on.digest},
        **saved.record,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing_file(path / WEIGHTS) as file:
        file.write(weights)
    with replacing_file(path / ITEMS) as file:
        pq.write_table(table, file, compression="zstd")
    with replacing_file(path / RECORD) as file:
        file.write(text.encode())
    return saved


def load_head(path: str | Path) -> SavedHead:
    """A head, on the CPU.

    Args:
        path: its directory, or the hub id of one that was pushed.

    Raises:
        CheckpointNotFound: there is none.
        CheckpointInvalid: its files do not belong together or cannot be understood.
    """
    path, why = Path(path), f"{RECORD} is not there"
    if name := hub_id(path):
        try:
            path = from_hub("head", name, (RECORD, WEIGHTS, ITEMS))
        except HubFailure as error:
            why = error.message
    if not (path / RECORD).is_file():
        raise CheckpointNotFound(
            f"no head at {name or path}: {why}",
            hint="train one with `train_head(out=DIR)`",
        )
    try:
        record = loads((path / RECORD).read_bytes())
        if record["format"] != _FORMAT:
            raise CheckpointInvalid(f"{path} has format {record['format']}, known is {_FORMAT}")
        weights = (path / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != record["weights"]:
            raise CheckpointInvalid(f"{path / WEIGHTS} is not the file that {RECORD} describes")
        head = Head(HeadConfig.from_json(record["config"]))
        head.load_state_dict(load(weights))
        named = ("format", "config", "encoder", "checkpoint", "inputs", "weights")
        return SavedHead(
            path=path,
            head=head.eval(),
            encoder=record["encoder"],
            checkpoint=record["checkpoint"],
            inputs={m: record["inputs"][m] for m in Modality},
            weights=record["weights"],
            record={name: value for name, value in record.items() if name not in named},
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"the head at {path} cannot be read: {_line(error)}", hint="train it again"
        ) from error


def _line(error: Exception) -> str:
    text: Any = str(error)
    return " ".join(text.split())[:300] or type(error).__name__
