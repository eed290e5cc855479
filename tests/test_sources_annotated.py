"""The sources that have an annotation and a folder of images, and how large JSON is read."""

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.sources import open_source
from retrieval_engine.sources.json_stream import elements, is_list
from retrieval_engine.testing.source_contract import Expected, Fixture, SourceContract, five_items

DATA = Path(__file__).parents[1] / "../shared/data"


def write_images(folder: Path, items: Mapping[str, Expected], place: str = "") -> None:
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name, item in items.items():
        (folder / place / name).write_bytes(item.data)


def karpathy(items: Mapping[str, Expected], folder: str = "") -> dict[str, Any]:
    """The form of dataset_*.json; `restval` for every other training image."""
    images = []
    for number, (name, item) in enumerate(items.items()):
        split = "restval" if item.split == "train" and number % 2 else item.split
        sentences = [
            {"raw": text, "tokens": text.lower().split(), "imgid": number, "sentid": number * 5 + k}
            for k, text in enumerate(item.captions)
        ]
        images.append(
            {
                **({"filepath": folder} if folder else {}),
                "filename": name,
                "imgid": number,
                "split": split,
                "sentids": [s["sentid"] for s in sentences],
                "sentences": sentences,
            }
        )
    return {"images": images, "dataset": "made for a test"}


def coco(items: Mapping[str, Expected], year: str = "2017") -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, item) in enumerate(items.items(), 100):
        url = f"http://images.cocodataset.org/{item.split}{year}/{name}"
        images.append({"license": 4, "file_name": name, "coco_url": url, "id": number})
        annotations += [
            {"image_id": number, "id": number * 1000 + k, "caption": f"{text}\n"}
            for k, text in enumerate(item.captions)
        ]
    annotations.sort(key=lambda a: a["id"] % 1000)  # those of an image are far from each other
    return {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}


def coco_items() -> dict[str, Expected]:
    return five_items(*(f"{number:012}.jpg" for number in (139, 285, 632, 724, 776)))


class TestKarpathy(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
        write_images(folder, items, "images")
        (folder / "dataset_flickr8k.json").write_text(json.dumps(karpathy(items)))
        spec = f"karpathy:{folder}/dataset_flickr8k.json"
        return Fixture(spec=spec, items=items, options=f"images={folder}/images")


class TestKarpathyCocoInBlipsForm(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = {
            name: Expected(data=item.data, captions=item.captions, split="test")
            for name, item in five_items(
                *(f"COCO_val2014_{n:012}.jpg" for n in (42, 73, 74))
            ).items()
        }
        write_images(folder, items, "val2014")
        entries = [{"image": f"val2014/{n}", "caption": i.captions} for n, i in items.items()]
        (folder / "coco_karpathy_test.json").write_text(json.dumps(entries))
        return Fixture(spec=f"karpathy:{folder}/coco_karpathy_test.json", items=items)


class TestFlickr30k(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("36979.jpg", "65567.jpg", "81641.jpg", "134206.jpg", "145721.jpg")
        write_images(folder, items, "flickr30k-images")
        ordered = {}
        for split in ("train", "val", "test"):
            part = {name: item for name, item in items.items() if item.split == split}
            ordered.update(part)
            entries: list[dict[str, Any]] = []
            for name, item in part.items():
                image = f"flickr30k-images/{name}"
                if split == "train":  # one object for each caption, as BLIP has it
                    entries += [{"image": image, "caption": text} for text in item.captions]
                else:
                    entries.append({"image": image, "caption": list(item.captions)})
            (folder / f"flickr30k_{split}.json").write_text(json.dumps(entries))
        return Fixture(spec=f"flickr30k:{folder}", items=ordered)


class TestCoco(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = coco_items()
        write_images(folder, items, "val2017")
        (folder / "annotations").mkdir()
        path = folder / "annotations" / "captions_val2017.json"
        path.write_text(json.dumps(coco(items)))
        return Fixture(spec=f"coco:{path}", items=items, options=f"images={folder}/val2017")


class TestCocoGzipped(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = coco_items()
        for split in ("train", "val", "test"):
            part = {name: item for name, item in items.items() if item.split == split}
            write_images(folder, part, f"{split}2017")
        path = folder / "captions.json.gz"
        path.write_bytes(gzip.compress(json.dumps(coco(items)).encode()))
        return Fixture(spec=f"coco:{path}", items=items)


class TestCaptionsCsv(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
        write_images(folder, items, "photos/deep")
        with (folder / "pairs.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["caption", "image", "split"])
            for k in range(5):  # an image's captions are far from each other
                for name, item in items.items():
                    writer.writerow([item.captions[k], f"deep/{name}", item.split])
        deep = {
            f"deep/{name}": Expected(data=i.data, captions=i.captions, split=i.split)
            for name, i in items.items()
        }
        spec = f"captions:{folder}/pairs.csv"
        return Fixture(spec=spec, items=deep, options=f"images={folder}/photos")


def test_karpathy_keeps_all_captions_or_exactly_so_many(tmp_path: Path) -> None:
    items = {
        **five_items("1.jpg", "2.jpg", captions=6),
        "3.jpg": Expected(data=b"x", captions=("only one",), split="test"),
    }
    write_images(tmp_path, items)
    (tmp_path / "d.json").write_text(json.dumps(karpathy(items)))
    every: Any = open_source(f"karpathy:{tmp_path}/d.json")
    five: Any = open_source(f"karpathy:{tmp_path}/d.json?captions=5")

    assert [len(item.captions) for item in every.items()] == [6, 6, 1]
    assert every.notes == []
    assert [len(item.captions) for item in five.items()] == [5, 5, 1]
    assert five.notes == [
        "captions=5: 11 of 13 captions kept, the first 5 of each image; 1 images have fewer"
    ]
    assert five.name == every.name
    with pytest.raises(UsageError, match="captions=none is no whole number above 0"):
        open_source(f"karpathy:{tmp_path}/d.json?captions=none")


@pytest.mark.parametrize(
    "place",
    [
        "val2014/COCO_val2014_000000000042.jpg",
        "COCO_val2014_000000000042.jpg",
        "000000000042.jpg",
        "train2017/000000000042.jpg",
    ],
)
def test_karpathy_finds_coco_under_its_names_of_2014_and_2017(tmp_path: Path, place: str) -> None:
    (item,) = five_items("COCO_val2014_000000000042.jpg").values()
    path = tmp_path / "coco" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(item.data)
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps(karpathy({"COCO_val2014_000000000042.jpg": item}, "val2014")))

    (found,) = open_source(f"karpathy:{file}?images={tmp_path}/coco").items()

    assert found.uri == str(path)
    assert found.id == "COCO_val2014_000000000042.jpg"


def test_flickr30k_from_the_original_token_file_and_kaggles(tmp_path: Path) -> None:
    items = five_items("1.jpg", "2.jpg")
    for root in (tmp_path / "official", tmp_path / "kaggle"):
        write_images(root, items, "flickr30k_images")
    rows = [(name, k, text) for name, i in items.items() for k, text in enumerate(i.captions)]
    token = "".join(f"{name}#{k}\t{text}\n" for name, k, text in rows)
    (tmp_path / "official" / "results_20130124.token").write_text(token)
    bars = "".join(f"{name}| {k}| {text}\n" for name, k, text in rows)
    bars = "image_name| comment_number| comment\n" + bars.replace(" 4| ", " 4   ", 1)
    (tmp_path / "kaggle" / "flickr30k_images" / "results.csv").write_text(bars)

    for layout in ("official", "kaggle"):
        found = list(open_source(f"flickr30k:{tmp_path / layout}").items())
        assert [i.id for i in found] == ["1.jpg", "2.jpg"]
        assert [c.text for c in found[0].captions] == list(items["1.jpg"].captions)
        assert [c.id for c in found[1].captions] == [f"2.jpg#{k}" for k in range(5)]
        with pytest.raises(SourceError, match="no split lists"):
            open_source(f"flickr30k:{tmp_path / layout}?split=test")


def test_flickr30k_image_in_two_lists_is_refused_before_the_first_item(tmp_path: Path) -> None:
    items = five_items("1.jpg", "2.jpg")
    write_images(tmp_path, items, "images")
    for split in ("train", "test"):
        entries = [{"image": f"flickr30k-images/{name}", "caption": "x"} for name in items]
        (tmp_path / f"flickr30k_{split}.json").write_text(json.dumps(entries))

    with pytest.raises(SourceError, match=r"1\.jpg is in two splits: test and train"):
        next(iter(open_source(f"flickr30k:{tmp_path}").items()))


def test_listed_images_take_their_captions_from_the_list_alone(tmp_path: Path) -> None:
    items = five_items("1.jpg", "2.jpg")
    write_images(tmp_path, items, "images")
    (tmp_path / "flickr30k_test.json").write_text('[{"image": "1.jpg", "caption": ["A dog."]}]')
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tA dog .\n2.jpg#0\tA cat .\n")

    found = {i.id: i for i in open_source(f"flickr30k:{tmp_path}").items()}

    assert [c.text for c in found["1.jpg"].captions] == ["A dog."]
    assert (found["1.jpg"].split, found["2.jpg"].split) == ("test", "")


def test_coco_of_2014_tells_the_split_by_its_file_names(tmp_path: Path) -> None:
    items = five_items("COCO_train2014_000000000009.jpg", "COCO_val2014_000000000042.jpg")
    write_images(tmp_path, items)
    data = coco(items)
    for image in data["images"]:
        del image["coco_url"]
    (tmp_path / "c.json").write_text(json.dumps(data))

    found = list(open_source(f"coco:{tmp_path}/c.json").items())

    assert [item.split for item in found] == ["train", "val"]
    assert found[0].meta == {"image_id": 100}
    assert found[0].captions[0].id == "COCO_train2014_000000000009.jpg#100000"


@pytest.mark.parametrize(
    ("kind", "content", "complaint"),
    [
        ("karpathy", '{"images": [{"file": "1.jpg"}]}', "image 1 has no filename"),
        ("karpathy", '{"annotations": [1]}', "no list 'images'; found the keys annotations"),
        ("karpathy", '{"images": [{"filename": "1.jpg", ', "damaged or cut off at character"),
        ("karpathy", "[3]", "object 1: expected a JSON object"),
        ("coco", '{"images": [{"file_name": "1.jpg"}], "annotations": []}', "no id or file_name"),
        ("coco", '{"annotations": [{"bbox": [1]}], "images": []}', "no annotation has an image_id"),
        (
            "coco",
            '{"annotations": [{"image_id": 7, "id": 1, "caption": "x"}], "images": []}',
            "it lists no images",
        ),
        ("captions", '{"images": []}', "expected a list of objects"),
        ("captions", "[{]", "no JSON: damaged or cut off"),
    ],
)
def test_annotation_that_makes_no_sense_is_one_line(
    tmp_path: Path, kind: str, content: str, complaint: str
) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "a.json").write_text(content)

    with pytest.raises(SourceError, match=complaint) as caught:
        list(open_source(f"{kind}:{tmp_path}/a.json").items())
    assert "\n" not in caught.value.message


def test_missing_image_of_a_json_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    items = five_items("1.jpg", "2.jpg", "3.jpg")
    write_images(tmp_path, items)
    (tmp_path / "2.jpg").unlink()
    (tmp_path / "d.json").write_text(json.dumps(karpathy(items)))

    with pytest.raises(SourceError, match=r"1 of 3 images are not in .*: 2\.jpg$") as caught:
        list(open_source(f"karpathy:{tmp_path}/d.json").items())
    assert "`allow_missing`" in caught.value.hint
    assert len(list(open_source(f"karpathy:{tmp_path}/d.json?allow-missing").items())) == 2
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SourceError, match=r"none of 3 images is in .*elsewhere"):
        list(open_source(f"karpathy:{tmp_path}/d.json?images={tmp_path}/elsewhere").items())
    with pytest.raises(UsageError, match="allow_missing=maybe is neither true nor false"):
        open_source(f"karpathy:{tmp_path}/d.json?allow_missing=maybe")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(JSON, max_size=6), before=JSON, chunk=st.integers(1, 40))
def test_streamed_json_equals_json_load(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], before: Any, chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "streamed.json"
    with pytest.MonkeyPatch.context() as patch:  # chunks that end anywhere, even within a number
        patch.setattr("retrieval_engine.sources.json_stream._CHUNK", chunk)
        path.write_text(json.dumps(values, indent=1))
        assert is_list(path)
        assert list(elements(path)) == values
        path.write_text(json.dumps({"a": before, "b": [before], "c": values, "d": before}))
        assert not is_list(path)
        assert list(elements(path, "c")) == values


@pytest.mark.skipif(not (DATA / "coco").is_dir(), reason="the COCO part is not here")
def test_coco_part_loads() -> None:
    coco_data = DATA / "coco"
    options = f"images={coco_data / 'images'}"
    for name, count in (("val2017", 159), ("train2017", 80)):
        file = coco_data / f"captions_{name}.subset.json"
        items = list(open_source(f"coco:{file}?{options}").items())
        assert len(items) == count
        assert all(len(item.captions) >= 5 for item in items)
        assert {item.split for item in items} == {name.removesuffix("2017")}
    full: Any = open_source(f"coco:{coco_data}/captions_val2017.json.gz?{options}&allow_missing")
    assert (full.count(), len(full.missing)) == (159, 4841)


@pytest.mark.skipif(not (DATA / "coco").is_dir(), reason="the COCO part is not here")
def test_karpathy_test_captions_of_coco_load() -> None:
    file = DATA / "coco" / "karpathy_test_captions.json.gz"
    options = f"images={DATA / 'coco' / 'images'}&allow_missing&captions=5"
    source: Any = open_source(f"karpathy:{file}?{options}")
    items = list(source.items())

    assert len(items) + len(source.missing) == 5000
    assert {item.split for item in items} == {"test"}
    assert all(len(item.captions) == 5 for item in items)


@pytest.mark.skipif(not (DATA / "flickr30k").is_dir(), reason="the Flickr30k part is not here")
def test_flickr30k_lists_load_with_the_photos_there_are(tmp_path: Path) -> None:
    with (DATA / "flickr30k/test_images_available_from_flickr8k.tsv").open() as file:
        names = {
            row["flickr30k_name"]: row["flickr8k_name"]
            for row in csv.DictReader(file, delimiter="\t")
        }
    for name, there in names.items():
        photo = DATA / "flickr8k/images" / there
        if photo.is_file():
            (tmp_path / name).symlink_to(photo.resolve())

    spec = f"flickr30k:{DATA / 'flickr30k'}?images={tmp_path}&split=test&allow_missing"
    source: Any = open_source(spec)
    items = list(source.items())

    assert len(items) == len(list(tmp_path.iterdir())) > 0
    assert len(items) + len(source.missing) == 1000
    assert sum(len(item.captions) for item in items) == 5 * len(items)
