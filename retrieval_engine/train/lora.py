"""LoRA through peft: what it is attached to, and how it is written down.

Trap: a name in `targets` that no module has would train nothing; and an adapter on a module that
the loss never runs through gets no gradient. Both are refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from retrieval_engine.durable import replace_file, writing
from retrieval_engine.errors import TrainingError, UsageError
from retrieval_engine.models.adapters import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    RECORD,
    base_digest,
    peft_quiet,
)
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.checksums import write_checksums
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from torch import nn

# Every pattern is one of names that transformers' modules of that backbone have.
TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "text": r"text_(encoder|decoder\.bert)\.encoder\.layer\.\d+\."
        r"(attention|crossattention)\.self\.(query|value)",
        "text-self": r"text_(encoder|decoder\.bert)\.encoder\.layer\.\d+\."
        r"attention\.self\.(query|value)",
        "text-cross": r"text_(encoder|decoder\.bert)\.encoder\.layer\.\d+\."
        r"crossattention\.self\.(query|value)",
        "vision": r"vision_model\.encoder\.layers\.\d+\.self_attn\.qkv",
        "qformer": r"qformer\.encoder\.layer\.\d+\."
        r"(attention|crossattention)\.attention\.(query|value)",
        "opt": r"language_model\..*\.self_attn\.(q_proj|v_proj)",
        "t5": r"language_model\..*\.(SelfAttention|EncDecAttention)\.(q|v)",
    }
)
_WORD = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """A low-rank adapter (Hu et al., ICLR 2022).

    Attributes:
        r: rank.
        alpha: the update is scaled by alpha / r, or by alpha / sqrt(r) with `rslora`.
        dropout: of what enters it.
        targets: presets of `TARGETS` or names of modules, joined by `+`; empty for the family's.
        dora: learn magnitudes apart from directions (Liu et al., ICML 2024).
        rslora: see `alpha` (Kalajdzievski, 2023).
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: str = ""
    dora: bool = False
    rslora: bool = False

    @classmethod
    def parse(cls, text: str) -> "LoraOptions":
        """Read `r=8,alpha=16,dropout=0.05,targets=text+vision,dora,rslora`, in any order.

        Raises:
            UsageError: an unknown name, or a value that is no number or cannot be.
        """
        kinds: dict[str, type] = {"r": int, "alpha": float, "dropout": float, "targets": str}
        values: dict[str, Any] = {}
        for piece in filter(None, text.split(",")):
            name, _, value = (part.strip() for part in piece.partition("="))
            if name in ("dora", "rslora") and value in ("", "true", "false"):
                values[name] = value != "false"
            elif name in kinds:
                try:
                    values[name] = kinds[name](value)
                except ValueError as error:
                    raise UsageError(f"`lora={piece!r}`: {value!r} is no number") from error
            else:
                raise UsageError(
                    f"`lora={piece!r}` is not understood; known: r=, alpha=, dropout=, targets=, "
                    "dora, rslora"
                )
        made = cls(**values)
        if made.r < 1 or made.alpha <= 0 or not 0 <= made.dropout < 1:
            raise UsageError(
                f"`lora='r={made.r},alpha={made.alpha},dropout={made.dropout}'`: r is at least 1, "
                "alpha above 0, dropout in [0, 1)"
            )
        return made


def matching_modules(model: "nn.Module", targets: str) -> list[str]:
    """Names of the linear layers that `targets` means.

    Args:
        model: the base.
        targets: see `LoraOptions.targets`.

    Raises:
        UsageError: one of its names matches nothing.
    """
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: list[str] = []
    for target in filter(None, targets.split("+")):
        if target not in TARGETS and not _WORD.fullmatch(target):
            raise UsageError(f"target {target!r} is no name of a module")
        pattern = TARGETS.get(target) or rf"(.*\.)?{re.escape(target)}"
        mine = [name for name in linear if re.fullmatch(pattern, name)]
        if not mine:
            endings = sorted({name.rpartition(".")[2] for name in linear} - {"decoder"})
            fits = [name for name, p in TARGETS.items() if any(re.fullmatch(p, n) for n in linear)]
            raise UsageError(
                f"target {target!r} matches no linear layer that is trained here; presets that "
                f"do: {', '.join(fits)}; layers: {', '.join(endings)}",
                hint="layers of the vision tower need `from_pixels`"
                if target.startswith("vision")
                else "",
            )
        found += mine
    # The head of a decoder is tied to its word embeddings: merging into it would change both.
    return [name for name in dict.fromkeys(found) if not name.endswith("predictions.decoder")]


def attach(model: "nn.Module", options: LoraOptions, modules: list[str], *, name: str) -> Any:
    """Put adapters into a model, in place; nothing but them is trainable afterwards.

    Args:
        model: the base.
        options: rank and scale.
        modules: from `matching_modules`.
        name: of the adapter.

    Returns:
        The `peft.PeftModel` around the model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=modules,
        use_dora=options.dora,
        use_rslora=options.rslora,
    )
    with peft_quiet():
        return get_peft_model(model, config, adapter_name=name)


def refuse_dead(model: "nn.Module") -> None:
    """Check after a backward pass that every adapter has a gradient.

    Raises:
        TrainingError: one has none: the loss does not run through its module.
    """
    adapters = [(n, p) for n, p in model.named_parameters() if p.requires_grad and "lora_" in n]
    dead = [name for name, parameter in adapters if parameter.grad is None]
    if dead:
        raise TrainingError(
            f"{len(dead)} of {len(adapters)} adapter weights get no gradient, e.g. {dead[0]}",
            hint="name targets that the loss runs through; without ITM that is targets=text-self",
        )


def save_adapter(
    wrapped: Any, out: Path, base: Checkpoint, *, name: str, facts: Mapping[str, Json]
) -> Path:
    """Write an adapter in peft's format, with the digest of its base beside it.

    Args:
        wrapped: the `peft.PeftModel`.
        out: directory; an adapter of another name than `default` gets one of its own in it.
        base: what it was trained on.
        name: of the adapter.
        facts: for the record, e.g. the task and the options.

    Returns:
        The directory with the adapter.
    """
    wrapped.peft_config[name].base_model_name_or_path = base_name(base)
    with peft_quiet(), writing(out):
        wrapped.save_pretrained(str(out), selected_adapters=[name], save_embedding_layers=False)
    folder = out if name == "default" else out / name
    (folder / "README.md").unlink(missing_ok=True)  # peft's form to be filled in
    record = {"base": base_name(base), "base_digest": base_digest(base.path), "name": name, **facts}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / RECORD, text.encode())
    write_checksums(folder, [PEFT_CONFIG, PEFT_WEIGHTS, RECORD])
    return folder


def base_name(base: Checkpoint) -> str:
    """What `resolve` finds the base by from anywhere: an absolute directory, or its name."""
    if base.revision:
        return base.name if "@" in base.name else f"{base.name}@{base.revision}"
    return str(base.path) if Path(base.name).exists() else base.name
