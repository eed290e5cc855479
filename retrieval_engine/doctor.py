"""Checks that this machine gives the numbers it should, one finding per line.

The goldens in `goldens/` are outputs of the authors' own code (salesforce/BLIP @ 056a169 with
transformers 4.15, LAVIS @ 506965b with transformers 4.33) for tiny random checkpoints, in float32:
the whole way from picture and caption to features and match logits is walked here and compared.
"""

import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.machine import version_of
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.models.checkpoint import shipped
from retrieval_engine.network import hub_is_reachable
from retrieval_engine.records import DEFAULT_MODEL

GOLDENS = Path(__file__).parent / "checkpoints" / "goldens"
# Largest absolute difference allowed: on a CPU what another BLAS may move, tight enough that a
# wrong eps shows (7e-5 on states); a GPU sums in another order.
_ON_CPU = {"pixels": 1e-6, "tokens": 1e-5, "itc": 5e-6, "logits": 1e-4}
_ELSEWHERE = {"pixels": 1e-6, "tokens": 1e-4, "itc": 5e-5, "logits": 5e-4}
# What is compared, and by which of these limits.
_KINDS = {
    "pixels": "pixels",
    "tokens": "tokens",
    "image_itc": "itc",
    "text_itc": "itc",
    "itc_scores": "itc",
    "itm_logits": "logits",
}
_OPTIONAL = {"faiss-cpu": "cpu", "faiss-gpu": "gpu", "datasets": "data", "matplotlib": "plots"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at.
        ok: whether it is as it must be.
        detail: what was seen, one line.
    """

    check: str
    ok: bool
    detail: str


def examine(device: str = "auto") -> Iterator[Finding]:
    """Look at everything, one finding after the other; none of them waits for a network.

    Args:
        device: as in `models.open_encoder`; the goldens are checked on the CPU and on it.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("libraries", _libraries),
        ("extras", _extras),
        ("device", partial(_device, device)),
        ("hub", _hub),
        ("default model", partial(_default_model, device)),
    ]
    places = dict.fromkeys(["cpu", _device_name(device)])
    for place in places:
        for folder in (GOLDENS / "blip", GOLDENS / "blip2"):
            check = f"golden {folder.name} on {place}"
            checks.append((check, partial(check_golden, folder, place)))
    for name, check_it in checks:
        try:
            yield check_it()
        except Exception as error:  # noqa: BLE001 - whatever a foreign version raises is the finding
            reason = (str(error).splitlines() or [""])[0]
            yield Finding(check=name, ok=False, detail=f"{type(error).__name__}: {reason}")


def check_golden(folder: Path, device: str) -> Finding:
    """Compare an encoder's float32 features and match logits with the authors'.

    Args:
        folder: checkpoint in hub layout, with expected.npz.
        device: where to run.
    """
    encoder: Any = open_encoder(str(folder), device=device, dtype="float32")
    with np.load(folder / "expected.npz") as arrays:
        expected = dict(arrays)
    allowed = _ON_CPU if device == "cpu" else _ELSEWHERE
    found = _features(encoder, [str(text) for text in expected["captions"]])
    worst: dict[str, float] = {}
    for name, kind in _KINDS.items():
        off = float(np.abs(found[name] - expected[name]).max())
        worst[kind] = max(worst.get(kind, 0.0), off if np.isfinite(off) else float("inf"))
    ok = all(worst[kind] <= limit for kind, limit in allowed.items())
    seen = ", ".join(f"{kind} {off:.1e} (≤ {allowed[kind]:g})" for kind, off in worst.items())
    return Finding(check=f"golden {folder.name} on {device}", ok=ok, detail=f"off by {seen}")


def _features(encoder: Any, captions: list[str]) -> dict[str, NDArray[Any]]:
    from PIL import Image

    from retrieval_engine.models.device import normalized_pixels

    files = sorted((GOLDENS / "pictures").glob("*.png"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    pixels = np.stack([encoder.preprocessor.pixels(picture) for picture in pictures])
    images = encoder.encode_images(pixels, ["itc", "tokens"])
    texts = encoder.encode_texts(captions, ["itc"])["itc"][:, 0]
    pairs = np.array([(i, j) for i in range(len(files)) for j in range(len(captions))])
    logits = encoder.matcher().score_pairs(lambda rows: images["tokens"][rows], captions, pairs)
    return {
        "pixels": normalized_pixels(pixels, encoder.preprocessor, encoder.device).cpu().numpy(),
        "tokens": images["tokens"],
        "image_itc": images["itc"],
        "text_itc": texts,
        "itc_scores": np.einsum("iqd,td->itq", images["itc"], texts).max(axis=-1),
        "itm_logits": logits.reshape(len(files), -1),
    }


def _python() -> Finding:
    version = platform.python_version()
    detail = f"{version} on {platform.system()} {platform.machine()}"
    return Finding(check="python", ok=sys.version_info >= (3, 11), detail=detail)


def _libraries() -> Finding:
    """Versions of what the package requires, against what it requires."""
    from packaging.requirements import Requirement

    seen, wrong = [], []
    for line in importlib.metadata.requires("vlre") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name) or None
        seen.append(f"{requirement.name} {version}")
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, needed {requirement.specifier}")
    detail = "; ".join(wrong) if wrong else ", ".join(seen)
    return Finding(check="libraries", ok=not wrong, detail=detail)


def _extras() -> Finding:
    """Optional libraries; faiss-cpu and faiss-gpu overwrite each other's files."""
    found = {name: version_of(name) for name in _OPTIONAL}
    if found["faiss-cpu"] and found["faiss-gpu"]:
        detail = "faiss-cpu and faiss-gpu are both installed and overwrite each other: remove one"
        return Finding(check="extras", ok=False, detail=detail)
    have = [f"{name} {version}" for name, version in found.items() if version]
    one_faiss = found["faiss-cpu"] or found["faiss-gpu"]
    lack = [
        f"{name} (vlre[{_OPTIONAL[name]}])"
        for name, version in found.items()
        if not version and not (one_faiss and name.startswith("faiss"))
    ]
    detail = ", ".join(have) + (f"; not installed: {', '.join(lack)}" if lack else "")
    return Finding(check="extras", ok=True, detail=detail)


def _device_name(device: str) -> str:
    from retrieval_engine.models.device import pick_device

    return str(pick_device(device))


def _device(device: str) -> Finding:
    """That the device multiplies matrices, and what its half precision is."""
    import torch

    from retrieval_engine.models.device import pick_device, pick_dtype

    place = pick_device(device)
    half = pick_dtype("auto", place)
    a = torch.linspace(-1, 1, 64 * 64).view(64, 64)
    off = float(((a.to(place) @ a.to(place)).cpu() - a @ a).abs().max())
    name = f"{torch.get_num_threads()} threads"
    if place.type == "cuda":
        memory = torch.cuda.get_device_properties(place).total_memory
        name = f"{torch.cuda.get_device_name(place)}, {memory / 2**30:.0f} GiB"
    detail = f"{place} ({name}), towers in {str(half).removeprefix('torch.')}"
    return Finding(check="device", ok=off < 1e-3, detail=detail)


def _hub() -> Finding:
    started = time.monotonic()
    if hub_is_reachable():
        detail = f"online: the model hub answers in {time.monotonic() - started:.1f} s"
    else:
        detail = "offline: shipped models, local directories and cached hub models work"
    return Finding(check="hub", ok=True, detail=detail)


def _default_model(device: str) -> Finding:
    if DEFAULT_MODEL not in shipped():
        detail = f"{DEFAULT_MODEL} is not in this installation: install it again"
        return Finding(check="default model", ok=False, detail=detail)
    encoder: Encoder = open_encoder(DEFAULT_MODEL, device=device)
    [row] = encoder.encode_texts(["a dog on grass"], ["itc"])["itc"]
    length = float(np.linalg.norm(row[0]))
    detail = f"{DEFAULT_MODEL} loads, {encoder.spec.image_size} pixels, {row.shape[-1]} dimensions"
    return Finding(check="default model", ok=abs(length - 1) < 1e-3, detail=detail)
