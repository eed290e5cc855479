"""The frame of a video that is shown at a time.

It is the one that a player shows then: the last that begins no later. So it depends neither on the
frame rate, which may vary, nor on how it was reached: a seek goes to a key frame before it, and what
lies between is decoded.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.video_files import open_video, stamp, translated

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_AHEAD_MS = 10_000  # farther than this it is quicker to seek than to decode all between
_KEPT_BYTES, _KEPT_FILES = 128 << 20, 2


def frame_at(path: Path, ms: int, step_ms: int = 0) -> bytes:
    """The frame shown at a time, upright, as a binary PPM.

    Args:
        path: the file.
        ms: milliseconds from the first frame.
        step_ms: distance of the frames that will be asked for too, or 0 for no such grid: those
            that are passed on the way are kept for other threads.

    Raises:
        SourceError: the file changed or is gone, it is damaged there, or it is no video.
        MissingExtra: PyAV is not installed.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    return _cursor(path, state.st_mtime_ns).ppm(ms, step_ms)


class _Cursor:
    """An open file at some frame; steps forward, seeks where that is far, one thread at a time."""

    def __init__(self, path: Path, mtime_ns: int) -> None:
        self.mtime_ns = mtime_ns
        self._lock = threading.Lock()
        self._video = open_video(path)
        self._frames: Iterator[VideoFrame] = iter(())
        self._now: VideoFrame | None = None
        self._next: VideoFrame | None = None
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def ppm(self, ms: int, step_ms: int) -> bytes:
        """See `frame_at`."""
        with self._lock:
            if ms in self._kept:
                return self._kept[ms]
            try:
                with translated(f"it is damaged at {stamp(ms)}"):
                    return self._shown(ms, step_ms)
            except BaseException:
                self._now = None  # where it stands is not known
                raise

    def _shown(self, ms: int, step_ms: int) -> bytes:
        if self._now is None or not 0 <= ms - self._video.ms_of(self._now) <= _AHEAD_MS:
            self._seek(ms)
        while self._next is not None and (until := self._video.ms_of(self._next)) <= ms:
            if step_ms and self._now is not None and not self._now.is_corrupt:
                grid = (until - 1) // step_ms * step_ms
                if self._video.ms_of(self._now) <= grid:
                    self._keep(grid, self._now)
            self._now, self._next = self._next, next(self._frames, None)
        if self._now is None:
            raise SourceError(f"there is no frame at {stamp(ms)}")
        return self._keep(ms, self._now)

    def _seek(self, ms: int) -> None:
        """Stand at a key frame that is shown no later, or at the first frame."""
        video, back_ms = self._video, 0
        while True:
            at_ms = max(0, ms - back_ms)
            offset = video.start + int(at_ms / 1000 / video.unit) if at_ms else video.origin
            video.container.seek(offset, stream=video.stream, backward=True)
            frames = video.container.decode(video.stream)
            self._frames = (frame for frame in frames if frame.pts is not None)
            # what follows a key frame but is shown before it needs frames that were not read
            self._now = next((f for f in self._frames if f.key_frame or not at_ms), None)
            if not at_ms or (self._now is not None and video.ms_of(self._now) <= ms):
                break
            back_ms = 2 * back_ms or 1000
        self._next = next(self._frames, None)

    def _keep(self, ms: int, frame: "VideoFrame") -> bytes:
        if ms not in self._kept:
            self._kept[ms] = _ppm(frame, ms)
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return self._kept[ms]


def _ppm(frame: "VideoFrame", ms: int) -> bytes:
    """Pixels as a player shows them: in RGB, turned as the file says."""
    if frame.is_corrupt:
        raise SourceError(f"it is damaged at {stamp(ms)}")
    pixels = frame.to_ndarray(format="rgb24")
    pixels = np.rot90(pixels, round(frame.rotation / 90))  # both count counter-clockwise
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + np.ascontiguousarray(pixels).tobytes()


_cursors: OrderedDict[Path, _Cursor] = OrderedDict()
_cursors_lock = threading.Lock()


def _cursor(path: Path, mtime_ns: int) -> _Cursor:
    """The open file; those asked for last are kept open while the process runs."""
    with _cursors_lock:
        known = _cursors.pop(path, None)
        if known is None or known.mtime_ns != mtime_ns:
            known = _Cursor(path, mtime_ns)
        _cursors[path] = known
        while len(_cursors) > _KEPT_FILES:  # the file is closed once nobody reads from it
            _cursors.popitem(last=False)
    return known
