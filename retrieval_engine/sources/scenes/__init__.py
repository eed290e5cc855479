"""Procedurally drawn pictures with captions: the data set that needs no network.

`world.py` decides what is in a picture, `staging.py` where it stands, `draw.py` paints it (one file
per group of subjects), `captions.py` says it in five sentences, and `truth.py` tells whether a
sentence is true of a scene. Everything follows from (seed, index) alone: the same numbers on any
machine. Training draws from other seeds than evaluation; the seeds of `vlre-tiny` are in its model
card.
"""
