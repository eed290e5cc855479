"""What every way of coming by a store must answer alike."""

import os
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.errors import FeatureMissing, FingerprintMismatch, StoreError, UsageError
from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Store
from retrieval_engine.testing.store_data import (
    CAPTION_FEATURES,
    IMAGE_FEATURES,
    SOURCE,
    SPEC,
    DrawnImages,
    key_of,
    pictures,
    rows,
)

COUNT = 23


class StoreContract(ABC):
    """A subclass says how the store of `pictures(COUNT)` was made and opened."""

    @classmethod
    @abstractmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        """Make the store in an empty folder and open it."""

    @pytest.fixture(scope="class")
    @classmethod
    def content(cls) -> DrawnImages:
        return pictures(COUNT)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory, content: DrawnImages) -> Store:
        return cls.reader(tmp_path_factory.mktemp("contract") / "store", content)

    def test_says_which_encoder_and_features(self, store: Store) -> None:
        assert store.spec == SPEC
        assert store.fingerprint == SPEC.fingerprint
        assert store.features(Modality.IMAGES) == {f.name: f for f in IMAGE_FEATURES}
        assert store.features(Modality.CAPTIONS) == {f.name: f for f in CAPTION_FEATURES}

    def test_gives_every_row_as_it_was_written(self, store: Store, content: DrawnImages) -> None:
        sides = {
            Modality.IMAGES: (IMAGE_FEATURES, content.keys),
            Modality.CAPTIONS: (CAPTION_FEATURES, [c.key for c in content.captions]),
        }
        for modality, (features, keys) in sides.items():
            found = store.rows(modality, keys)
            assert (found >= 0).all()
            expected = rows(features, keys)
            for feature in features:
                read = store.read(modality, feature.name, found)
                assert read.dtype == feature.dtype
                np.testing.assert_array_equal(read, expected[feature.name])

    def test_gathers_in_the_order_asked(self, store: Store, content: DrawnImages) -> None:
        expected = rows(IMAGE_FEATURES, content.keys)["itc"]
        order = np.random.default_rng(0).integers(0, COUNT, 100)
        found = store.rows(Modality.IMAGES, [content.keys[i] for i in order])
        np.testing.assert_array_equal(store.read(Modality.IMAGES, "itc", found), expected[order])
        assert store.read(Modality.IMAGES, "itc", found[:0]).shape == (0, 2, 8)

    def test_a_slice_is_the_rows_it_names(self, store: Store) -> None:
        count = store.count(Modality.IMAGES)
        assert count == COUNT
        for part in (slice(None), slice(3, 17), slice(None, None, -1), slice(2, None, 5)):
            np.testing.assert_array_equal(
                store.read(Modality.IMAGES, "pooled", part),
                store.read(Modality.IMAGES, "pooled", np.arange(count)[part]),
            )

    def test_unknown_keys_have_no_row(self, store: Store, content: DrawnImages) -> None:
        asked = ["0" * 64, content.keys[4], "f" * 64]
        assert (store.rows(Modality.IMAGES, asked) >= 0).tolist() == [False, True, False]
        as_array = np.array([key.encode() for key in asked])
        np.testing.assert_array_equal(
            store.rows(Modality.IMAGES, as_array), store.rows(Modality.IMAGES, asked)
        )

    @pytest.mark.parametrize("row", [-1, 10**6])
    def test_refuses_rows_that_do_not_exist(self, store: Store, row: int) -> None:
        with pytest.raises(StoreError, match="rows"):
            store.read(Modality.IMAGES, "itc", np.array([0, row]))

    def test_refuses_features_it_does_not_have(self, store: Store) -> None:
        with pytest.raises(FeatureMissing, match="no tokens of images; it has: itc, pooled"):
            store.read(Modality.IMAGES, "tokens", slice(None))

    def test_items_are_live_and_in_order(self, store: Store, content: DrawnImages) -> None:
        table = store.items().to_pylist()
        assert [row["id"] for row in table] == [item.id for item in content.items]
        for row, item in zip(table, content.items, strict=True):
            assert row == {
                "source": SOURCE,
                "id": item.id,
                "uri": item.uri,
                "key": key_of(item),
                "size_bytes": item.size_bytes,
                "mtime_ns": item.mtime_ns,
                "split": item.split,
                "captions": [{"id": c.id, "text": c.text, "key": c.key} for c in item.captions],
                "meta": f'{{"number": {item.meta["number"]}}}',
                "folder": item.folder,
                **asdict(item.facts),
            }

    @pytest.mark.parametrize("split", [None, "train", "val", "test"])
    def test_gallery_joins_items_and_features(
        self, store: Store, content: DrawnImages, split: str | None
    ) -> None:
        chosen = [item for item in content.items if split in (None, item.split)]
        gallery = store.gallery(split)
        assert len(gallery) == len(chosen)
        assert gallery.left_out == 0
        assert gallery.ids == [item.id for item in chosen]
        assert gallery.uris == [item.uri for item in chosen]
        assert gallery.sources == [SOURCE] * len(chosen)
        assert gallery.splits == [item.split for item in chosen]
        assert [gallery.meta(i) for i in range(len(chosen))] == [item.meta for item in chosen]
        _check_captions(gallery, DrawnImages(items=tuple(chosen)))
        images = rows(IMAGE_FEATURES, [key_of(item) for item in chosen])
        np.testing.assert_array_equal(gallery.images("itc"), images["itc"].astype(np.float32))
        blocks = dict(gallery.image_blocks("pooled", 4))
        assert list(blocks) == list(range(0, len(chosen), 4))
        np.testing.assert_array_equal(np.concatenate(list(blocks.values())), images["pooled"])

    def test_unknown_split_lists_those_there_are(self, store: Store) -> None:
        with pytest.raises(UsageError, match=r"'dev'.*train \(8\), val \(8\), test \(7\)"):
            store.gallery("dev")

    def test_refuses_a_foreign_fingerprint(self, store: Store) -> None:
        store.check_fingerprint("index here", SPEC.fingerprint)
        with pytest.raises(FingerprintMismatch, match=f"index here .* {'9' * 12}"):
            store.check_fingerprint("index here", "9" * 64)

    def test_is_whole(self, store: Store) -> None:
        assert store.verify() == []

    def test_a_forked_child_reads_the_same(self, store: Store) -> None:
        before = store.read(Modality.IMAGES, "itc", slice(None))
        child = os.fork()
        if not child:
            same = np.array_equal(before, store.read(Modality.IMAGES, "itc", slice(None)))
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(before, store.read(Modality.IMAGES, "itc", slice(None)))


def _check_captions(gallery: Gallery, content: DrawnImages) -> None:
    owners = [i for i, item in enumerate(content.items) for _ in item.captions]
    assert gallery.caption_image.tolist() == owners
    assert gallery.caption_ids == [caption.id for caption in content.captions]
    assert gallery.caption_texts == [caption.text for caption in content.captions]
    for i, item in enumerate(content.items):
        texts = [gallery.caption_texts[j] for j in gallery.captions_of(i)]
        assert texts == [caption.text for caption in item.captions]
    expected = rows(CAPTION_FEATURES, [caption.key for caption in content.captions])
    np.testing.assert_array_equal(gallery.captions("token_ids", np.int32), expected["token_ids"])
    blocks = [block for _, block in gallery.caption_blocks("itc", 5)]
    np.testing.assert_array_equal(np.concatenate(blocks), expected["itc"])
