"""BLEU, ROUGE-L and CIDEr-D of captions that are already tokens, by us and by pycocoevalcap.

A case is a number of drawn scenes with five references each; the caption judged is one of the next
scene's. PTB's tokeniser is a Java program there: it is its own pair of sides, left out without Java.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.turns import Comparison, Figures, Side, watched

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")


def prepare(work: Path, case: str) -> None:
    """Sentences, and their tokens."""
    from retrieval_engine.metrics.ptb import ptb_tokens
    from retrieval_engine.sources import open_source

    sentences = [[c.text for c in i.captions] for i in open_source(f"scenes:{case}?seed=9").items()]
    (work / "sentences.json").write_text(json.dumps(sentences))
    references = [[ptb_tokens(text) for text in texts] for texts in sentences]
    captions = [references[(i + 1) % len(references)][i % 5] for i in range(len(references))]
    (work / "tokens.json").write_text(json.dumps([captions, references]))


def _read(work: Path) -> tuple[list[list[str]], list[list[list[str]]]]:
    captions, references = json.loads((work / "tokens.json").read_text())
    return captions, references


def _kept(work: Path, side: str, values: Mapping[str, Sequence[float]]) -> None:
    plain = {name: [float(v) for v in each] for name, each in values.items()}
    (work / f"{side}.json").write_text(json.dumps(plain))


def ours(work: Path, case: str) -> Figures:
    """Scores of the set and of each caption, without bootstrapped intervals."""
    from retrieval_engine.evaluate.caption_scores import caption_scores
    from retrieval_engine.metrics.bootstrap import Bootstrap

    captions, references = _read(work)
    with watched() as watch:
        found = caption_scores(captions, references, bootstrap=Bootstrap(draws=0))
    _kept(work, "vlre", {n: [found.metrics[n], *found.per_image[n]] for n in NAMES})
    return watch.figures


def theirs(work: Path, case: str) -> Figures:
    """`Bleu(4)`, `Rouge()` and `Cider()`, as COCO's evaluation calls them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions, references = _read(work)
    truths = {i: [" ".join(r) for r in image] for i, image in enumerate(references)}
    given = {i: [" ".join(c)] for i, c in enumerate(captions)}
    with watched() as watch:
        bleu, each_bleu = Bleu(4).compute_score(truths, given, verbose=0)
        rouge, each_rouge = Rouge().compute_score(truths, given)
        cider, each_cider = Cider().compute_score(truths, given)
    values = {f"BLEU-{n + 1}": [bleu[n], *each_bleu[n]] for n in range(4)}
    values |= {"ROUGE-L": [rouge, *each_rouge], "CIDEr": [cider, *each_cider]}
    _kept(work, "pycocoevalcap", values)
    return watch.figures


def our_tokens(work: Path, case: str) -> Figures:
    """PTB's rules in Python."""
    from retrieval_engine.metrics.ptb import ptb_tokens

    sentences = json.loads((work / "sentences.json").read_text())
    with watched() as watch:
        found = [" ".join(ptb_tokens(text)) for texts in sentences for text in texts]
    (work / "vlre, tokens.json").write_text(json.dumps(found))
    return watch.figures


def their_tokens(work: Path, case: str) -> Figures:
    """Stanford's Java program, started as pycocoevalcap starts it."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    if shutil.which("java") is None:
        return {"failed": "there is no Java here"}
    sentences = json.loads((work / "sentences.json").read_text())
    given = {i: [{"caption": text} for text in texts] for i, texts in enumerate(sentences)}
    with watched() as watch:
        found = PTBTokenizer().tokenize(given)
    kept = [text for i in range(len(sentences)) for text in found[i]]
    (work / "pycocoevalcap, tokens.json").write_text(json.dumps(kept))
    # The work is done by another process, whose processor time is not told.
    return {"seconds": watch.figures["seconds"]}


def judge(work: Path, case: str, side: str) -> Figures:
    """The largest difference of any value from ours; of tokens, how many sentences are the same."""
    first = "vlre, tokens" if "tokens" in side else "vlre"
    ours_, found = (json.loads((work / f"{s}.json").read_text()) for s in (first, side))
    if "tokens" in side:
        same = sum(a == b for a, b in zip(ours_, found, strict=True))
        return {"same_sentences": f"{same} of {len(ours_)}"}
    pairs = (pair for n in NAMES for pair in zip(ours_[n], found[n], strict=True))
    return {"largest_difference": float(f"{max(abs(a - b) for a, b in pairs):.1e}")}


COMPARISON = Comparison(
    prepare=prepare,
    judge=judge,
    sides={
        "vlre": Side(run=ours),
        "pycocoevalcap": Side(run=theirs, package="pycocoevalcap"),
        "vlre, tokens": Side(run=our_tokens),
        "pycocoevalcap, tokens": Side(
            run=their_tokens,
            package="pycocoevalcap",
            of="vlre, tokens",
            note="Java, its start included",
        ),
    },
    cases=("5000",),
    tiny="8",
)
