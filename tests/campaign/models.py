"""A fine-tuned model and an adapter on the campaign's model, without the time of a training."""

import torch
from safetensors.torch import load_file
from transformers import BlipForImageTextRetrieval

from retrieval_engine.models.checkpoint import find_model
from retrieval_engine.train.lora import LoraOptions, attach, matching_modules, save_adapter
from retrieval_engine.train.model_files import write_model
from tests.campaign.world import World


def make_tuned(world: World) -> None:
    """A model with one tensor changed."""
    tensors = load_file(world.model / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.startswith("text_encoder"))
    write_model(world.model, {name: tensors[name].float() + 0.01}, world.root / "tuned")


def make_adapter(world: World) -> None:
    """A LoRA of the text side at its first step."""
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval.from_pretrained(world.model)
    wrapped = attach(model, LoraOptions(r=2), matching_modules(model, "text-self"), name="default")
    save_adapter(wrapped, world.adapter, find_model(str(world.model)), name="default", facts={})
