"""`vlre doctor`: is this machine ready, and does it give the authors' numbers?"""

from dataclasses import asdict

import click

from retrieval_engine.cli.options import device_option, json_option


@click.command("doctor")
@device_option
@json_option
@click.pass_context
def command(ctx: click.Context, device: str, as_json: bool) -> None:
    """Check the installation, the device, and that BLIP and BLIP-2 give their authors' numbers.

    One line per check; exit code 1 if anything is off. Nothing waits for a network.

    \b
    Example:
      vlre doctor
    """  # noqa: D301 - click reads the backspace
    from retrieval_engine.cli.output import emit, note
    from retrieval_engine.doctor import examine

    failed = 0
    for finding in examine(device):
        failed += not finding.ok
        if as_json:
            emit(asdict(finding))
        else:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:20}  {finding.detail}")
    if failed:
        note(f"{failed} check{'s' * (failed > 1)} failed")
        ctx.exit(1)
