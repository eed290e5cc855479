"""Puts an adapter into a model through peft, merged into the weights, and proves each layer equal.

Trap: peft ignores tensors that find no home, and layers that find no tensor; both are refused here.
A model may be loaded in parts: what an adapter changes elsewhere is left to the other parts.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.adapters import (
    PREFIX,
    Adapter,
    base_tensor_name,
    check_homes,
    home_of,
    is_shared,
    modules_with_weights,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor

_SAME = 1e-4  # of the largest value; sums are taken in another order
_HINT = "merge it with peft where it was trained, and use the merged model"


@dataclass(slots=True)
class AdapterPlan:
    """What of an adapter belongs to a model.

    Attributes:
        whole: new values of the model's own tensors, by name: trained whole beside the layers.
        layers: the adapter's tensors of the model's layers, by `base_tensor_name`.
        homes: names of these layers.
        shared: what serves all layers.
        elsewhere: whether it has layers that the model does not.
    """

    whole: "dict[str, Tensor]" = field(default_factory=dict)
    layers: "dict[str, Tensor]" = field(default_factory=dict)
    homes: set[str] = field(default_factory=set)
    shared: "dict[str, Tensor]" = field(default_factory=dict)
    elsewhere: bool = False

    @property
    def touches(self) -> bool:
        """Whether the model is another one with the adapter."""
        return bool(self.whole or self.layers)


def plan_adapter(model: nn.Module, adapter: Adapter, names: Iterable[str]) -> AdapterPlan:
    """Sort an adapter's tensors by where they belong.

    Args:
        model: the whole model or a part of it.
        adapter: its tensors are read.
        names: of all tensors of the base.

    Raises:
        CheckpointInvalid: a tensor belongs to nothing in the base.
    """
    own = set(model.state_dict())
    check_homes(adapter, own.union(names))
    here, plan = modules_with_weights(own), AdapterPlan()
    for name, tensor in adapter.tensors().items():
        inner = base_tensor_name(name)
        if is_shared(name):
            plan.shared[name] = tensor
        elif inner in own:
            plan.whole[inner] = tensor
        elif (home := home_of(inner, here)) in here:
            plan.homes.add(home)
            plan.layers[inner] = tensor
        else:
            plan.elsewhere = True
    return plan


def apply_adapter(model: nn.Module, adapter: Adapter, plan: AdapterPlan) -> nn.Module:
    """Merge an adapter into a float32 model in place.

    Args:
        model: the model that the plan was made for.
        adapter: its kind and settings.
        plan: from `plan_adapter`.

    Returns:
        The same model.

    Raises:
        CheckpointInvalid: peft cannot apply or merge this kind, or a tensor does not fit.
    """
    if plan.shared and plan.layers and plan.elsewhere:
        raise CheckpointInvalid(
            f"{adapter}: its tensor {next(iter(plan.shared))} serves layers of several parts of the "
            "model, which are loaded apart",
            hint=_HINT,
        )
    _untie(model, plan)
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in plan.whole.items():
            if parameters[name].shape != value.shape:
                raise CheckpointInvalid(
                    f"{adapter}: its tensor {name} is {list(value.shape)}, the base has "
                    f"{list(parameters[name].shape)}"
                )
            parameters[name].copy_(value)
    return _merged(model, adapter, plan) if plan.layers else model


def _untie(model: nn.Module, plan: AdapterPlan) -> None:
    """Give what is changed a weight of its own: peft leaves a tied twin as it was."""
    config: Any = getattr(model, "config", None)
    homes = plan.homes
    if getattr(config, "tie_word_embeddings", False):  # then new words are in both, for peft too
        homes = homes - _token_homes(plan)
    changed = {f"{home}.weight" for home in homes} | plan.whole.keys()
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in changed & named.keys():
        if sum(other is named[name] for other in named.values()) > 1:
            module, _, last = name.rpartition(".")
            twin = nn.Parameter(named[name].detach().clone(), requires_grad=False)
            setattr(model.get_submodule(module), last, twin)


def _token_homes(plan: AdapterPlan) -> set[str]:
    """Embeddings of which some words alone are trained."""
    marks = (".token_adapter.", ".trainable_tokens_")
    return {
        home
        for home in plan.homes
        if any(n.startswith(home + m) for n in plan.layers for m in marks)
    }


def _merged(model: nn.Module, adapter: Adapter, plan: AdapterPlan) -> nn.Module:
    from peft import PeftModel
    from peft.utils import set_peft_model_state_dict

    tensors = {PREFIX + name: value for name, value in plan.layers.items()} | plan.shared
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of what is checked here
            wrapped = PeftModel(model, _config(adapter, plan)).eval()
            result: Any = set_peft_model_state_dict(wrapped, tensors)
            _check_loaded(adapter, wrapped, result)
            expected = _outputs(wrapped, plan)
            merged: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        detail = next((line for line in lines if "mismatch for" in line), lines[0])
        raise CheckpointInvalid(
            f"{adapter} does not fit the model or cannot be merged: {detail}",
            hint="use the base it was trained on, or merge it with peft where it was trained",
        ) from error
    for home, (given, output) in expected.items():
        with torch.no_grad():
            found = merged.get_submodule(home)(given)
        if not torch.allclose(found, output, rtol=0, atol=_SAME * (1 + float(output.abs().max()))):
            raise CheckpointInvalid(
                f"{adapter}: the layer {home} is another one when it is merged", hint=_HINT
            )
    return merged


def _config(adapter: Adapter, plan: AdapterPlan) -> "PeftConfig":
    """The adapter's config, for the layers that have tensors and no others."""
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(adapter.path))
    config.inference_mode = True
    for name in ("layer_replication", "target_parameters", "alora_invocation_tokens"):
        if getattr(config, name, None):
            raise CheckpointInvalid(f"{adapter} sets {name}, which cannot be used", hint=_HINT)
    tokens = _token_homes(plan)
    if isinstance(getattr(config, "trainable_token_indices", None), dict):
        indices = config.trainable_token_indices.items()
        config.trainable_token_indices = {
            k: v for k, v in indices if any(f".{home}".endswith(f".{k}") for home in tokens)
        }
    config.target_modules = sorted(
        plan.homes - tokens if config.peft_type == "LORA" else plan.homes
    )
    for name in ("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, name):
            setattr(config, name, None)
    found: PeftConfig = config
    return found


def _check_loaded(adapter: Adapter, wrapped: "PeftModel", result: Any) -> None:
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    if result.unexpected_keys:
        raise CheckpointInvalid(
            f"{adapter}: its tensor {result.unexpected_keys[0]} finds no home in the model",
            hint=_HINT,
        )
    mark = PEFT_TYPE_TO_PREFIX_MAPPING.get(wrapped.active_peft_config.peft_type, "")
    state, missing = wrapped.state_dict(), set(result.missing_keys)
    loaded = {value.data_ptr() for key, value in state.items() if key not in missing}
    lacking = [  # what layers share has a name in each of them
        key
        for key in result.missing_keys
        if mark in key and ".default" in key and state[key].data_ptr() not in loaded
    ]
    if lacking:
        raise CheckpointInvalid(
            f"{adapter} lacks {len(lacking)} of its own tensors, e.g. "
            f"{lacking[0].replace('.default', '')}",
            hint="save it again where it was trained, with all that its layers need",
        )


def _outputs(wrapped: "PeftModel", plan: AdapterPlan) -> "dict[str, tuple[Tensor, Tensor]]":
    """An input of each layer that is adapted, and what peft's layer makes of it before merging."""
    found = {}
    for home in sorted(plan.homes):
        layer: Any = wrapped.get_submodule(PREFIX + home)
        base = getattr(layer, "original_module", None)  # of embeddings with new tokens
        given = _probe(base or layer.get_base_layer())
        with torch.no_grad():
            found[home] = (given, layer(given))
    return found


def _probe(layer: nn.Module) -> "Tensor":
    """Numbers that a layer can take.

    Raises:
        ValueError: a layer of a kind that is not known here.
    """
    generator = torch.Generator().manual_seed(0)
    shape: tuple[int, ...]
    match layer:
        case nn.Embedding():
            return torch.arange(min(64, layer.num_embeddings))[None]
        case nn.Linear():
            shape = (2, 3, layer.in_features)
        case nn.LayerNorm():
            shape = (2, 3, *layer.normalized_shape)
        case nn.Conv2d():
            shape = (2, layer.in_channels, *layer.kernel_size)
        case _:
            raise ValueError(f"a {type(layer).__name__} cannot be adapted")
    return torch.randn(shape, generator=generator)
