"""ROUGE-L of a caption: Lin (ACL workshop 2004), as the COCO caption tools compute it.

The best precision and the best recall over the references are combined, possibly of two different
references. Packages that take the F score of the best single reference give lower figures.
"""

from collections.abc import Sequence

from retrieval_engine.metrics.ngrams import Tokens

BETA = 1.2


def rouge_l(caption: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L of one caption in [0, 1]; a corpus's score is the mean.

    Args:
        caption: its tokens.
        references: tokens of each reference, at least one.

    Examples:
        >>> round(rouge_l("a dog on grass".split(), ["a brown dog on the grass".split()]), 3)
        0.772
    """
    common = [_common_subsequence(caption, reference) for reference in references]
    precision = max(common) / max(1, len(caption))
    recall = max(n / max(1, len(r)) for n, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(left: Tokens, right: Tokens) -> int:
    """Length of the longest common subsequence, in O(len(left) * len(right))."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for i, other in enumerate(right, 1):
            above = row[i]
            row[i] = diagonal + 1 if word == other else max(above, row[i - 1])
            diagonal = above
    return row[-1]
