"""Small videos of drawn scenes, made by PyAV, for tests."""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.sources import open_source, read_item

Pixels = NDArray[np.uint8]
SIZE = 96


def scenes(count: int, *, seed: int = 3) -> list[Pixels]:
    """(h, w, 3) drawn scenes."""
    items = open_source(f"scenes:{count}?seed={seed}&size={SIZE}").items()
    pictures = (Image.open(io.BytesIO(read_item(item))).convert("RGB") for item in items)
    return [np.asarray(picture) for picture in pictures]


def shots(lengths: Sequence[int], *, seed: int = 3) -> Iterator[Pixels]:
    """Frames of shots of so many frames each; a scene that moves by a pixel a frame."""
    for scene, length in zip(scenes(len(lengths), seed=seed), lengths, strict=True):
        for number in range(length):
            yield np.roll(scene[: SIZE * 3 // 4], number, axis=1)


def write_video(
    path: Path,
    frames: Iterator[Pixels] | Sequence[Pixels],
    *,
    rate: int = 5,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    sound_s: int = 0,
) -> Path:
    """A video of these frames.

    Args:
        path: its ending names the container.
        frames: (h, w, 3) each.
        rate: frames a second.
        times_ms: when each is shown, where the rate varies.
        codec: its encoder; key frames are every 8 frames, frames between look ahead where it can.
        sound_s: length of a silent sound track beside it.
    """
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        coded = {"bf": "2", "b_strategy": "0", "preset": "ultrafast", "g": "8"}
        stream: Any = container.add_stream(codec, rate=rate, options=coded)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", SIZE, SIZE * 3 // 4
        sound = container.add_stream("aac", rate=8000) if sound_s else None
        unit = Fraction(1, 1000)
        if times_ms is not None:
            stream.codec_context.time_base = unit
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = Fraction(1, rate) if times_ms is None else unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(list(_silence(sound, sound_s)))
    return path


def write_sound(path: Path) -> Path:
    """A file of a video's kind with sound alone."""
    with av.open(str(path), "w") as container:
        container.mux(list(_silence(container.add_stream("aac", rate=8000), 1)))
    return path


def _silence(stream: Any, seconds: int) -> Iterator[Any]:
    for number in range(0, 8000 * seconds, 1000):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, number
        yield from stream.encode(frame)
    yield from stream.encode(None)


def turn_right(path: Path) -> None:
    """Say in an MP4, as a phone does that is held upright, that it is to be turned by 90 degrees."""
    data, one = path.read_bytes(), 0x10000

    def matrix(*rows: int) -> bytes:
        return b"".join(value.to_bytes(4, "big", signed=True) for value in rows)

    before = matrix(one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    after = matrix(0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    at = data.index(b"tkhd")
    head, track = data[:at], data[at:]
    assert before in track
    path.write_bytes(head + track.replace(before, after, 1))


def decoded(path: Path) -> list[tuple[int, Pixels]]:
    """Every frame of a file with its time in milliseconds, from start to end without a seek."""
    with av.open(str(path)) as container:
        frames: list[Any] = list(container.decode(video=0))
    start = frames[0].pts
    return [
        (int(1000 * (frame.pts - start) * frame.time_base), frame.to_ndarray(format="rgb24"))
        for frame in frames
    ]


def shown_at(frames: Sequence[tuple[int, Pixels]], ms: int) -> Pixels:
    """The last of the frames that begins no later."""
    return [pixels for time, pixels in frames if time <= ms][-1]


def ppm(pixels: Pixels) -> bytes:
    """Pixels as a binary PPM."""
    return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
