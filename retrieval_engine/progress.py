"""How long work reports that it is going on, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """A listener. The command line draws a bar from it; a server could log it."""

    def start(self, what: str, total: int | None) -> None:
        """A stretch of work begins.

        Args:
            what: a few words for people, e.g. `encoding`.
            total: number of steps, or None when unknown.
        """

    def advance(self, steps: int = 1) -> None:
        """Some steps of the current stretch are done."""

    def detail(self, text: str) -> None:
        """What the rate of the current stretch is made of, as far as is known now."""

    def say(self, line: str) -> None:
        """One line for people, now."""

    def stop(self) -> None:
        """The current stretch is over."""


class Silent:
    """A listener that tells nobody; the default of the Python API."""

    def start(self, what: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, steps: int = 1) -> None:
        """Ignored."""

    def detail(self, text: str) -> None:
        """Ignored."""

    def say(self, line: str) -> None:
        """Ignored."""

    def stop(self) -> None:
        """Ignored."""
