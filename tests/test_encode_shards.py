"""`vlre encode --shard`: a job in shares, each in a store of its own, that merge into the same."""

import re
import shlex
import signal
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from retrieval_engine import open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, EncodeReport, encode
from retrieval_engine.evaluate import evaluate_recall
from retrieval_engine.models import Encoder
from retrieval_engine.records import JobShard, Modality
from retrieval_engine.search import Searcher
from retrieval_engine.store import Store, merge_stores
from tests.children import held_at, in_child
from tests.test_encode import write_folder

SCENES = "scenes:40?seed=7"
SLURM = {f"SLURM_ARRAY_TASK_{name}": "0" for name in ("ID", "MIN", "MAX", "COUNT")}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder("vlre-tiny", device="cpu", dtype="float32")


def check_same(one: Store, other: Store) -> None:
    """The same items, captions and failures, and features that differ by rounding alone.

    In another batch the same picture's float32 has other last bits; kept as float16, one value in
    some thousands falls to the neighbouring one.
    """
    tables = [store.items().sort_by("id") for store in (one, other)]
    assert tables[0].equals(tables[1])
    assert other.failures() == one.failures()
    keys = {
        Modality.IMAGES: tables[0]["key"].to_pylist(),
        Modality.CAPTIONS: [c["key"] for row in tables[0]["captions"].to_pylist() for c in row],
    }
    for side in Modality:
        assert other.features(side) == one.features(side)
        for name in one.features(side):
            values = [s.read(side, name, s.rows(side, keys[side])) for s in (one, other)]
            assert values[0].dtype == values[1].dtype
            np.testing.assert_allclose(values[0], values[1], rtol=2**-9, atol=2**-9)


def test_eight_shards_merged_equal_one_store(tmp_path: Path, encoder: Encoder) -> None:
    whole, merged = tmp_path / "whole", tmp_path / "all"
    encode(SCENES, whole, encoder=encoder)
    for n in range(1, 9):
        options = EncodeOptions(shard=JobShard(n, 8), batch_size=n)
        report = encode(SCENES, tmp_path / f"part-{n}", encoder=encoder, options=options)
        assert report.images.encoded < 12
    done = merge_stores([tmp_path / f"part-{n}" for n in range(1, 9)], merged)
    assert (done.items, done.copied, done.jobs[0].missing) == (40, 0, ())
    one, other = open_store(whole), open_store(merged)
    check_same(one, other)
    assert all(other.count(side) == one.count(side) for side in Modality)
    reports = [evaluate_recall(store) for store in (one, other)]
    assert reports[0].text_to_image.recall == reports[1].text_to_image.recall
    assert reports[0].image_to_text.recall == reports[1].image_to_text.recall
    queries = ["a dog on grass", "a red car on the street"]
    found = [Searcher(store, encoder=encoder).search(queries) for store in (one, other)]
    for hits, others in zip(*found, strict=True):
        assert [hit.item_id for hit in hits] == [hit.item_id for hit in others]
        scores, other_scores = ([hit.score for hit in some] for some in (hits, others))
        assert scores == pytest.approx(other_scores, abs=1e-3)
    again = encode(SCENES, merged, encoder=encoder)
    assert (again.images.encoded, again.images.reused, again.captions.encoded) == (0, 40, 0)


def test_killed_shards_go_on_and_take_out_what_is_gone(tmp_path: Path, encoder: Encoder) -> None:
    folder, merged = write_folder(tmp_path / "pictures", 24), tmp_path / "all"
    (folder / "0003.jpg").write_bytes(b"broken")
    parts = [tmp_path / f"part-{n}" for n in (1, 2)]

    def encode_shard(number: int) -> EncodeReport:
        options = EncodeOptions(shard=JobShard(number, 2), part_rows=4, batch_size=3)
        return encode(f"folder:{folder}", parts[number - 1], encoder=encoder, options=options)

    mine = [f for f in sorted(folder.glob("*.jpg")) if JobShard(1, 2).holds(f.name)]
    killed = in_child(
        held_at(mine[8].name, lambda: encode_shard(1)),
        kill_when=lambda: list(parts[0].glob("shards/items-*.parquet")),
    )
    assert killed.code == -signal.SIGKILL, killed.output
    encode_shard(2)
    job = merge_stores(parts, merged).jobs[0]
    assert (job.missing, job.unfinished) == ((), (1,))
    theirs = next(f for f in folder.glob("*.jpg") if f not in mine and f.name != "0003.jpg")
    for gone in (mine[-1], theirs):
        gone.unlink()
    assert [encode_shard(n).removed for n in (1, 2)] == [0, 1]
    done = merge_stores(parts, merged)
    assert (done.removed, done.jobs[0].unfinished) == (1, ())
    encode(f"folder:{folder}", tmp_path / "whole", encoder=encoder)
    one, other = (open_store(path) for path in (tmp_path / "whole", merged))
    check_same(one, other)
    assert [f.item_id for f in other.failures()] == ["0003.jpg"]
    again = encode(f"folder:{folder}", merged, encoder=encoder)
    assert [again.images.encoded, again.images.reused, again.images.failed] == [0, 21, 1]


# --- as typed ---


def test_the_array_of_the_docs_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text(encoding="utf-8")
    script, after = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert "#SBATCH --array=1-64\n" in script
    folder = write_folder(tmp_path / "photos", 5)
    line = script.splitlines()[-1].replace("/64", "/2").replace("/data/photos", str(folder))
    line = line.replace("Salesforce/blip-itm-base-coco", "vlre-tiny")
    said = ""
    lines = [line.replace("$SLURM_ARRAY_TASK_ID", n) for n in "12"]
    for typed in [*lines, *after.replace("of-64", "of-2").splitlines()]:
        words = [name for word in shlex.split(typed)[1:] for name in glob(word) or [word]]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        said += result.stdout
    assert "embeddings: 5 items of 2 stores, 4 files linked\n" in said
    assert f"  job:       2 of 2 shards of folder:{folder}\n" in said


def _encode(*arguments: str, **env: str) -> Result:
    given = ["encode", "scenes:6?seed=7", *arguments]
    cleared = dict.fromkeys([*SLURM, "RANK", "WORLD_SIZE"])
    return CliRunner().invoke(main, given, env={**cleared, **env})


def _slurm(task: int, first: int, last: int, count: int) -> dict[str, str]:
    return dict(zip(SLURM, map(str, (task, first, last, count)), strict=True))


def test_where_a_shard_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = _encode("--shard", "auto", **_slurm(0, 0, 2, 3))
    assert "shard 1/3, by SLURM_ARRAY_TASK_ID=0 of 0-2\n" in array.stderr
    rank = _encode("--shard", "auto", RANK="2", WORLD_SIZE="3", VLRE_STORE="ranks")
    assert "shard 3/3, by RANK=2 and WORLD_SIZE=3\n" in rank.stderr
    assert _encode("--shard", "2/3", "--store", "x-{shard}/s").exit_code == 0
    assert sorted(map(str, Path().glob("**/store.json"))) == [
        "embeddings-1-of-3/store.json",
        "ranks-3-of-3/store.json",
        "x-2-of-3/s/store.json",
    ]
    # The variables alone change nothing, and a store holds one shard.
    assert _encode("--limit", "1", RANK="2", WORLD_SIZE="3").exit_code == 0
    assert (tmp_path / "embeddings").exists()
    other = _encode("--shard", "1/3", "--store", "x-2-of-3/s")
    assert other.exit_code == 1
    assert "Error: x-2-of-3/s holds shard 2/3 of scenes:7, not 1/3\n" in other.stderr
    assert "hint: give each shard a --store of its own" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        ("--shard 9/8", {}, "there is no shard 9/8"),
        ("--shard 0/8", {}, "there is no shard 0/8"),
        ("--shard 3", {}, "'3' is no shard"),
        ("--shard auto", {}, "neither SLURM_ARRAY_TASK_ID nor RANK is set"),
        ("--shard auto", {"RANK": "0"}, "WORLD_SIZE is not set"),
        ("--shard auto", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ("--shard auto", {**_slurm(1, 1, 2, 2), "RANK": "0"}, "both SLURM_ARRAY_TASK_ID and RANK"),
        ("--shard auto", _slurm(5, 5, 5, 1), "the array's 1 tasks from 5 to 5 are no whole array"),
        ("--shard auto", _slurm(0, 0, 12, 4), "the array's 4 tasks from 0 to 12 are no whole"),
        ("--store x-{shard}", {}, "{shard} in --store stands for what --shard says"),
    ],
)
def test_what_is_no_shard_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    env: dict[str, str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _encode(*arguments.split(), **env)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not list(tmp_path.iterdir())
