"""Sides of a comparison, run in turns, each in its own process, and what is said of them."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
ROOT = Path(__file__).parents[2]
LIMIT_S = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way of doing the work.

    Attributes:
        run: does it, given the folder with the inputs and the case, and gives figures.
        package: the distribution that it measures; empty for ours.
        of: the one of our sides that its ratio is to.
        note: what a reader of the table must know.
        skip: cases in which it would take too long.
    """

    run: Callable[[Path, str], Figures]
    package: str = ""
    of: str = "vlre"
    note: str = ""
    skip: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same work for all sides.

    Attributes:
        prepare: writes the inputs of a case into a folder.
        sides: by name, ours first.
        judge: quality of what a side left in the folder, after its first run.
        costs: figures of which less is better; ratios are of these.
        cases: sizes.
        tiny: the case of a test.
        rounds: how often the sides take turns.
    """

    prepare: Callable[[Path, str], None]
    sides: Mapping[str, Side]
    judge: Callable[[Path, str, str], Figures]
    costs: tuple[str, ...] = ("seconds", "cpu_s")
    cases: tuple[str, ...]
    tiny: str
    rounds: int = 3


@dataclass(slots=True)
class Watch:
    """Seconds by the clock and of the processor."""

    figures: Figures = field(default_factory=dict)


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure what is done inside, by processes too that were begun and ended there."""
    watch, start, used = Watch(), time.perf_counter(), processor_seconds()
    yield watch
    watch.figures["seconds"] = time.perf_counter() - start
    watch.figures["cpu_s"] = processor_seconds() - used


def processor_seconds() -> float:
    """Used by this process and by its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def whole_process(words: list[str], **environment: str) -> tuple[Figures, str]:
    """Seconds of a whole process, of its processor, its peak memory, and what it printed."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as talk:
        start = time.perf_counter()
        told = os.environ | environment
        child = subprocess.Popen(words, env=told, stdout=printed, stderr=talk, cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)  # of this process alone, unlike RUSAGE_CHILDREN
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        talk.seek(0)
        if child.returncode:
            raise RuntimeError(talk.read().strip()[-300:])
        cpu = used.ru_utime + used.ru_stime
        figures = {"seconds": seconds, "cpu_s": cpu, "peak_mb": used.ru_maxrss // 1024}
        return figures, printed.read()


def comparison_of(name: str) -> Comparison:
    """The comparison of a file beside this one."""
    found: Comparison = import_module(f"benchmarks.peers.{name}").COMPARISON
    return found


def in_own_process(python: Path, threads: int) -> Callable[[str, str, Path, str], Figures]:
    """How a side is run by an interpreter; what fails gives `failed` instead of figures."""

    def run(name: str, side: str, work: Path, case: str) -> Figures:
        command = [str(python), "-m", "benchmarks.peers.side", name, side, str(work), case]
        told = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        told |= {f"{pool}_NUM_THREADS": str(threads) for pool in ("OMP", "MKL", "RAYON")}
        told |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
        told |= {"LANCE_CPU_THREADS": str(threads), "TOKIO_WORKER_THREADS": str(threads)}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | told,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {LIMIT_S} s"}
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][-300:]}
        found: Figures = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def in_this_process(name: str, side: str, work: Path, case: str) -> Figures:
    """Run a side here: quick, for a test; its peak memory would be that of all."""
    comparison = comparison_of(name)
    if side == "prepare":
        comparison.prepare(work, case)
        return {}
    return comparison.sides[side].run(work, case)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runners:
    """Who runs our sides and who the others'; None leaves those out."""

    ours: Callable[[str, str, Path, str], Figures]
    theirs: Callable[[str, str, Path, str], Figures] | None

    def of(self, side: Side) -> Callable[[str, str, Path, str], Figures] | None:
        """Of one side."""
        return self.theirs if side.package else self.ours


def compare(name: str, case: str, runners: Runners, rounds: int) -> Iterator[Figures]:
    """A line for each side of a comparison at one size: medians, ratios, quality."""
    comparison = comparison_of(name)
    sides = {
        key: side
        for key, side in comparison.sides.items()
        if runners.of(side) is not None and case not in side.skip
    }
    runs: dict[str, list[Figures]] = {key: [] for key in sides}
    quality: dict[str, Figures] = {}
    loads = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        failed = runners.ours(name, "prepare", work, case)
        if "failed" in failed:
            raise RuntimeError(f"{name}, {case}: {failed['failed']}")
        for _ in range(rounds):
            for key, side in sides.items():
                if runs[key] and "failed" in runs[key][-1]:
                    continue
                run = runners.of(side)
                assert run is not None
                runs[key].append(run(name, key, work, case))
                told = json.dumps(runs[key][-1])  # a run that is stopped has told so much
                print(f"{name} {case}: {key}: {told}", file=sys.stderr, flush=True)
                if "failed" in runs[key][-1] and not side.package:
                    raise RuntimeError(f"{name}, {case}, {key}: {runs[key][-1]['failed']}")
                loads.append(os.getloadavg()[0])
                if key not in quality and "failed" not in runs[key][-1]:
                    quality[key] = comparison.judge(work, case, key)
    for key, side in sides.items():
        line: Figures = {"comparison": name, "case": case, "side": key, "package": side.package}
        line |= {"rounds": len(runs[key]), "load": round(statistics.median(loads), 1)}
        line |= medians(runs[key]) | quality.get(key, {})
        if side.package and side.of in runs:
            line |= ratios(runs[key], runs[side.of], comparison.costs)
        if side.note:
            line["note"] = side.note
        yield line


def medians(runs: list[Figures]) -> Figures:
    """The median of each figure over the runs; what is no number is of the last run."""
    told: Figures = {}
    for name in runs[-1]:
        values = [run[name] for run in runs if name in run]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        told[name] = rounded(statistics.median(values)) if numbers else values[-1]
    return told


def ratios(theirs: list[Figures], ours: list[Figures], costs: tuple[str, ...]) -> Figures:
    """How many times our cost theirs is, the median over the rounds: above 1 is ours better."""
    told: Figures = {}
    for cost in costs:
        each = [
            a[cost] / b[cost]
            for a, b in zip(theirs, ours, strict=False)
            if a.get(cost) and b.get(cost)
        ]
        if each:
            told[f"{cost}_ratio"] = rounded(statistics.median(each))
    return told


def rounded(value: float) -> float:
    """Four digits that count."""
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return value
    return round(value, max(0, 3 - math.floor(math.log10(abs(value)))))
