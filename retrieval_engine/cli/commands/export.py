"""`vlre export`: a model as ONNX graphs."""

from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.options import (
    UserPath,
    adapter_option,
    example,
    json_option,
    model_option,
)


@click.command(epilog=example("vlre export --model vlre-photo --onnx vlre-photo-onnx"))
@model_option
@adapter_option
@click.option("--onnx", "out", type=UserPath(), required=True, help="Directory to make.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["image", "text", "matcher", "decoder"]),
    help="What to write, once for each.  [default: all that the model has]",
)
@json_option
def command(out: Path, as_json: bool, **given: Any) -> None:
    """Write a model's towers, matcher and decoder as ONNX graphs, for programs without torch.

    Each graph is run by ONNX Runtime and kept only if it computes what torch does. The image graph
    takes resized pixels as bytes and normalises them itself; vlre_onnx.json in the directory tells
    inputs, outputs, and how an example is tokenized.
    """
    from dataclasses import asdict

    from retrieval_engine.cli.output import emit, progress_bar
    from retrieval_engine.models.export_onnx import export_onnx

    with progress_bar() as progress:
        parts = export_onnx(out=out, progress=progress, **given)
    if as_json:
        emit({"out": str(out), "parts": [asdict(part) for part in parts]})
        return
    for part in parts:
        inputs = ", ".join(f"{name} {form}" for name, form in part.inputs.items())
        click.echo(
            f"{part.name:8} {part.bytes / 1e6:8,.1f} MB  {inputs} -> {', '.join(part.outputs)}\n"
            f"         {part.largest_difference:.1e} from torch at most, of {part.largest_value:.2g}"
        )
