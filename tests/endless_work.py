"""A command of ours with two worker processes that never ends by itself: `python -m tests.endless_work`."""

import itertools
import sys
import time

import click

from retrieval_engine.cli import Commands
from retrieval_engine.workers import open_pool


class OneCommand(Commands):
    """The group of `vlre` with one command of our own."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        return click.Command(cmd_name, callback=work)


def sleepy(value: int) -> int:
    time.sleep(0.02)
    return value


def work() -> None:
    """Say once that work goes on, then go on for ever."""
    with open_pool("processes", 2) as pool:
        for value, _ in pool.imap(sleepy, itertools.count()):
            if value == 10:
                sys.stdout.write("working\n")
                sys.stdout.flush()


if __name__ == "__main__":
    OneCommand(name="vlre").main(["work"])
