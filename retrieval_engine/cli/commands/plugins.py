"""`vlre plugins`: what this installation can read, run and build, and who brought it."""

import click

from retrieval_engine.cli.options import example, json_option


@click.command(epilog=example("vlre plugins --json"))
@json_option
def command(as_json: bool) -> None:
    """List sources, model families, index backends and commands, and where each comes from.

    Each is `shipped`, or named by the distribution whose entry point adds it. Nothing is imported:
    a plug-in that is broken is listed, and says so when it is used.
    """
    from retrieval_engine.cli import COMMANDS
    from retrieval_engine.cli.output import emit
    from retrieval_engine.index.recipes import BACKENDS
    from retrieval_engine.models.family import FAMILIES
    from retrieval_engine.sources import KINDS

    rooms = {"source": KINDS, "model": FAMILIES, "backend": BACKENDS, "command": COMMANDS}
    for kind, plugins in rooms.items():
        for module, origin in plugins.origins().items():
            name = module.replace("_", "-")
            if as_json:
                emit({"kind": kind, "name": name, "from": origin})
            else:
                click.echo(f"{kind:8} {name:18} {origin}")
