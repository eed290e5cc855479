"""Our figures beside those of what a user would pick instead: `python -m benchmarks.peers`.

A file is a comparison. Its sides do the same work on the same files, each in a process of its own
whose peak memory is the operating system's figure, in turns; `turns.py` sees to that.
"""
