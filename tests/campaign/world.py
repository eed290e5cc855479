"""A small world to do harm to: a model, pictures, and one of everything made of them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_engine.records import Modality
from retrieval_engine.store import Store, open_store
from retrieval_engine.testing.images import jpeg
from tests import tiny
from tests.children import in_child, vlre
from tests.test_caption_decoding import save_both

PICTURES = 24
QUERY = "a dog on grass"


@dataclass(frozen=True, slots=True)
class World:
    """Paths of what there is; trials work on copies."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def head(self) -> Path:
        return self.root / "head"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    def commands(self, out: Path) -> dict[str, Callable[[], None]]:
        """Every command that writes, writing below `out`; rerun, each goes on or begins anew."""
        store = out / "store"
        model, tuned = ("--model", self.model), ("--store", self.store, "--model", self.model)
        return {
            "encode": vlre("encode", self.pictures, *model, "--store", store, "--shard-rows", 5,
                           "--features", "itc,pooled,tokens"),
            "index": vlre("index", "--store", self.store, "--index", out / "index"),
            "train-head": vlre("train-head", "--store", self.store, "--out", out / "head",
                               "--epochs", 2),
            "finetune": vlre("finetune", "retrieval", *tuned, "--out", out / "tuned",
                             "--lora", "r=2", "--max-steps", 4, "--batch-size", 4,
                             "--eval-every", 2, "--no-itm"),
            "caption": vlre("caption", self.pictures, *model, "--beams", 1, "--batch-size", 4,
                            "--out", out / "captions.jsonl"),
            "compact": vlre("store", "compact", "--store", store),
            "search --html": vlre("search", QUERY, "--store", self.store, "--quiet",
                                  "--html", out / "page.html"),
        }  # fmt: skip


def make_world(root: Path, *, with_head: bool) -> World:
    """Make one of everything; training a head takes most of the time."""
    _import_all()
    world = World(root)
    retrieval = tiny.save_blip(root / "retrieval")
    save_both(world.model, retrieval, tiny.save_blip_captioner(root / "writer", seed=2))
    world.pictures.mkdir()
    for i in range(PICTURES):
        (world.pictures / f"{i:02}.jpg").write_bytes(jpeg(i))
        (world.pictures / f"{i:02}.txt").write_text(f"a dog {i}\na cat on grass {i}\n")
    (world.pictures / "bad.jpg").write_bytes(jpeg(1)[:40])
    commands = world.commands(root)
    for name in ("encode", "index", *(["train-head"] if with_head else [])):
        ended = in_child(commands[name])
        assert ended.code in (0, 3), ended.output
    return world


def _import_all() -> None:
    """What every child would import for itself: they are forked, and have it so."""
    import faiss  # noqa: F401
    import pyarrow as pa
    import rich.progress  # noqa: F401
    from PIL import Image

    import retrieval_engine.encoding
    import retrieval_engine.engine
    import retrieval_engine.evaluate  # noqa: F401

    pa.array([0])  # imports pandas where there is one
    Image.init()


def worn_copy(world: World, to: Path) -> None:
    """The store with rows that a compaction drops."""
    shutil.copytree(world.store, to)
    for arguments in (("forget", world.pictures),):
        assert in_child(vlre("store", *arguments, "--store", to)).code == 0
    encode = vlre("encode", world.pictures, "--model", world.model, "--store", to,
                  "--features", "itc,pooled,tokens")  # fmt: skip
    assert in_child(encode).code == 3


def contents(store: Store) -> dict[str, Any]:
    """All that readers see, by item: whatever the order and the files."""
    assert store.verify() == []
    gallery = store.gallery()
    values = {name: gallery.images(name, np.float32) for name in store.features(Modality.IMAGES)}
    found: dict[str, Any] = {}
    for i in range(len(gallery)):
        captions = [gallery.caption_texts[j] for j in gallery.captions_of(i)]
        vectors = {name: rows[i].tobytes() for name, rows in values.items()}
        found[gallery.ids[i]] = (captions, gallery.uris[i], vectors)
    return found


def contents_of(path: Path) -> dict[str, Any]:
    """The contents of the store at a path."""
    return contents(open_store(path))
