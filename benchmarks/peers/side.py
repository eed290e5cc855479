"""One side of a comparison in this process: what `turns.py` starts. Its last line is the figures."""

import json
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.peers.turns import comparison_of


def peak_mb() -> int:
    """Peak of this process's memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """NAME SIDE WORK CASE."""
    name, key, work, case = sys.argv[1:]
    comparison = comparison_of(name)
    if key == "prepare":
        comparison.prepare(Path(work), case)
        print("\n{}")
        return
    side = comparison.sides[key]
    found = side.run(Path(work), case)
    if side.package:
        found["version"] = metadata.version(side.package)
    print("\n" + json.dumps({"peak_mb": peak_mb()} | found))


if __name__ == "__main__":
    main()
