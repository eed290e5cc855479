"""Hostile trials of everything that writes and reads: nothing lost, nothing silent, no traceback.

    python -m tests.campaign                 all of it, about half an hour on two cores
    python -m tests.campaign --short         a few of each; the default suite runs this
    python -m tests.campaign --only flips    one kind; --seed N for other random choices
    python -m tests.campaign --scale 0.1     a tenth of each

Prints a table: tried, held, fell. Exit code 1 when something fell; what and why stands below it.
"""
