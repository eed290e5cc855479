"""Files as the authors' code saves them, whole and broken, and imports of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.import_checkpoint import import_checkpoint
from tests.golden import CHECKPOINTS, GOLDEN, VOCAB

Tensors = dict[str, torch.Tensor]
BLIP_CONFIG, BLIP2_CONFIG = GOLDEN["blip"].config, GOLDEN["blip2"].config


def tensors_of(name: str) -> Tensors:
    found: Tensors = torch.load(CHECKPOINTS[name], weights_only=True)["model"]
    return found


def saved(tensors: Any, path: Path, **options: Any) -> Path:
    torch.save({"model": tensors}, path, **options)
    return path


def bring_in(file: Path, out: Path, config: Path | None = BLIP_CONFIG) -> Tensors:
    import_checkpoint(file, out, config=config, vocab=VOCAB)
    return load_file(out / "model.safetensors")


def refused(file: Path, tmp_path: Path, match: str, config: Path | None = BLIP_CONFIG) -> None:
    """The import fails with these words, on one line, and leaves nothing behind."""
    out = tmp_path / "models" / "refused"
    with pytest.raises(CheckpointInvalid, match=match) as caught:
        import_checkpoint(file, out, config=config, vocab=VOCAB)
    assert "\n" not in caught.value.message
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())
