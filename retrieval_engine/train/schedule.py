"""How large a step is at each point of a run."""

import math


def step_factor(done: float, warmup: float, floor: float = 0.0) -> float:
    """Size of a step relative to its peak: a linear rise, then half a cosine down to `floor`.

    Args:
        done: part of the stage that is over, 0 to 1.
        warmup: part of the stage in which the steps grow.
        floor: factor at the end of the stage.
    """
    if done < warmup:
        return max(done, 1e-3) / warmup
    along = (done - warmup) / (1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(along, 1.0))) / 2
