"""`video:FILE|DIR`: frames of video files, each with its time; by PyAV, the extra `video`.

    video:holiday.mp4                  a frame a second
    video:clips?every=500ms            likewise, of all videos below a folder
    video:clips?scenes                 the first frame of each shot, by FFmpeg's `scdet` filter

A frame's id is its file, relative to the folder, and its time: `beach/a.mp4@00:02:13.000`; the frame
is the one that a player shows then. `video` and `time_s` are its metadata, for filters. A file that
cannot be read, or ends too early, is an item that fails; the frames that it has are read.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from retrieval_engine.durable import refuse_url
from retrieval_engine.errors import SourceEmpty, SourceError, UsageError
from retrieval_engine.records import Item
from retrieval_engine.sources.cleaning import CleanedSource
from retrieval_engine.sources.image_folder import size_and_time
from retrieval_engine.sources.source_name import Options, existing_directory, existing_file
from retrieval_engine.sources.video_files import check_video, length_of, shots_of, stamp
from retrieval_engine.sources.video_frames import frame_at
from retrieval_engine.sources.walk import UNREADABLE, Walk

_LOOKED_FOR = (
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv"
)
ENDINGS = frozenset(_LOOKED_FOR.split())
_EVERY = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min)?", re.ASCII)
_UNITS = {"ms": 1, "s": 1000, "min": 60_000}


def open_source(argument: str, options: Mapping[str, str]) -> "VideoSource":
    """Frames of a video, or of all videos below a folder.

    Args:
        argument: path of the file or folder.
        options: `every` with a time such as `2s`, `500ms` or `1min`, or `scenes`.

    Raises:
        MissingExtra: PyAV is not installed.
        UsageError: an option is unknown or has no such value.
        SourceError: there is no such file or folder, or no video in it.
    """
    given = Options("video", options, ("every", "scenes"))
    if given.flag("scenes") and given.text("every"):
        raise UsageError("video: every and scenes contradict each other: give one")
    step_ms = 0 if given.flag("scenes") else _milliseconds(given.text("every", "1s"))
    refuse_url(Path(argument), "a video")
    path = Path(argument).expanduser()
    path = existing_directory(path) if path.is_dir() else existing_file(path)
    check_video()
    source = VideoSource(path, step_ms)
    if next(source.files(), None) is None:
        if source.is_partial:
            raise SourceError(f"{path} or a folder in it cannot be read")
        hint = f"looked for files ending in {_LOOKED_FOR}"
        raise SourceEmpty(f"no video in {path}", source=source.name, hint=hint)
    return source


def read_bytes(uri: str) -> bytes:
    """The frame under a uri, `video:FILE#MILLISECONDS,STEP`, as a binary PPM.

    Raises:
        SourceError: the file changed or is gone, or has no such frame.
        MissingExtra: PyAV is not installed.
    """
    path, _, place = uri.removeprefix("video:").rpartition("#")
    numbers = place.split(",")
    if not path or len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
        raise SourceError(f"{uri!r} is no frame", hint="a frame is named video:FILE#MS,STEP")
    try:
        return frame_at(Path(path), *map(int, numbers))
    except SourceError as error:
        raise SourceError(f"{path}: {error.message}", hint=error.hint) from error


class VideoSource(CleanedSource):
    """Frames of videos, in the order of the files' paths and of time; see the module.

    Args:
        path: of a file or a folder, absolute.
        step_ms: time from frame to frame; 0 for a frame of each shot.
    """

    def __init__(self, path: Path, step_ms: int) -> None:
        asked = f"every={_words(step_ms)}" if step_ms else "scenes"
        super().__init__(f"video:{path}?{asked}", "")
        self._path, self._step_ms = path, step_ms

    def count(self) -> int | None:
        """Frames of all files, by their lengths; None where shots must be looked for."""
        if not self._step_ms:
            return None
        return sum(1 for _, path in self.files() for _ in self._times(path)[0])

    def files(self) -> Iterator[tuple[str, Path]]:
        """The videos, each with its path relative to the folder."""
        if self._path.is_file():
            yield self._path.name, self._path
            return
        walk = Walk(self._path, suffixes=ENDINGS, noun="videos")
        for file in walk.pictures():
            yield file.id, self._path / file.id
        # what is in a folder that cannot be read is not gone
        self.is_partial = self.is_partial or walk.skipped[UNREADABLE] > 0
        self.notes[:] = walk.notes()

    def _items(self) -> Iterator[Item]:
        for name, path in self.files():
            times, fault = self._times(path)
            size_bytes, mtime_ns = size_and_time(str(path))
            for ms in times:
                yield Item(
                    id=f"{name}@{stamp(ms)}",
                    uri=f"video:{path}#{ms},{self._step_ms}",
                    mtime_ns=mtime_ns,
                    version=str(size_bytes),
                    meta={"video": name, "time_s": ms / 1000},
                )
            if fault:
                yield Item(id=name, uri=str(path), fault=fault)

    def _times(self, path: Path) -> tuple[range | list[int], str]:
        """Times of a file's frames, and what is wrong with it."""
        length = length_of(path)
        if self._step_ms:
            return range(0, length.end_ms, self._step_ms), length.fault
        size_bytes, mtime_ns = size_and_time(str(path))
        times, fault = shots_of(path, mtime_ns, size_bytes) if length.end_ms else ([], "")
        return times, length.fault or fault


def _milliseconds(text: str) -> int:
    found = _EVERY.fullmatch(text)
    step_ms = round(float(found[1]) * _UNITS[found[2] or "s"]) if found else 0
    if not step_ms:
        raise UsageError(f"video: every={text}; allowed: a time such as 2s, 500ms or 1min")
    return step_ms


def _words(step_ms: int) -> str:
    return f"{step_ms}ms" if step_ms % 1000 else f"{step_ms // 1000}s"
