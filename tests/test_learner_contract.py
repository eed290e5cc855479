"""The contract of a learner, kept by every family that can be trained."""

from pathlib import Path

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
