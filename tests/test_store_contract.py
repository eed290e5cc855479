"""However a store came to be and to be opened, it answers alike."""

import pickle
from pathlib import Path

from retrieval_engine.records import Feature, Modality
from retrieval_engine.store import Store, StoreWriter, open_store, repair_store
from retrieval_engine.testing.store_contract import StoreContract
from retrieval_engine.testing.store_data import (
    CAPTION_FEATURES,
    FEATURES,
    IMAGE_FEATURES,
    RETRAINED,
    RETRAINED_CAPTION_FEATURES,
    SOURCE,
    SPEC,
    DrawnImages,
    add,
    pictures,
    write,
)

Features = dict[Modality, tuple[Feature, ...]]


class TestOnePart(StoreContract):
    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        write(path, content.items)
        return open_store(path)


class TestManyParts(StoreContract):
    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        write(path, content.items, part_items=4)
        return open_store(str(path))


class TestPickled(StoreContract):
    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        write(path, content.items, part_items=9)
        store = open_store(path)
        store.gallery()
        copy: Store = pickle.loads(pickle.dumps(store))
        return copy


class TestOpenedBeforeMoreWasWritten(StoreContract):
    """What a reader saw at opening is what it, and its copies, go on seeing."""

    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        write(path, content.items)
        store = open_store(path)
        with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
            add(writer, pictures(5, start=100).items)
            writer.remove(SOURCE, [content.items[0].id])
            copy: Store = pickle.loads(pickle.dumps(store))
            return copy


class TestRowsWrittenTwice(StoreContract):
    """Later rows of a key win, and the first ones hold its place."""

    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
            add(writer, content.items[:15], version=7)
            add(writer, content.items[10:], version=8)
            add(writer, content.items[::-1])
        return open_store(path)


class TestFeaturesGainedOneByOne(StoreContract):
    """Features of a key lie in different shards."""

    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        sides: tuple[Features, Features] = (
            {Modality.IMAGES: IMAGE_FEATURES[:1], Modality.CAPTIONS: CAPTION_FEATURES[1:]},
            {Modality.IMAGES: IMAGE_FEATURES[1:], Modality.CAPTIONS: CAPTION_FEATURES[:1]},
        )
        for features, items in zip(sides, (content.items, content.items[::-1]), strict=True):
            with StoreWriter.open(path, spec=SPEC, features=features) as writer:
                assert not any(writer.unchanged(item, SOURCE) for item in content.items)
                add(writer, items)
        return open_store(path)

    def test_says_which_encoder_and_features(self, store: Store) -> None:
        images = store.features(Modality.IMAGES)
        assert images == {f.name: f for f in IMAGE_FEATURES}
        assert set(store.features(Modality.CAPTIONS).values()) == set(CAPTION_FEATURES)


class TestHandedBackByAnotherEncoder(StoreContract):
    """Rows of the encoder in between are stale again."""

    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        write(path, content.items)
        between = {**FEATURES, Modality.CAPTIONS: RETRAINED_CAPTION_FEATURES}
        with StoreWriter.open(path, spec=RETRAINED, features=between, adopt_spec=True) as writer:
            for item in content.items:  # only captions are to be encoded again
                assert writer.unchanged(item, SOURCE) == (not item.captions)
            assert writer.present(Modality.IMAGES, content.keys).all()
            add(writer, content.items[::2])
        with StoreWriter.open(path, spec=SPEC, features=FEATURES, adopt_spec=True):
            pass
        return open_store(path)


class TestRepaired(StoreContract):
    """A damaged shard is dropped and its rows are made again."""

    @classmethod
    def reader(cls, path: Path, content: DrawnImages) -> Store:
        write(path, content.items, part_items=8)
        shard = path / "shards" / "images-00001.h5"
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        assert len(repair_store(path).problems) == 1
        with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
            lost = [item for item in content.items if not writer.unchanged(item, SOURCE)]
            assert lost == list(content.items[8:16])
            add(writer, lost)
        return open_store(path)
