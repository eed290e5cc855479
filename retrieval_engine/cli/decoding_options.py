"""The options that the commands which write captions share: whose, of what, and how chosen."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retrieval_engine.cli.completion import models
from retrieval_engine.cli.options import (
    device_option,
    dtype_option,
    json_option,
    split_option,
    store_option,
)
from retrieval_engine.records import DEFAULT_MODEL

if TYPE_CHECKING:
    from retrieval_engine.caption import DecodingOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_NAMES = (
    *("beams", "sample", "temperature", "top_k", "top_p", "seed", "num_captions"),
    *("max_length", "min_length", "length_penalty", "beam_rule", "repetition_penalty"),
    *("no_repeat_ngram", "logit_adjustment", "prompt"),
)
_OPTIONS = (
    click.option("--beams", type=int, help="Width of the beam search; 1 is greedy.  [default: 3]"),
    click.option("--sample", is_flag=True, help="Draw words at random instead of beams."),
    click.option(
        "--temperature",
        metavar="FLOAT[,...]",
        help="Of --sample; below 1 prefers likely words. Several: one for each of --num-captions.",
    ),
    click.option("--top-k", type=int, help="Of --sample: among so many words only."),
    click.option(
        "--top-p",
        type=float,
        help="Of --sample: among the likeliest that make up this.  [default: 0.9]",
    ),
    click.option("--seed", type=int, help="Of --sample; equal seeds draw equal captions."),
    click.option("--num-captions", type=int, default=1, help="Variations for each image."),
    click.option(
        "--max-length",
        type=int,
        help="Tokens at most; BLIP counts the prompt, BLIP-2 does not.  [default: the model's, "
        "else 30]",
    ),
    click.option("--min-length", type=int, default=1, help="No end before so many tokens."),
    click.option("--length-penalty", type=float, help="Of beams: exponent of the length."),
    click.option(
        "--beam-rule",
        type=click.Choice(["original", "transformers"]),
        help="Of beams: how sentences are compared and the search ends; as BLIP was published "
        "(its published figures need it), or as transformers 5 does.  [default: original]",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        help="Above 1: repeat words less.  [default: the model's, else 1]",
    ),
    click.option(
        "--no-repeat-ngram",
        type=int,
        help="Never write the same N tokens twice.  [default: the model's, else 0]",
    ),
    click.option(
        "--logit-adjustment",
        type=float,
        default=0.0,
        help="From 0 to 1: write rarer words; so much of the log frequency that words had in the "
        "training is taken from their logits.",
    ),
    click.option("--prompt", help="What every sentence goes on from; default: the model's own."),
)
_SHARED = (
    store_option,
    click.option(
        "--model",
        shell_complete=models,
        envvar="VLRE_MODEL",
        help="Directory or hub id of a checkpoint that writes captions.  [default: the store's, "
        f"where the whole store is meant and it does, else {DEFAULT_MODEL}; env: VLRE_MODEL]",
    ),
    split_option,
    click.option("--limit", type=click.IntRange(min=1), help="Only the first pictures."),
    click.option("--overwrite", is_flag=True, help="Begin --out anew."),
    *_OPTIONS,
    device_option,
    dtype_option,
    click.option("--batch-size", type=click.IntRange(min=1), help="Pictures at once."),
    click.option("--workers", type=click.IntRange(min=1), help="Decode workers."),
    json_option,
)


def captioning_options(command: Command) -> Command:
    """Add all of them to a command; `read_decoding` takes those of decoding out again."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def choose_model(targets: tuple[str, ...], given: dict[str, Any]) -> None:
    """Put the model in that nobody named."""
    from retrieval_engine.caption.loaded import default_captioner

    given["model"] = given["model"] or default_captioner(targets, given["store"])


def read_decoding(given: dict[str, Any]) -> "DecodingOptions":
    """Take the options of decoding out of what a command was given.

    Raises:
        UsageError: they contradict each other.
    """
    from retrieval_engine.caption import BeamRule, DecodingOptions

    values = {name: given.pop(name) for name in _NAMES}
    rule = values.pop("beam_rule")
    if values["temperature"] is not None:
        values["temperature"] = temperature = _numbers(values["temperature"])
        if isinstance(temperature, tuple):  # nothing but sampling has several
            values["sample"] = values["sample"] or values["beams"] is None
    return DecodingOptions(**values, beam_rule=BeamRule(rule) if rule else None)


def _numbers(text: str) -> float | tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no number, nor several with commas between them",
            param_hint="'--temperature'",
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]
