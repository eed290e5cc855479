"""METEOR through the COCO tools' Java program, where both are there."""

import importlib.util
import shutil
from collections.abc import Sequence

from retrieval_engine.errors import EvaluationError
from retrieval_engine.metrics.ngrams import Tokens


def meteor_is_missing() -> str:
    """Why METEOR cannot be computed here, in a few words; empty when it can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed (pip install 'vlre[meteor]')"
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    return ""


def meteor(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """METEOR 1.5 of each caption; the corpus's score is that program's own aggregate, appended.

    Args:
        captions: tokens, one caption an image.
        references: tokens of each image's references.

    Returns:
        n sentence scores and the corpus's score, in [0, 1].

    Raises:
        EvaluationError: the program cannot be run.
    """
    if reason := meteor_is_missing():
        raise EvaluationError(f"METEOR cannot be computed: {reason}")
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    try:
        corpus, sentences = program.compute_score(
            {i: [" ".join(r) for r in image] for i, image in enumerate(references)},
            {i: [" ".join(c)] for i, c in enumerate(captions)},
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the METEOR program failed: {error}") from error
    finally:
        process = program.meteor_p
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        process.kill()
        process.wait()
    return [*map(float, sentences), float(corpus)]
