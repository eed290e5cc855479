"""What is gathered from a gallery in arrays equals what a loop over its items gathers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Strings, open_store
from retrieval_engine.store.gallery import shared_strings, some_of
from retrieval_engine.testing.store_data import pictures, write
from retrieval_engine.train.head.pairs import caption_table


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """Forty items in two tables; some have the image of another, and its captions too."""
    items = list(pictures(40).items)
    items[7] = replace(items[7], uri=items[3].uri)
    items[31] = replace(items[31], uri=items[3].uri, captions=items[2].captions)
    write(tmp_path / "s", items, part_items=25)
    return open_store(tmp_path / "s").gallery()


def test_some_items_are_what_a_loop_takes(gallery: Gallery) -> None:
    kept = np.array([1, 3, 7, 30, 31])
    some = gallery.only(kept)
    assert isinstance(some.splits, Strings)
    for name in ("ids", "uris", "sources", "splits", "keys"):
        assert list(getattr(some, name)) == [getattr(gallery, name)[i] for i in kept]
    own = [j for i in kept for j in gallery.captions_of(int(i))]
    assert list(some.caption_texts) == [gallery.caption_texts[j] for j in own]
    assert list(some.caption_ids) == [gallery.caption_ids[j] for j in own]
    assert [some.meta(i) for i in range(5)] == [gallery.meta(int(i)) for i in kept]
    again = some.only(np.array([0, 4]))
    assert list(again.ids) == [gallery.ids[1], gallery.ids[31]]
    assert list(gallery.only(kept[:0]).caption_ids) == []


def test_strings_and_lists_are_taken_and_shared_alike(gallery: Gallery) -> None:
    places = np.array([9, 2, 2, 39])
    for column in (gallery.ids, gallery.splits):
        assert list(column) == [column[i] for i in range(len(column))]
        for values in (column, list(column)):
            assert list(some_of(values, places)) == [column[int(i)] for i in places]
            assert shared_strings(values).tolist() == list(column)
    assert len({id(split) for split in shared_strings(gallery.splits)}) == 3


@pytest.mark.parametrize("first_only", [False, True])
def test_captions_of_equal_images_are_together_each_once(
    gallery: Gallery, first_only: bool
) -> None:
    captioned = np.unique(gallery.image_rows[gallery.caption_image])
    rows = np.random.default_rng(0).permutation(captioned)[:17]
    rows = np.union1d(rows, gallery.image_rows[3:4])[::-1]
    expected = []
    for row in rows:
        mine: list[int] = []
        for image in np.flatnonzero(gallery.image_rows == row):
            new = gallery.caption_rows[list(gallery.captions_of(int(image)))].tolist()
            mine += [caption for caption in new if caption not in mine]
        expected.append(mine[:1] if first_only else mine)
    found = caption_table(gallery, rows, first_only=first_only)
    assert [[c for c in row if c != -2] for row in found.tolist()] == expected
    assert found.shape[1] == max(map(len, expected)) == (1 if first_only else 6)


def test_a_caption_without_features_stays_one(gallery: Gallery) -> None:
    rows = gallery.caption_rows.copy()
    rows[0] = -1
    row = gallery.image_rows[gallery.caption_image[:1]]
    found = caption_table(replace(gallery, caption_rows=rows), row)
    assert found[0, 0] == -1
    assert gallery.store.count(Modality.CAPTIONS) > 0
