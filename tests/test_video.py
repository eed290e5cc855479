"""Videos as a source: which frames, their times, and what becomes of broken files. All are made here."""

import io
import random
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from retrieval_engine import Engine, encode, open_encoder
from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions
from retrieval_engine.errors import MissingExtra, SourceEmpty, SourceError, UsageError
from retrieval_engine.search.contact_sheet import render
from retrieval_engine.sources import open_source, read_bytes, video_frames
from retrieval_engine.sources.kinds import video
from retrieval_engine.sources.video_files import open_video
from retrieval_engine.sources.video_frames import frame_at
from retrieval_engine.testing import SourceContract
from retrieval_engine.testing.source_contract import Expected, Fixture
from tests.serving import served
from tests.videos import (
    decoded,
    ppm,
    shots,
    shown_at,
    turn_right,
    write_sound,
    write_video,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))


class TestVideo(SourceContract):
    def build(self, folder: Path) -> Fixture:
        (folder / "clips" / "sea").mkdir(parents=True)
        items = {}
        for name, length in (("a.mp4", 8), ("sea/b.mkv", 7)):
            path = write_video(folder / "clips" / name, shots([length]))
            frames = decoded(path)
            for second in range(2):
                shown = ppm(shown_at(frames, 1000 * second))
                items[f"{name}@00:00:0{second}.000"] = Expected(data=shown)
        return Fixture(spec=f"video:{folder / 'clips'}", items=items, options="every=1s")


@pytest.mark.parametrize(
    ("ending", "codec", "times_ms"),
    [
        ("mp4", "libx264", None),
        ("mkv", "libx264", [0, 40, 90, 700, 760, 1900, *range(2000, 4000, 55)]),
        ("webm", "libvpx", None),
        ("avi", "mpeg4", None),
        ("ts", "libx264", None),
    ],
)
def test_a_frame_is_the_same_however_it_is_reached(
    tmp_path: Path, ending: str, codec: str, times_ms: list[int] | None
) -> None:
    length = len(times_ms) if times_ms else 40
    made = write_video(
        tmp_path / f"a.{ending}", shots([length]), codec=codec, times_ms=times_ms, rate=10
    )
    frames = decoded(made)
    assert len(frames) == length
    items = list(open_source(f"video:{made}?every=250ms").items())
    end_ms = frames[-1][0]
    assert len(items) in (end_ms // 250 + 1, end_ms // 250 + 2)
    expected = {i.id: ppm(shown_at(frames, round(1000 * i.meta["time_s"]))) for i in items}  # type: ignore[arg-type, operator]
    assert {item.id: read_bytes(item.uri) for item in items} == expected
    random.Random(0).shuffle(items)
    assert {item.id: read_bytes(item.uri) for item in items} == expected
    for ms in (3710, 20, end_ms, 1234, 0):  # no grid: nothing is kept on the way
        assert frame_at(made, ms) == ppm(shown_at(frames, ms))


def test_a_video_of_a_phone_is_upright(tmp_path: Path) -> None:
    made = write_video(tmp_path / "a.mp4", shots([3]))
    [(_, lying), *_] = decoded(made)
    turn_right(made)
    [item] = open_source(f"video:{made}").items()
    assert read_bytes(item.uri) == ppm(np.ascontiguousarray(np.rot90(lying, -1)))


def test_a_frame_of_each_shot(tmp_path: Path) -> None:
    made = write_video(tmp_path / "a.mp4", shots([7, 12, 6], seed=5))
    source = open_source(f"video:{made}?scenes")
    items = list(source.items())
    assert [item.id for item in items] == [
        f"a.mp4@00:00:0{at}" for at in ("0.000", "1.400", "3.800")
    ]
    frames = decoded(made)
    for item, number in zip(items, (0, 7, 19), strict=True):
        assert read_bytes(item.uri) == ppm(frames[number][1])
    [kept] = (tmp_path / "cache" / "shots").iterdir()
    kept.write_text("[200]")
    assert [item.meta["time_s"] for item in source.items()] == [0.2]  # it was not decoded again
    made.touch()
    assert len(list(source.items())) == 3
    assert source.count() is None


def test_what_is_broken_fails_alone(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    whole = write_video(clips / "b.mp4", shots([60]), sound_s=20)  # its sound is longer
    cut = clips / "c-cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    other = write_video(clips / "c-cut.mkv", shots([60]))
    other.write_bytes(other.read_bytes()[: other.stat().st_size // 2])
    write_sound(clips / "d-sound.mp4")
    (clips / "e-text.mov").write_text("a text")
    (clips / "f-list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nb.mp4\n#EXT-X-ENDLIST\n")
    (clips / "g-empty.mkv").touch()
    (clips / "notes.txt").touch()
    source = open_source(f"video:{clips}")
    items = list(source.items())
    good = [item.id for item in items if not item.fault]
    faults = {item.id: item.fault for item in items if item.fault}
    assert [name for name in good if name.startswith("b.")] == [
        f"b.mp4@00:00:{second:02}.000" for second in range(12)
    ]
    for name in ("c-cut.mkv", "c-cut.mp4"):
        assert 0 < sum(each.startswith(name) for each in good) < 12
        assert faults[name].startswith("it ends at 00:00:0")
        assert faults[name].endswith(" of 00:00:12.000: it was cut off")
    frames = decoded(whole)
    for item in items[:12]:
        assert read_bytes(item.uri) == ppm(
            shown_at(frames, round(1000 * float(str(item.meta["time_s"]))))
        )
    others = ["d-sound.mp4", "e-text.mov", "f-list.mp4", "g-empty.mkv"]
    assert list(faults) == ["c-cut.mkv", "c-cut.mp4", *others]
    assert faults["d-sound.mp4"] == "it has no video stream"
    for name in ("e-text.mov", "f-list.mp4", "g-empty.mkv"):
        assert faults[name].startswith("it cannot be read as a video: ")
    assert "1 other files are no videos by their endings: .txt 1" in source.notes


def test_where_a_file_is_damaged_its_frames_fail_and_the_others_do_not(tmp_path: Path) -> None:
    made = write_video(tmp_path / "a.mkv", shots([60]), rate=10)
    frames, data = decoded(made), bytearray(made.read_bytes())
    middle = slice(len(data) * 5 // 10, len(data) * 6 // 10)
    data[middle] = np.random.default_rng(0).bytes(middle.stop - middle.start)
    made.write_bytes(data)
    items = [item for item in open_source(f"video:{made}?every=500ms").items() if not item.fault]
    assert len(items) == 12
    for item, half in zip(items, range(12), strict=True):
        if 6 < half < 10:
            with pytest.raises(SourceError, match=r"a\.mkv: it is damaged at 00:00:0[345]"):
                read_bytes(item.uri)
        else:
            assert read_bytes(item.uri) == ppm(shown_at(frames, 500 * half))


def test_damage_is_seen_whatever_the_machine(tmp_path: Path) -> None:
    # decoding a frame in each of 17 threads missed some of it once in a hundred times
    with open_video(write_video(tmp_path / "a.mp4", shots([2]))).container as container:
        assert container.streams.video[0].codec_context.thread_type.name == "SLICE"


def test_without_pyav_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_video(tmp_path / "a.mp4", shots([2]))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match="av is not installed"):
        open_source(f"video:{made}")


def test_options_and_places_that_cannot_be(tmp_path: Path) -> None:
    made = write_video(tmp_path / "a.mp4", shots([2]))
    for options, said in {
        "every=0s": "every=0s; allowed: a time such as 2s, 500ms or 1min",
        "every=fast": "every=fast; allowed",
        "every=1s&scenes": "contradict",
        "colour=red": "no option 'colour'; allowed: every, scenes",
    }.items():
        with pytest.raises(UsageError, match=said):
            open_source(f"video:{made}?{options}")
    with pytest.raises(UsageError, match=r"a video at s3://b/a\.mp4 is not possible"):
        video.open_source("s3://b/a.mp4", {})
    with pytest.raises(SourceError, match="does not exist"):
        open_source(f"video:{tmp_path / 'none.mp4'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceEmpty, match="no video in"):
        open_source(f"video:{tmp_path / 'empty'}")
    for uri in ("video:a.mp4", f"video:{made}#x,1", f"video:{made}#5"):
        with pytest.raises(SourceError, match="is no frame"):
            read_bytes(uri)
    made.unlink()
    with pytest.raises(SourceError, match=r"cannot read .*No such file"):
        read_bytes(f"video:{made}#0,1000")


def test_frames_are_encoded_once_and_found_at_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, store, encoder = tmp_path / "clips", tmp_path / "store", open_encoder("vlre-tiny")
    clips.mkdir()
    write_video(clips / "trip.mp4", shots([10, 10, 10]))
    (clips / "bad.mp4").write_bytes(b"no video")
    source = f"video:{clips}?every=2s"
    begun = encode(source, store, encoder=encoder, options=EncodeOptions(limit=2))
    assert (begun.images.encoded, begun.images.failed) == (1, 1)
    report = encode(source, store, encoder=encoder)
    assert (report.images.encoded, report.images.reused) == (2, 1)
    assert [failure.item_id for failure in report.failures] == ["bad.mp4"]
    with monkeypatch.context() as undecoded:
        undecoded.setattr(video_frames, "_cursor", None)
        again = encode(source, store, encoder=encoder)
    assert (again.images.encoded, again.images.reused, again.images.failed) == (0, 3, 1)

    hits = Engine(store=store).search("a dog", where="video = 'trip.mp4' and time_s >= 2")
    assert {hit.title for hit in hits} == {"trip.mp4 at 00:02", "trip.mp4 at 00:04"}
    sheet = render([hits])
    assert f"{hits[0].title}</small>" in sheet
    assert sheet.count("data:image/jpeg") == 2
    with served(store) as client:
        first = client.post("/api/search", json={"text": "a dog"}).json()["hits"][0]
        assert first["title"] == f"trip.mp4 at 00:0{first['meta']['time_s']:.0f}"
        shown = client.get(first["thumbnail"]).content
    [frame] = [item for item in open_source(source).items() if item.id == first["id"]]
    small, whole = (
        np.asarray(Image.open(io.BytesIO(x)), int) for x in (shown, read_bytes(frame.uri))
    )
    assert np.abs(small - whole).mean() < 6  # but for what JPEG leaves out


@pytest.mark.whole
def test_the_commands_of_the_page_work_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "beach.mp4", shots([200, 160], seed=5))
    text = (Path(__file__).parents[1] / "docs" / "video.md").read_text(encoding="utf-8")
    [commands] = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True)[1:] for line in commands.splitlines()]
    results = [CliRunner().invoke(main, words) for words in lines]
    assert [result.exit_code for result in results] == [0] * 4, results[-1].output
    found = [line.split("\t")[2] for line in results[3].stdout.splitlines()]
    assert sorted(found) == [f"beach.mp4@00:01:{second:02}.000" for second in range(2, 12, 2)]
    assert "beach.mp4 at 01:02</small>" in (tmp_path / "sheet.html").read_text()
