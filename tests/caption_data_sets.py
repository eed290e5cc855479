"""Captions of public data sets, where they are at hand, and digests that stand for their tokens."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1000
EVERY = 4


def data_set_captions(folder: Path) -> list[str]:
    """Every fourth of the distinct captions of Flickr8k, Flickr30k and COCO, sorted."""

    def text(name: str) -> str:
        data = (folder / name).read_bytes()
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    def everything() -> Iterator[str]:
        for name in (
            "flickr8k_text/Flickr8k.token.txt.gz",
            "memorylens_blip/blip_captions.token.txt",
        ):
            for line in text(name).splitlines():
                yield line.split("\t", 1)[1]
        for name in ("flickr30k/flickr30k_test.json", "flickr30k/flickr30k_val.json"):
            for row in json.loads(text(name)):
                yield from row["captions"]
        for name in ("coco/karpathy_test_captions.json.gz", "coco/karpathy_val_captions.json.gz"):
            for row in json.loads(text(name)):
                yield from row["captions"]

    return sorted(set(everything()))[::EVERY]


def digest(block: list[str]) -> str:
    """Sixteen hex digits that stand for the tokens of a block of captions."""
    return hashlib.sha256("\n".join(block).encode()).hexdigest()[:16]
