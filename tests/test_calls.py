"""How many own calls lie between a command and the library that does its work, all by `Engine`."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main

Event = Callable[[FrameType, str, Any], bool]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("encode", "scenes:4?seed=3", "--features", "itc,tokens")


def run(*command: str) -> None:
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def chain(looked_for: Event, *command: str) -> list[str]:
    """The package's own calls, without those in `cli/`, where the event is seen last."""
    seen: list[list[str]] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if looked_for(frame, event, argument):
            seen.append(own(frame))

    def own(frame: FrameType | None) -> list[str]:
        names = []
        while frame:
            parts = Path(frame.f_code.co_filename).parts
            if "retrieval_engine" in parts and "cli" not in parts:
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back
        return names[::-1]

    sys.setprofile(watch)
    try:
        run(*command)
    finally:
        sys.setprofile(None)
    return seen[-1]


def into_faiss(frame: FrameType, event: str, called: Any) -> bool:
    return event == "c_call" and called.__name__.endswith("_search")


def into(name: str) -> Event:
    return lambda frame, event, _: event == "call" and frame.f_code.co_qualname == name


def test_a_search_is_four_calls() -> None:
    run("index")
    assert chain(into_faiss, "search", "a dog", "-k", "2") == [
        "Searcher.search",
        "NearestImages.search",
        "GroupedIndex.search",
        "FaissRows.search_rows",
    ]


def test_encoding_is_six_calls() -> None:
    assert chain(into("BlipEncoder.vision_tower"), "encode", "scenes:2?seed=4") == [
        "Engine.add",
        "encode",
        "in_lanes",
        "computed.<locals>.compute",
        "ImageEncoder.encode_images",
        "BlipEncoder.vision_tower",
    ]


def test_recall_is_five_calls() -> None:
    assert chain(into("block_scores"), "eval", "--recall") == [
        "Engine.evaluate",
        "evaluate_store",
        "gallery_recall",
        "rank",
        "block_scores",
    ]


def test_a_caption_begins_after_eight_calls() -> None:
    assert chain(into("BlipCaptioner.begin"), "caption") == [
        "CaptionJob.run",
        "CaptionRun.__call__",
        "CaptionRun._here",
        "in_lanes",
        "CaptionRun._here.<locals>.written",
        "Author.compute",
        "write_captions",
        "BlipCaptioner.begin",
    ]
