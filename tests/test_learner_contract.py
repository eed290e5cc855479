"""The contract of a learner, kept by every family that can be trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.learner import Learner, Task, open_learner
from retrieval_engine.testing import CaptionLearnerContract, RetrievalLearnerContract
from tests import tiny, tiny_blip2


def opened(checkpoint: Path, task: Task, *, with_tower: bool) -> Learner:
    found = resolve(str(checkpoint))
    return open_learner(found, task, with_tower=with_tower, dtype=torch.float32)


class TestBlip(RetrievalLearnerContract):
    def open(self, folder: Path, *, with_tower: bool) -> Learner:
        return opened(tiny.save_blip(folder), Task.RETRIEVAL, with_tower=with_tower)


class TestBlip2(RetrievalLearnerContract):
    def open(self, folder: Path, *, with_tower: bool) -> Learner:
        return opened(tiny_blip2.save_blip2(folder), Task.RETRIEVAL, with_tower=with_tower)


class TestBlipCaption(CaptionLearnerContract):
    def open(self, folder: Path, *, with_tower: bool) -> Learner:
        return opened(tiny.save_blip_captioner(folder), Task.CAPTION, with_tower=with_tower)


class TestBlip2Opt(CaptionLearnerContract):
    def open(self, folder: Path, *, with_tower: bool) -> Learner:
        return opened(tiny_blip2.save_blip2_opt(folder), Task.CAPTION, with_tower=with_tower)


class TestBlip2T5(CaptionLearnerContract):
    def open(self, folder: Path, *, with_tower: bool) -> Learner:
        return opened(tiny_blip2.save_blip2_t5(folder), Task.CAPTION, with_tower=with_tower)


@pytest.mark.parametrize("save", [tiny.save_blip, tiny_blip2.save_blip2])
def test_a_base_of_half_precision_matches_in_float32(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    """As LoRA opens it on CUDA; the logits were refused there for want of one dtype."""
    checkpoint = resolve(str(save(tmp_path / "model")))
    learner: Any = open_learner(checkpoint, Task.RETRIEVAL, with_tower=False, dtype=torch.bfloat16)
    ids = torch.tensor([learner.tokenize(["a dog on grass"])[0]])[:, None]
    tokens = torch.randn(1, 5, learner.model.config.vision_config.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        seen = learner.cross.keys_values(tokens)
        logits = learner.cross.logits(seen, learner.match_ids(ids), torch.ones_like(ids))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
