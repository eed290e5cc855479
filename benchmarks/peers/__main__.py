"""Ours beside what a user would pick instead, in turns: one JSON line a side.

    python -m benchmarks.peers                          all of it, an hour on two cores
    python -m benchmarks.peers --only recall,unchanged
    python -m benchmarks.peers --only search --cases 1000000
    python -m benchmarks.peers --tiny                   for a test
    python -m benchmarks.peers --table lines.jsonl      lines of earlier runs as tables

The others are installed into an environment of their own, which `--env` names.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.peers import environment, tables
from benchmarks.peers.turns import Runners, compare, comparison_of, in_own_process, in_this_process
from benchmarks.report import emit

COMPARISONS = ("encode", "encode_clip", "search", "recall", "captions", "metrics", "unchanged")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default=",".join(COMPARISONS), help="names, with commas")
    parser.add_argument("--cases", help="sizes other than the usual, with commas")
    parser.add_argument("--rounds", type=int, help="how often the sides take turns")
    parser.add_argument("--threads", type=int, default=1, help="of every side")
    parser.add_argument("--env", type=Path, help="environment of the others")
    parser.add_argument("--ours-only", action="store_true", help="install and run no other")
    parser.add_argument("--table", type=Path, help="print these lines as tables, run nothing")
    given = parser.parse_args()
    if unknown := {*given.only.split(",")} - {*COMPARISONS}:
        parser.error(f"--only names {', '.join(sorted(unknown))}; known: {', '.join(COMPARISONS)}")
    if given.table:
        print(tables.markdown(given.table.read_text()))
        return
    runners = Runners(ours=in_this_process, theirs=None)
    if not given.ours_only:
        python = environment.python_of(given.env or environment.default_folder())
        runners = Runners(
            ours=in_own_process(Path(sys.executable), given.threads),
            theirs=in_own_process(python, given.threads),
        )
    for name in given.only.split(","):
        comparison = comparison_of(name)
        cases = given.cases.split(",") if given.cases else comparison.cases
        for case in (comparison.tiny,) if given.tiny else cases:
            rounds = 1 if given.tiny else given.rounds or comparison.rounds
            for line in compare(name, case, runners, rounds):
                emit("peers", threads=given.threads, **line)


if __name__ == "__main__":
    main()
