"""The environment in which the other packages live: made once, and never vlre's own."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from retrieval_engine.machine import cache_folder

REQUIREMENTS = Path(__file__).parents[1] / "peers-requirements.txt"
INSTALLED = "peers-installed.txt"


def default_folder() -> Path:
    """Where it is kept when nothing else is said."""
    return cache_folder() / "peers"


def python_of(folder: Path) -> Path:
    """The interpreter of the environment, which is made where it is not whole yet.

    It borrows what vlre's environment has, so both sides run the same torch.

    Raises:
        CalledProcessError: pip could not install.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted, done = REQUIREMENTS.read_text(), folder / INSTALLED
    if python.exists() and done.exists() and done.read_text() == wanted:
        return python
    print(f"installing {REQUIREMENTS.name} into {folder} (400 MB)", file=sys.stderr)
    venv.create(folder, with_pip=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    there = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    (Path(there) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-r", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
    mend_torchvision(Path(there))
    done.write_text(wanted)
    return python


def mend_torchvision(there: Path) -> None:
    """Make torchvision importable beside a torch without CUDA.

    The registry's build for Linux is linked against CUDA: without that it registers none of its
    operators, and then stops at naming the shapes of two. Transforms of pictures need none of them.
    """
    file = there / "torchvision" / "_meta_registrations.py"
    text = file.read_text()
    if not text.startswith(_DECLARED):
        file.write_text(_DECLARED + text)


_DECLARED = """import torch as _torch
if _torch.version.cuda is None:
    _operators = _torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(_torch.ops.torchvision, _name):
            _operators.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
