"""Where a pretraining stands."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class RunState:
    """Where a run stands, besides weights and optimisers.

    The order of the pictures, the augmentation and the negatives of a step follow from the seed
    and the step's number alone, so no random state needs keeping.

    Attributes:
        step: steps done.
        seconds: training time so far, over all sessions, validation and drawing excluded.
        in_joint_stage: text has come in.
        best: best mean recall so far in per cent; -1 before the first validation.
        stale: validations since it rose.
        kept: mean recall of the weights that would be written.
        kept_step: the step they are of.
    """

    step: int = 0
    seconds: float = 0.0
    in_joint_stage: bool = False
    best: float = -1.0
    stale: int = 0
    kept: float = 0.0
    kept_step: int = 0
