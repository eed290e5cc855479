"""Pictures with random harm done to them: decoded, or refused each alone with a reason."""

import io
import json
import random
from functools import partial
from pathlib import Path

from PIL import Image

from retrieval_engine.errors import DecodeError
from retrieval_engine.sources.decode import decode
from retrieval_engine.testing.images import photo
from tests.campaign.tally import Tally
from tests.campaign.world import World
from tests.children import in_child, vlre

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO")
_BATCH = 250


def mutate_images(world: World, tally: Tally, count: int, rng: random.Random) -> None:
    """Decode `count` of them in children, and encode the last batch as a folder."""
    originals = [_encoded(kind, seed) for kind in KINDS for seed in range(3)]
    pictures: list[bytes] = []
    for start in range(0, count, _BATCH):
        pictures = [mutated(rng.choice(originals), rng) for _ in range(min(_BATCH, count - start))]
        ended = in_child(partial(_decode_all, pictures))
        bad = json.loads(ended.output.strip().split("\n")[-1]) if ended.code == 0 else {}
        for number in range(len(pictures)):
            with tally.trial("mutated images", f"number {start + number}"):
                assert ended.code == 0, (
                    f"the process ended with {ended.code}: {ended.output[-300:]}"
                )
                assert str(number) not in bad, bad.get(str(number))
    _encode_folder(world, tally, pictures[: max(40, count // 20)])


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, cut, doubled, or taken out."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = (
            rng.randrange(len(spoilt))
            if rng.random() < 0.6
            else rng.randrange(min(60, len(spoilt)))
        )
        way = rng.randrange(5)
        if way == 0:
            spoilt[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            spoilt[at] = rng.choice((0, 255, rng.randrange(256)))
        elif way == 2:
            del spoilt[at : at + rng.randrange(1, 20)]
        elif way == 3:
            spoilt[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            del spoilt[max(1, at) :]
        if len(spoilt) < 2:
            return bytes(spoilt)
    return bytes(spoilt)


def _encoded(kind: str, seed: int) -> bytes:
    out = io.BytesIO()
    picture = photo(seed, (48 + seed, 40))
    (picture.resize((32, 32), Image.Resampling.BILINEAR) if kind == "ICO" else picture).save(
        out, kind
    )
    return out.getvalue()


def _decode_all(pictures: list[bytes]) -> None:
    bad = {}
    for number, data in enumerate(pictures):
        try:
            decode(data)
        except DecodeError as error:
            if not str(error).strip() or "\n" in str(error):
                bad[number] = f"no reason in one line: {error!r}"
        except Exception as error:  # noqa: BLE001 - whatever else it is, it fell
            bad[number] = f"{type(error).__name__}: {error}"
    print(json.dumps(bad))  # noqa: T201


def _encode_folder(world: World, tally: Tally, pictures: list[bytes]) -> None:
    folder: Path = world.root / "mutated"
    folder.mkdir()
    for number, data in enumerate(pictures):
        (folder / f"{number:04}.jpg").write_bytes(data)
    with tally.trial("mutated images, encoded", f"{len(pictures)} in a folder"):
        arguments = ("--model", world.model, "--store", world.root / "mutated-store", "--json")
        ended = in_child(vlre("encode", folder, *arguments))
        ended.check_told()
        assert ended.code in (0, 3)
        report = json.loads(next(x for x in ended.output.split("\n") if x.startswith("{")))
        tallied = report["images"]
        assert sum(tallied.values()) == len(pictures), tallied
