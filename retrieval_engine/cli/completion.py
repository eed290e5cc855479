"""What a shell offers after Tab for sources, models, recipes and backends.

click asks these functions while a line is typed; commands, options and fixed choices it knows
itself. Each offers files beside its names.
"""

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


def sources(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Kinds of sources up to the colon, and folders; what is behind the colon is not known."""
    from retrieval_engine.sources import KINDS

    if ":" in typed:
        return []
    return _offered((f"{name.replace('_', '-')}:" for name in KINDS.names()), typed)


def models(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Models that ship, and directories; hub ids are not known before they are asked for."""
    from retrieval_engine.models.checkpoint import shipped

    return _offered(shipped(), typed)


def recipes(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Recipes that are built in, those in `./indices/recipes`, and files."""
    from retrieval_engine.index.recipes import BUILT_IN, FACTORY, RECIPE_FOLDER

    own = (file.stem for file in Path(RECIPE_FOLDER).glob("*.toml"))
    return _offered({"auto", *BUILT_IN, *own, FACTORY}, typed)


def backends(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Index backends, those of other distributions too."""
    from retrieval_engine.index.recipes import BACKENDS

    return [CompletionItem(name) for name in BACKENDS.names() if name.startswith(typed)]


def _offered(names: Iterable[str], typed: str) -> list[CompletionItem]:
    found = [CompletionItem(name) for name in sorted(names) if name.startswith(typed)]
    return [*found, CompletionItem(typed, type="file")]
