"""Adapters of every kind that the installed peft has, on a tiny BLIP-2 with OPT."""

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import Tensor
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

TARGETS = ["query", "value", "q_proj", "v_proj"]
"""Layers of the Q-Former and of OPT: two parts of the model, of different widths."""
SPEECH = ["q_proj", "v_proj"]
TEXTS = ["a dog on grass", "two birds"]

# What a kind needs beside its targets, so that it fits into layers of 20 to 32 units.
_NEEDS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "ADAMSS": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "IA3": {"feedforward_modules": []},
    "OFT": {"r": 0, "oft_block_size": 4},
    "LN_TUNING": {"target_modules": ["layernorm", "final_layer_norm", "layer_norm"]},
    "FOURIERFT": {"n_frequency": 20},
    "WAVEFT": {"n_frequency": 20},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "topk": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [5, 6, 7]},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "PSOFT": {"r": 4},
}


@lru_cache(maxsize=1)
def _read(base: Path) -> tuple[Any, Any]:
    return Blip2ForConditionalGeneration.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def _opened(base: Path) -> Any:
    """The model with weights of its own."""
    return deepcopy(_read(base)[0])


def save_adapter(kind: str, base: Path, out: Path, targets: list[str], **more: Any) -> None:
    """Write an adapter of a kind with random weights, as peft itself saves it."""
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    given = {"target_modules": targets} | _NEEDS.get(kind, {}) | more
    torch.manual_seed(3)
    wrapped: Any = get_peft_model(_opened(base), config(**given))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
    wrapped.create_or_update_model_card = lambda _: None  # takes longer than the weights
    wrapped.save_pretrained(out)


def reference(base: Path, adapter: Path, tokens: Tensor, prompt: str) -> dict[str, Tensor]:
    """What peft's own model, not merged, makes of states, of texts, and of the first word."""
    wrapped: Any = PeftModel.from_pretrained(_opened(base), str(adapter)).eval()
    return outputs(wrapped.base_model.model, base, tokens, prompt)


@torch.inference_mode()
def outputs(model: Any, base: Path, tokens: Tensor, prompt: str) -> dict[str, Tensor]:
    """The same of a transformers model."""
    model = model.eval()
    _, tokenizer = _read(base)
    queries = model.query_tokens.expand(len(tokens), -1, -1)
    states = model.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
    embed: Callable[[Tensor], Tensor] = model.language_model.get_input_embeddings()
    words = embed(torch.tensor(tokenizer(prompt)["input_ids"])).expand(len(tokens), -1, -1)
    given = torch.cat((model.language_projection(states), words), dim=1)
    means = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        means.append(model.language_model.model(input_ids=ids).last_hidden_state.mean(dim=1))
    return {
        "image": states.mean(dim=1),
        "text": torch.cat(means),
        "words": model.language_model(inputs_embeds=given).logits[:, -1],
    }
