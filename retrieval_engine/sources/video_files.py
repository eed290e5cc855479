"""Opens video files by PyAV: how long one is, and where its shots begin.

Times are whole milliseconds from the first frame's own time.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import MissingExtra, SourceError, StoreError
from retrieval_engine.machine import cache_folder
from retrieval_engine.sources.reading import one_line

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Playlists and the like would open other files, or addresses, of their own choice.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,m4v,h264,hevc,mxf,dv",
}
_MISSING_MS = 1500
"""A file that ends so much before the time it promises has been cut off."""
_PROMISING = {"mov", "matroska", "avi", "asf"}
"""Kinds of files that say how long they are; of others FFmpeg may have guessed it."""
_SHOT_THRESHOLD = 10  # scdet's own; the filter's documentation calls 8 to 14 good
_SHOT_WIDTH = 320
_REORDERED = 17  # no codec lets more pictures overtake one


def check_video() -> None:
    """See that videos can be read.

    Raises:
        MissingExtra: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MissingExtra("av", "video") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How much of a video there is.

    Attributes:
        end_ms: end of the last frame; 0 where none can be had.
        fault: why not all of it can be; empty for most.
    """

    end_ms: int
    fault: str = ""


def length_of(path: Path) -> Length:
    """How long a file is, by its headers and the packets near its end; nothing is decoded."""
    try:
        return _measured(open_video(path))
    except SourceError as error:
        return Length(end_ms=0, fault=error.message)


def shots_of(path: Path, mtime_ns: int, size_bytes: int) -> tuple[list[int], str]:
    """Where each shot of a file begins, in milliseconds, and why there are not all of them.

    By FFmpeg's `scdet` filter: a shot begins where the mean difference of all pixels from the frame
    before, and its change from the difference there, are both above a threshold. All frames are
    decoded once; what was found is kept in the cache folder for as long as the file does not change.
    """
    state = json.dumps([str(path), mtime_ns, size_bytes, _SHOT_THRESHOLD, _SHOT_WIDTH])
    kept = cache_folder() / "shots" / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        return [int(ms) for ms in json.loads(kept.read_bytes())], ""
    shots: list[int] = []
    try:
        with translated("it is damaged"):
            shots.extend(_shots(open_video(path)))
    except SourceError as error:
        return shots, error.message
    with suppress(OSError, StoreError):  # it is a cache
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, json.dumps(shots).encode())
    return shots, ""


def open_video(path: Path) -> "Video":
    """Open a file at its first stream of moving pictures.

    Raises:
        SourceError: it is no video, or holds no pictures.
        MissingExtra: PyAV is not installed.
    """
    check_video()
    import av
    from av.stream import Disposition

    with translated("it cannot be read as a video"):
        container = av.open(str(path), options=_OPTIONS)
        streams = container.streams.video
        moving = (s for s in streams if not s.disposition & Disposition.attached_pic)
        stream = next(moving, None)
        if stream is None or stream.time_base is None:
            container.close()
            raise SourceError("it has no video stream")
        stream.thread_type = "SLICE"  # with a thread a frame FFmpeg may miss that one is damaged
        early = list(islice((p for p in container.demux(stream) if p.size), _REORDERED))
        shown = [p.dts if p.pts is None else p.pts for p in early]
        start = min((time for time in shown if time is not None), default=0)
        origin = min((p.dts for p in early if p.dts is not None), default=start)
        return Video(container=container, stream=stream, start=start, origin=min(start, origin))


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Whatever FFmpeg says within the block is a `SourceError`."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or one_line(error)
        raise SourceError(f"{what}: {said}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """An open file; it closes when nobody holds it any more.

    Attributes:
        container: the file, a few packets on.
        stream: its pictures.
        start: when the first one is shown, in units of the stream.
        origin: when the first packet is decoded, which may be earlier.
    """

    container: "InputContainer"
    stream: "VideoStream"
    start: int
    origin: int

    def ms_of(self, frame: "VideoFrame") -> int:
        """When a frame is shown, from the first one on."""
        return int(1000 * ((frame.pts or 0) - self.start) * self.unit)

    @property
    def unit(self) -> Fraction:
        """Seconds of one unit of the stream."""
        return self.stream.time_base or Fraction(1, 1000)


def _measured(video: Video) -> Length:
    container, stream, start, promised = video.container, video.stream, 0, 0
    start = int(1000 * video.start * video.unit)
    if stream.duration:
        promised = int(1000 * stream.duration * video.unit)
    elif container.duration:
        promised = container.duration // 1000
    video_end, end = _ends(video, start + promised) if promised else (0, 0)
    if not video_end or end + _MISSING_MS < start + promised:
        video_end, end = _ends(video, None)  # the whole file, packet by packet
    if not video_end:
        return Length(end_ms=0, fault="it has no frames")
    fault = ""
    kinds = set(container.format.name.split(","))
    if kinds & _PROMISING and promised and end + _MISSING_MS < start + promised:
        fault = f"it ends at {stamp(end - start)} of {stamp(promised)}: it was cut off"
    return Length(end_ms=video_end - start, fault=fault)


def _ends(video: Video, after_ms: int | None) -> tuple[int, int]:
    """End of the last picture and of the last packet of any kind; read from a key frame on."""
    import av

    video_end = end = 0
    with suppress(av.FFmpegError):  # a kind of file that has no index
        video.container.seek((after_ms or 0) * 1000, backward=True)
    with suppress(av.FFmpegError, OSError):  # what could be read counts
        for packet in video.container.demux():
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or not packet.size:
                continue
            until = int(1000 * (time + (packet.duration or 0)) * packet.time_base)
            end = max(end, until)
            if packet.stream.index == video.stream.index:
                video_end = max(video_end, until, 1)
    return video_end, end


def _shots(video: Video) -> Iterator[int]:
    import av
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(template=video.stream)
    narrow, seen = (
        graph.add("scale", f"{_SHOT_WIDTH}:-2"),
        graph.add("scdet", f"t={_SHOT_THRESHOLD}"),
    )
    source.link_to(narrow)
    narrow.link_to(seen)
    seen.link_to(graph.add("buffersink"))
    graph.configure()
    video.container.seek(0, backward=True)
    is_first = True
    for frame in chain(video.container.decode(video.stream), [None]):
        graph.push(frame)
        with suppress(av.BlockingIOError, av.EOFError):  # it wants more, or it was all
            while True:
                out: Any = graph.pull()
                if is_first or "lavfi.scd.time" in out.metadata:
                    yield 0 if is_first else video.ms_of(out)
                is_first = False


def stamp(ms: int) -> str:
    """A time as `00:02:13.000`."""
    seconds, rest = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"
