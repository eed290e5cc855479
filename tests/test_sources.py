"""The sources `folder` and `flickr8k`, and how a source is named."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.source_contract import Expected, Fixture, SourceContract, five_items

DATA = Path(__file__).parents[1] / "../shared/data"


def lay_out(root: Path, files: Mapping[str, bytes | str]) -> None:
    """Write files, with the folders they are in."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def captions_by_id(spec: str) -> dict[str, list[str]]:
    return {i.id: [c.text for c in i.captions] for i in open_source(spec).items()}


class TestFolderWithSidecars(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("a.jpg", "b/c.jpg", "b/d.jpg", "b.png", "z/y/x.jpeg")
        plain = {
            name: Expected(data=item.data, captions=item.captions) for name, item in items.items()
        }
        lay_out(folder, {name: item.data for name, item in plain.items()})
        for name, item in plain.items():
            (folder / name).with_suffix(".txt").write_text("\n".join(item.captions) + "\n\n")
        return Fixture(spec=f"folder:{folder}", items=dict(sorted(plain.items())))


class TestFolderWithJsonLines(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("a.jpg", "sub/b.jpg", "sub/c d.jpg", "ü.jpg", "sub/e.jpg")
        lay_out(folder, {name: item.data for name, item in items.items()})
        lines = [
            json.dumps({"image": name, "captions": item.captions, "split": item.split})
            for name, item in items.items()
        ]
        lay_out(folder, {"captions.jsonl": "\n".join(lines)})
        return Fixture(spec=f"folder:{folder}", items=dict(sorted(items.items())))


class TestFlickr8k(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("1_a.jpg", "2_b.jpg", "3_c.jpg", "4_d.jpg", "5_e.jpg")
        flickr8k(folder, items)
        return Fixture(spec=f"flickr8k:{folder}", items=items)


def flickr8k(folder: Path, items: Mapping[str, Expected]) -> None:
    """The official layout, with the slip that is in the official captions."""
    lay_out(folder, {f"Flicker8k_Dataset/{name}": item.data for name, item in items.items()})
    lines = [
        f"{name}#{k}\t{text}"
        for name, item in items.items()
        for k, text in enumerate(item.captions)
    ]
    lines += [f"2258277193_586949ec62.jpg.1#{k}\tnobody has this one" for k in range(5)]
    lay_out(folder, {"Flickr8k.token.txt": "\n".join(lines) + "\n"})
    for split, official in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = [name for name, item in items.items() if item.split == split]
        lay_out(folder, {f"Flickr_8k.{official}Images.txt": "\n".join(names) + "\n"})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("captions.txt", "a.jpg|A dog, and \"a\" cat | asleep\nb/c.jpg|Two birds\n"),
        ("captions.txt", "a.jpg#0\tA dog, and \"a\" cat | asleep\nb/c.jpg#0\tTwo birds\n"),
        ("captions.csv", 'a.jpg,"A dog, and ""a"" cat | asleep"\nb/c.jpg,Two birds\n'),
        ("captions.csv", 'image,caption\r\na.jpg,"A dog, and ""a"" cat | asleep"\r\nb/c.jpg,Two birds'),
        ("captions.csv", '\ufeffcaption,image\n"A dog, and ""a"" cat | asleep",a.jpg\nTwo birds,b/c.jpg'),
        ("captions.csv", "a.jpg,A dog, and \"a\" cat | asleep\n\nb/c.jpg,Two birds\n"),
        (
            "captions.csv",
            "image_name| comment_number| comment\n"
            "a.jpg| 0| A dog, and \"a\" cat | asleep\nb/c.jpg| 0   Two birds\n",
        ),
        ("captions.txt", "a.jpg|0|A dog, and \"a\" cat | asleep\nb/c.jpg|0|Two birds\n"),
        (
            "captions.jsonl",
            '{"file_name": "a.jpg", "caption": "A dog, and \\"a\\" cat | asleep"}\n'
            '{"file_name": "b/c.jpg", "text": ["Two birds"]}\n',
        ),
    ],
)  # fmt: skip
def test_every_form_of_caption_file(tmp_path: Path, file: str, content: str) -> None:
    lay_out(tmp_path, {"a.jpg": jpeg(0), "b/c.jpg": jpeg(1), file: content})

    assert captions_by_id(f"folder:{tmp_path}") == {
        "a.jpg": ['A dog, and "a" cat | asleep'],
        "b/c.jpg": ["Two birds"],
    }


def test_caption_numbers_of_the_file_are_kept_and_gaps_filled(tmp_path: Path) -> None:
    lines = "a.jpg#3\tthree\na.jpg#3\tthree again\na.jpg#0\tnought\n"
    lay_out(tmp_path, {"a.jpg": jpeg(), "a.txt": "beside\n", "captions.txt": lines})

    (item,) = open_source(f"folder:{tmp_path}").items()

    ids = {caption.id: caption.text for caption in item.captions}
    assert ids == {
        "a.jpg#0": "beside",
        "a.jpg#3": "three",
        "a.jpg#4": "three again",
        "a.jpg#1": "nought",
    }


def test_captions_of_a_subfolder_and_of_images_below(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "images/a.jpg": jpeg(0),
            "pets/b.jpg": jpeg(1),
            "captions.csv": "a.jpg,from the root\n",
            "pets/captions.txt": "b.jpg|from its folder\n",
        },
    )

    assert captions_by_id(f"folder:{tmp_path}") == {
        "images/a.jpg": ["from the root"],
        "pets/b.jpg": ["from its folder"],
    }


def test_captions_without_images_are_counted_and_named_once(tmp_path: Path) -> None:
    lines = "a.jpg|here\n" + "".join(f"gone{i:02}.jpg|x\ngone{i:02}.jpg|y\n" for i in range(12))
    lay_out(tmp_path, {"a.jpg": jpeg(), "captions.txt": lines})
    source: Any = open_source(f"folder:{tmp_path}")

    assert len(list(source.items())) == len(list(source.items())) == 1
    (note,) = source.notes
    assert note.startswith("12 captioned images are not there: gone00.jpg, gone01.jpg, ")
    assert note.endswith("gone09.jpg, …")


def test_extra_columns_and_keys_become_meta(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {"a.jpg": jpeg(), "captions.jsonl": '{"image": "a.jpg", "caption": "x", "likes": [1, 2]}'},
    )

    (item,) = open_source(f"folder:{tmp_path}").items()

    assert item.meta == {"likes": [1, 2]}


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        (
            "captions.txt",
            "a.jpg|fine\nno bar here\n",
            r"captions\.txt:2: expected 'image\|caption'",
        ),
        ("captions.csv", 'a.jpg,"never closed\nb.jpg,x\n', r"captions\.csv:\d: "),
        ("captions.jsonl", '{"image": "a.jpg"}\n{"image": \n', r"captions\.jsonl:2 is no JSON"),
        ("captions.jsonl", '{"bild": "a.jpg"}\n', r"captions\.jsonl:1: no image name"),
        ("captions.jsonl", "[1]\n", "expected a JSON object"),
    ],
)
def test_caption_file_that_makes_no_sense_is_one_line(
    tmp_path: Path, file: str, content: str, complaint: str
) -> None:
    lay_out(tmp_path, {"a.jpg": jpeg(), file: content})

    with pytest.raises(SourceError, match=complaint) as caught:
        list(open_source(f"folder:{tmp_path}").items())
    assert "\n" not in caught.value.message


def test_image_in_two_splits_is_refused_by_name(tmp_path: Path) -> None:
    lines = '{"image":"a.jpg","split":"train"}\n{"image":"a.jpg","split":"test"}\n'
    lay_out(tmp_path, {"a.jpg": jpeg(), "captions.jsonl": lines})

    with pytest.raises(SourceError, match=r"a\.jpg is in two splits: test and train"):
        list(open_source(f"folder:{tmp_path}").items())


def test_folders_name_splits_only_when_asked(tmp_path: Path) -> None:
    lay_out(tmp_path, {"train/a.jpg": jpeg(0), "Validation/b.jpg": jpeg(1), "cats/test/c.jpg": b""})

    def splits(spec: str) -> dict[str, str]:
        return {item.id: item.split for item in open_source(spec).items()}

    assert set(splits(f"folder:{tmp_path}").values()) == {""}
    assert splits(f"folder:{tmp_path}?split-from=folder") == {
        "Validation/b.jpg": "val",
        "cats/test/c.jpg": "",
        "train/a.jpg": "train",
    }
    with pytest.raises(
        SourceError, match=r"no item in split 'test'; there are: \(none\) 1, train 1"
    ):
        list(open_source(f"folder:{tmp_path}?split_from=folder&split=test").items())


def test_glob(tmp_path: Path) -> None:
    lay_out(tmp_path, dict.fromkeys(["a.jpg", "b.png", "s/c.jpg", "s/t/d.jpg"], b""))

    def ids(glob: str) -> list[str]:
        return list(captions_by_id(f"folder:{tmp_path}?glob={glob}"))

    assert ids("*.jpg") == ["a.jpg", "s/c.jpg", "s/t/d.jpg"]
    assert ids("s/*.jpg") == ["s/c.jpg"]
    assert ids("s/**") == ["s/c.jpg", "s/t/d.jpg"]
    assert ids("**/?.jpg") == ["a.jpg", "s/c.jpg", "s/t/d.jpg"]
    with pytest.raises(SourceError, match=r"no picture in .* that matches \*\.gif"):
        ids("*.gif")


def test_hidden_looped_dangling_and_own_folders(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    lay_out(
        root,
        {
            "a.jpg": jpeg(),
            ".hidden.jpg": b"",
            ".cache/b.jpg": b"",
            "embeddings/store.json": '{"format_version": 1, "fingerprint": "f", "spec": {}}',
            "embeddings/c.jpg": b"",
            "notes.md": "",
            "s/d.JPG": b"",
        },
    )
    lay_out(tmp_path, {"elsewhere/e.jpg": b""})
    (root / "s" / "up").symlink_to(root)
    (root / "s" / "out").symlink_to(tmp_path / "elsewhere")
    (root / "dead.jpg").symlink_to(root / "nowhere.jpg")
    source: Any = open_source(f"folder:{root}")

    assert [item.id for item in source.items()] == ["a.jpg", "s/d.JPG", "s/out/e.jpg"]
    assert source.notes == [
        "1 hidden folders",
        "1 hidden pictures",
        "1 links lead nowhere",
        "1 folders are stores of features",
        "1 other files are no pictures by their endings: .md 1",
    ]


def test_name_that_is_no_utf8_is_left_out_and_told(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": jpeg()})
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    source: Any = open_source(f"folder:{tmp_path}")

    assert [item.id for item in source.items()] == ["a.jpg"]
    assert source.notes == ["1 pictures have names that are not UTF-8"]


def test_order_is_that_of_the_whole_paths(tmp_path: Path) -> None:
    names = ["a/z.jpg", "a.jpg", "a-b/c.jpg", "a0.jpg", "B.jpg", "a/b/c.jpg"]
    lay_out(tmp_path, dict.fromkeys(names, b""))

    assert list(captions_by_id(f"folder:{tmp_path}")) == sorted(names)


def test_names_of_sources(tmp_path: Path) -> None:
    lay_out(tmp_path, {"c++ & co/a.jpg": jpeg()})
    folder = str(tmp_path / "c++ & co")

    assert open_source(folder).name == open_source(f"folder:{folder}").name == f"folder:{folder}"
    for spec, error, complaint in (
        (f"folder:{tmp_path}/nothing", SourceError, "nothing does not exist"),
        (f"folder:{folder}/a.jpg", SourceError, "a.jpg is not a directory"),
        ("cloud:x", UsageError, "unknown source 'cloud'; known: .*flickr8k, folder"),
        ("nothing", UsageError, "'nothing' is neither a directory nor a source"),
        (f"folder:{folder}?split_from=name", UsageError, "split_from=name; allowed: folder"),
    ):
        with pytest.raises(error, match=complaint):
            open_source(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no picture in .*empty"):
        open_source(f"folder:{tmp_path}/empty")


def test_path_that_cannot_be_read_is_that_items_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*gone\.jpg: No such file"):
        read_bytes(str(tmp_path / "gone.jpg"))


def test_flickr8k_missing_images_are_told_before_the_first_item(tmp_path: Path) -> None:
    items = five_items("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    flickr8k(tmp_path, items)
    for name in ("2.jpg", "4.jpg"):
        (tmp_path / "Flicker8k_Dataset" / name).unlink()

    with pytest.raises(SourceError, match=r"2 of 5 images are not in .*: 2\.jpg, 4\.jpg") as caught:
        next(iter(open_source(f"flickr8k:{tmp_path}").items()))
    assert "`allow_missing`" in caught.value.hint

    source: Any = open_source(f"flickr8k:{tmp_path}?allow_missing=true")
    assert [item.id for item in source.items()] == ["1.jpg", "3.jpg", "5.jpg"]
    assert source.missing == ("2.jpg", "4.jpg")
    (note,) = source.notes
    assert note.startswith("2 of 5 images are not in")
    only_val: Any = open_source(f"flickr8k:{tmp_path}?split=dev")
    assert [item.id for item in only_val.items()] == ["3.jpg"]


def test_flickr8k_as_kaggle_has_it(tmp_path: Path) -> None:
    lines = 'image,caption\n1.jpg,A dog .\n1.jpg,"A dog , running ."\n2.jpg,A cat .\n'
    lay_out(tmp_path, {"Images/1.jpg": jpeg(1), "Images/2.jpg": jpeg(2), "captions.txt": lines})

    assert captions_by_id(f"flickr8k:{tmp_path}") == {
        "1.jpg": ["A dog .", "A dog , running ."],
        "2.jpg": ["A cat ."],
    }
    with pytest.raises(SourceError, match="no split lists"):
        open_source(f"flickr8k:{tmp_path}?split=test")


def test_flickr8k_list_conflict_and_no_captions(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images/1.jpg": jpeg()})
    with pytest.raises(SourceError, match=r"no captions in .*Flickr8k\.token\.txt"):
        open_source(f"flickr8k:{tmp_path}")
    lay_out(
        tmp_path,
        {"Flickr8k.token.txt": "1.jpg#0\tA dog\n", "train.txt": "1.jpg\n", "test.txt": "1.jpg\n"},
    )
    with pytest.raises(SourceError, match=r"1\.jpg is in two splits: test and train"):
        open_source(f"flickr8k:{tmp_path}")


@pytest.mark.skipif(not (DATA / "flickr8k").is_dir(), reason="the Flickr8k part is not here")
def test_flickr8k_part_loads_as_it_is() -> None:
    items = list(open_source(f"flickr8k:{DATA / 'flickr8k'}").items())

    assert len(items) == 1752
    assert sum(len(item.captions) for item in items) == 8760
    assert sum(item.split == "val" for item in items) == 1000
    assert sum(item.split == "train" for item in items) == 752
