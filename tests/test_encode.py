"""`encode` end to end on a tiny real model: whole, resumable, and nobody's row shifted."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import open_encoder, open_source, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import FingerprintMismatch, UsageError
from retrieval_engine.models import Encoder
from retrieval_engine.progress import Silent
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store
from retrieval_engine.testing.images import encoded, jpeg, photo
from tests import tiny
from tests.broken_images import broken_images, odd_images
from tests.children import held_at, in_child, vlre


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return open_encoder(str(checkpoint), device="cpu", dtype="float32")


def write_folder(path: Path, n: int) -> Path:
    path.mkdir(parents=True)
    for i in range(n):
        (path / f"{i:04}.jpg").write_bytes(jpeg(i))
        (path / f"{i:04}.txt").write_text(f"a dog {i}\na cat on grass\n")
    return path


def contents(store: Store) -> dict[str, tuple[bytes, list[str]]]:
    """By item: its vector's bytes and its captions, whatever the order of the rows."""
    gallery = store.gallery()
    vectors = gallery.images("itc", np.float16)
    return {
        gallery.ids[i]: (
            vectors[i].tobytes(),
            [gallery.caption_texts[j] for j in gallery.captions_of(i)],
        )
        for i in range(len(gallery))
    }


def test_every_row_is_its_own_picture_s(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 30)
    (folder / "0007.jpg").write_bytes(b"not a picture")
    report = encode(
        f"folder:{folder}",
        tmp_path / "store",
        encoder=encoder,
        options=EncodeOptions(batch_size=4, part_rows=8, store_dtype="float32"),
    )
    assert (report.images.encoded, report.images.failed) == (29, 1)
    assert (report.captions.encoded, report.captions.reused, report.captions.failed) == (30, 28, 2)
    store = open_store(tmp_path / "store")
    gallery = store.gallery()
    assert list(gallery.ids) == [f"{i:04}.jpg" for i in range(30) if i != 7]
    for i in (0, 6, 7, 28):
        pixels = encoder.preprocessor.pixels(decode(Path(gallery.uris[i]).read_bytes()))
        expected = encoder.encode_images(pixels[None], ["itc"])["itc"][0]
        np.testing.assert_allclose(gallery.images("itc")[i], expected, atol=1e-5)
    texts = [gallery.caption_texts[j] for j in gallery.captions_of(7)]
    assert texts == ["a dog 8", "a cat on grass"]
    [failure] = store.failures()
    assert failure.item_id == "0007.jpg"
    assert store.verify() == []


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
def test_every_kind_of_worker_gives_the_same_store(
    tmp_path: Path, encoder: Encoder, kind: str
) -> None:
    folder = write_folder(tmp_path / "pictures", 12)
    for name, workers in (("plain", "serial"), ("pooled", kind)):
        options = EncodeOptions(batch_size=5, worker_kind=workers, workers=2)
        encode(f"folder:{folder}", tmp_path / name, encoder=encoder, options=options)
    assert contents(open_store(tmp_path / "plain")) == contents(open_store(tmp_path / "pooled"))


def test_a_second_run_encodes_only_what_changed(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 10)
    store = tmp_path / "store"
    encode(f"folder:{folder}", store, encoder=encoder)
    again = encode(f"folder:{folder}", store, encoder=encoder)
    assert (again.images.encoded, again.images.reused) == (0, 10)
    assert (again.captions.encoded, again.captions.reused) == (0, 20)

    os.utime(folder / "0001.jpg", (1, 1))  # touched: read again, same bytes, nothing to encode
    (folder / "0002.jpg").write_bytes(jpeg(99))
    (folder / "0003.txt").write_text("a red bird\n")
    (folder / "copy.jpg").write_bytes(jpeg(0))
    (folder / "0009.jpg").unlink()
    changed = encode(f"folder:{folder}", store, encoder=encoder)
    assert (changed.images.encoded, changed.images.reused) == (1, 9)
    assert (changed.captions.encoded, changed.removed) == (1, 1)
    found = contents(open_store(store))
    assert set(found) == {*(f"{i:04}.jpg" for i in range(9)), "copy.jpg"}
    assert found["copy.jpg"][0] == found["0000.jpg"][0]
    assert found["0003.jpg"][1] == ["a red bird"]
    fresh = tmp_path / "fresh"
    encode(f"folder:{folder}", fresh, encoder=encoder)
    for item_id, (vector, captions) in contents(open_store(fresh)).items():
        assert found[item_id][1] == captions
        old, new = (np.frombuffer(v, np.float16) for v in (found[item_id][0], vector))
        np.testing.assert_allclose(old, new, atol=1e-3)


def test_a_unchanged_file_is_not_even_read(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 3)
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    path = folder / "0001.jpg"
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))  # same size, and then the same time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    assert (again.images.reused, again.images.failed) == (3, 0)


def test_a_mended_picture_leaves_the_ledger(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 3)
    (folder / "0001.jpg").write_bytes(b"")
    store = tmp_path / "store"
    assert encode(f"folder:{folder}", store, encoder=encoder).images.failed == 1
    assert encode(f"folder:{folder}", store, encoder=encoder).images.failed == 1
    assert len(open_store(store).failures()) == 1
    (folder / "0001.jpg").write_bytes(jpeg(1))
    report = encode(f"folder:{folder}", store, encoder=encoder)
    assert (report.images.encoded, report.images.failed) == (1, 0)
    assert open_store(store).failures() == []


def test_broken_pictures_of_every_kind_are_reported_each_alone(
    tmp_path: Path, checkpoint: Path
) -> None:
    folder = write_folder(tmp_path / "pictures", 200)
    kinds = broken_images()
    for kind in range(20):
        for broken in broken_images(seed=kind):
            (folder / f"broken-{kind:02}-{broken.name}").write_bytes(broken.data)
    odd = odd_images()
    for image in odd:
        (folder / f"odd-{image.name}").write_bytes(image.data)
    listed = [item.id for item in open_source(f"folder:{folder}").items()]
    bad = [item_id for item_id in listed if item_id.startswith("broken-")]
    assert len(bad) >= 20 * 8
    arguments = ["encode", f"folder:{folder}", "--model", str(checkpoint)]
    result = CliRunner().invoke(main, [*arguments, "--store", str(tmp_path / "store"), "--json"])
    assert result.exit_code == 3, result.output
    store = open_store(tmp_path / "store")
    assert list(store.gallery().ids) == [item_id for item_id in listed if item_id not in bad]
    reasons = {failure.item_id: failure.reason for failure in store.failures()}
    assert set(reasons) == set(bad)
    for broken in kinds:
        if f"broken-00-{broken.name}" in reasons:
            import re

            assert re.search(broken.reason, reasons[f"broken-00-{broken.name}"])


def test_killed_and_resumed_equals_never_killed(tmp_path: Path, checkpoint: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 48)
    (folder / "0003.jpg").write_bytes(b"broken")

    def encoding(store: Path) -> Callable[[], None]:
        model = ("--model", checkpoint, "--shard-rows", 8, "--batch-size", 3)
        return vlre("encode", f"folder:{folder}", "--store", store, *model)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_child(encoding(whole)).code == 3
    begun = lambda: list(killed.glob("shards/images-0000[2-9].h5*"))  # noqa: E731
    ended = in_child(held_at("0030.jpg", encoding(killed)), kill_when=begun)
    assert ended.code == -signal.SIGKILL, ended.output
    before = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for part in range(len(open_store(killed).manifest.parts))
        for file in killed.glob(f"shards/*-{part:05}.*")
    }
    assert before
    assert in_child(encoding(killed)).code == 3
    a, b = open_store(whole), open_store(killed)
    assert contents(a) == contents(b)
    assert a.count(Modality.IMAGES) == b.count(Modality.IMAGES) == 47
    assert sum(1 for _ in killed.glob("shards/images-*.h5")) == 6, "nothing was encoded twice"
    for name, digest in before.items():
        data = (killed / "shards" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest, "a finished shard was touched"
    assert b.verify() == []
    assert [f.item_id for f in b.failures()] == ["0003.jpg"]


def test_another_encoder_is_refused_with_both_sides_named(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 3)
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    other = open_encoder(str(tiny.save_blip(tmp_path / "other", seed=5)), dtype="float32")
    with pytest.raises(FingerprintMismatch) as caught:
        encode(f"folder:{folder}", tmp_path / "store", encoder=other)
    assert encoder.spec.fingerprint[:12] in caught.value.message
    assert other.spec.fingerprint[:12] in caught.value.message
    options = EncodeOptions(overwrite=True)
    report = encode(f"folder:{folder}", tmp_path / "store", encoder=other, options=options)
    assert report.images.encoded == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_store_is_gone_on_with_in_its_own_arithmetic(
    dtype: str, tmp_path: Path, checkpoint: Path
) -> None:
    folder, store, model = write_folder(tmp_path / "in", 2), tmp_path / "store", str(checkpoint)
    encode(f"folder:{folder}", store, encoder=open_encoder(model, device="cpu", dtype=dtype))
    # As on a machine that is fast at something else, by the library and by the command.
    (folder / "2.jpg").write_bytes(jpeg(2))
    assert encode(f"folder:{folder}", store, encoder=model).images.encoded == 1
    (folder / "3.jpg").write_bytes(jpeg(3))
    asked = ["encode", f"folder:{folder}", "--store", str(store), "--model", model]
    assert CliRunner().invoke(main, asked).exit_code == 0
    assert open_store(store).spec.dtype == dtype
    assert len(open_store(store).gallery()) == 4
    other = "float16" if dtype != "float16" else "float32"
    assert CliRunner().invoke(main, [*asked, "--dtype", other]).exit_code == 1
    assert CliRunner().invoke(main, [*asked, "--overwrite"]).exit_code == 0
    assert open_store(store).spec.dtype == open_encoder(model).spec.dtype


def test_tokens_join_a_store_later(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 5)
    store = tmp_path / "store"
    encode(f"folder:{folder}", store, encoder=encoder)
    options = EncodeOptions(features=("itc", "pooled", "tokens"))
    report = encode(f"folder:{folder}", store, encoder=encoder, options=options)
    assert report.images.encoded == 5
    opened = open_store(store)
    assert opened.gallery().images("tokens").shape == (5, 17, 32)
    assert opened.gallery().captions("token_ids", np.int32).shape == (10, 35)
    with pytest.raises(UsageError, match=r"no feature 'depth'.* itc, pooled"):
        encode(
            f"folder:{folder}", store, encoder=encoder, options=EncodeOptions(features=("depth",))
        )


def test_limit_and_split_take_nothing_away(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 6)
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    report = encode(
        f"folder:{folder}", tmp_path / "store", encoder=encoder, options=EncodeOptions(limit=2)
    )
    assert (report.images.reused, report.removed) == (2, 0)
    assert len(open_store(tmp_path / "store").gallery()) == 6


def test_two_sources_may_use_the_same_ids(tmp_path: Path, encoder: Encoder) -> None:
    first = write_folder(tmp_path / "first", 2)
    second = write_folder(tmp_path / "second", 1)
    (second / "0000.jpg").write_bytes(encoded(photo(77), "PNG"))
    for folder in (first, second):
        encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    gallery = open_store(tmp_path / "store").gallery()
    assert list(gallery.ids) == ["0000.jpg", "0001.jpg", "0000.jpg"]


def test_the_command_reports_in_the_contract_s_form(tmp_path: Path, checkpoint: Path) -> None:
    import json

    folder = write_folder(tmp_path / "pictures", 4)
    store = tmp_path / "store"
    arguments = ["encode", str(folder), "--store", str(store), "--model", str(checkpoint)]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["images"] == {"encoded": 4, "reused": 0, "failed": 0}
    assert report["captions"] == {"encoded": 5, "reused": 3, "failed": 0}
    assert {"store", "fingerprint", "seconds", "images_per_s"} <= set(report)
    people = CliRunner().invoke(main, arguments)
    assert "0 encoded, 4 reused" in people.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["no/such/folder"], 2, "neither a directory nor a source"),
        (["folder:no/such"], 1, "no/such"),
        (["scenes:5", "--model", "no-such-model"], 1, "no checkpoint 'no-such-model'"),
        (["scenes:5", "--device", "cuda:7"], 2, "cuda:7"),
        (["scenes:5", "--limit", "0"], 2, "--limit"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, checkpoint: Path, arguments: list[str], code: int, line: str
) -> None:
    store = tmp_path / "store"
    model = [] if "--model" in arguments else ["--model", str(checkpoint)]
    result = CliRunner().invoke(main, ["encode", *arguments, *model, "--store", str(store)])
    assert result.exit_code == code
    assert result.stdout == ""
    assert line in result.stderr
    assert "Traceback" not in result.stderr
    assert not store.exists() or not any(store.glob("shards/*"))


def test_an_empty_folder_leaves_no_store(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    store = tmp_path / "store"
    result = CliRunner().invoke(
        main, ["encode", str(tmp_path / "empty"), "--store", str(store), "--model", str(checkpoint)]
    )
    assert result.exit_code == 1
    assert result.stderr.count("Error:") == 1
    shutil.rmtree(store, ignore_errors=True)


def test_a_part_of_a_source_takes_nothing_away(tmp_path: Path, encoder: Encoder) -> None:
    folder = write_folder(tmp_path / "pictures", 3)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.jpg").write_bytes(jpeg(50))
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    report = encode(f"folder:{folder}?glob=sub/*", tmp_path / "store", encoder=encoder)
    assert (report.images.reused, report.removed) == (1, 0)
    assert len(open_store(tmp_path / "store").gallery()) == 4


def test_listed_pictures_may_be_missing_when_allowed(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "flickr"
    write_folder(folder / "images", 2)
    lines = [f"{i:04}.jpg#{k}\ta dog {k}" for i in range(3) for k in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    command = ["encode", f"flickr8k:{folder}", "--model", str(checkpoint)]
    command += ["--store", str(tmp_path / "store")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "--allow-missing" in refused.stderr
    allowed = CliRunner().invoke(main, [*command, "--allow-missing"])
    assert allowed.exit_code == 0, allowed.output
    assert "0002.jpg" in allowed.stderr
    assert len(open_store(tmp_path / "store").gallery()) == 2


@pytest.mark.parametrize("names", [(), ("nope",)])
def test_features_that_nobody_emits(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"feature.* emits itc, pooled, token_ids"):
        encode(
            "scenes:2",
            tmp_path / "s",
            encoder=open_encoder("vlre-tiny", device="cpu"),
            options=EncodeOptions(features=names),
        )
    assert not (tmp_path / "s").exists()


def test_a_model_of_drawn_scenes_says_so_where_it_meets_other_pictures(
    tmp_path: Path, checkpoint: Path
) -> None:
    class Heard(Silent):
        lines: list[str]

        def say(self, line: str) -> None:
            self.lines.append(line)

    def heard(source: str, learned: str) -> list[str]:
        record = {"config": {"source": learned}}
        (checkpoint / "training.json").write_text(json.dumps(record), encoding="utf-8")
        progress = Heard()
        progress.lines = []
        store = tmp_path / f"store-{source.partition(':')[0]}-{learned.partition(':')[0]}"
        encode(source, store, encoder=open_encoder(str(checkpoint)), progress=progress)
        return progress.lines

    scenes = "scenes:3?seed=1&size=32"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(read_bytes(next(iter(open_source(scenes).items())).uri))
    assert heard(scenes, "scenes:9?seed=2") == []
    assert heard(f"folder:{pictures}", "flickr8k:photos") == []
    (drawn,) = heard(f"folder:{pictures}", "scenes:9?seed=2")
    assert drawn.endswith("was trained on drawn scenes alone: of other images it knows little")
    (photographs,) = heard(scenes, "flickr8k:photos")
    assert photographs.endswith("photographs alone: of drawn scenes it knows little")
