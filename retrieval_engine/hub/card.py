"""The card of what is pushed (README.md), from training.json, the certificate and the other records.

What people wrote into the folder's own README.md stays; what is written here stands between two
marks, and is written anew by the next push.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.heads.saved import RECORD as HEAD
from retrieval_engine.hub.kinds import CERTIFICATE, TRAINING, Kind
from retrieval_engine.index.build_record import MANIFEST
from retrieval_engine.models.adapters import RECORD as ADAPTER
from retrieval_engine.network import hub_id
from retrieval_engine.store.manifest import HEADER
from retrieval_engine.strict_json import loads

CARD = "README.md"
_BEGIN, _END = (
    "<!-- written by vlre: what you change from here on is lost at the next push -->",
    "<!-- end -->",
)
_CAPTION_METRICS = ("cider", "bleu4", "caption_loss")
_THEIRS = ("license", "language", "thumbnail", "extra_gated_prompt")
_RETRIEVAL = ("text_to_image", "image_to_text")
_LIBRARY = {Kind.CHECKPOINT: "transformers", Kind.ADAPTER: "peft"}
_USE = {
    Kind.CHECKPOINT: 'vlre search "a dog in the snow" ~/Pictures --model {repo}',
    Kind.ADAPTER: "vlre caption photo.jpg --model {repo}",
    Kind.HEAD: "vlre eval --recall --head {repo}",
    Kind.INDEX: 'vlre search "a dog in the snow" --index {repo}',
    Kind.STORE: "vlre pull {repo} --to embeddings\nvlre eval --recall",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure that lies beside what is pushed.

    Attributes:
        metric: e.g. `text_to_image R@1`.
        value: recall in per cent.
        of: what it was measured on.
        n: how many queries or pictures; 0 where it is not known.
        interval: of 95 %, where there is one.
    """

    metric: str
    value: float
    of: str
    n: int = 0
    interval: tuple[float, float] | None = None

    @property
    def is_of_captions(self) -> bool:
        """Whether it judges captions, and not retrieval."""
        return self.metric in _CAPTION_METRICS


def write_card(
    kind: Kind, folder: Path, repo: str, *, inside: Sequence[str], configs: Sequence[Any] = ()
) -> str:
    """The text of a card.

    Args:
        kind: what is pushed.
        folder: where it lies.
        repo: `USER/NAME`.
        inside: what others learn from it; see `kinds.inside`.
        configs: of a data set; see `data_set.write_data_set`.

    Raises:
        CheckpointInvalid: a record in the folder, or what the folder's own card begins with,
            cannot be understood.
    """
    from huggingface_hub import DatasetCardData, ModelCardData

    figures = list(_figures(kind, folder))
    facts = _facts(kind, folder)
    front, own = _own(folder)
    data: dict[str, Any] = {"tags": _tags(kind, facts)}
    if kind is Kind.STORE:
        data |= {"configs": list(configs), "pretty_name": repo.partition("/")[2]}
        shown = DatasetCardData(**(data | front)).to_yaml()
    else:
        data |= {"library_name": _LIBRARY.get(kind, "vlre"), "pipeline_tag": _task(kind, facts)}
        data |= {k: v for k, v in _origin(facts).items() if v}
        if figures:
            data |= {"model_name": repo.partition("/")[2], "eval_results": _results(figures)}
            data["metrics"] = sorted({_metric(figure.metric) for figure in figures})
        shown = ModelCardData(**(data | front)).to_yaml()
    title = own.strip() or f"# {repo.partition('/')[2]}"
    parts = [_made(kind, facts), _table(figures), _use(kind, repo), _list(inside)]
    ours = "\n\n".join([_BEGIN, *filter(None, parts), _END])
    return f"---\n{shown.strip()}\n---\n\n{title}\n\n{ours}\n"


def _own(folder: Path) -> tuple[dict[str, Any], str]:
    """What the folder's own README.md says: its front matter, and its text without ours."""
    file = folder / CARD
    if not file.is_file():
        return {}, ""
    import yaml

    text = file.read_text(encoding="utf-8")
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        front = yaml.safe_load(found[1]) if found else {}
        if not isinstance(front or {}, dict):
            raise TypeError("it is no mapping")
    except (yaml.YAMLError, TypeError) as error:
        raise CheckpointInvalid(f"what {file} begins with is no YAML: {error}") from error
    body = text[found.end() :] if found else text
    ours = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    front = {k: v for k, v in (front or {}).items() if k != "model-index"}
    if ours.search(body):  # the rest of its front matter is ours too
        front = {k: v for k, v in front.items() if k in _THEIRS}
    return front, ours.sub("", body)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = loads(file.read_bytes())
        if not isinstance(value, dict):
            raise TypeError("it is no JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointInvalid(f"{file} cannot be understood: {error}") from error
    return value


def _facts(kind: Kind, folder: Path) -> dict[str, Any]:
    """The record that says how the thing was made."""
    if kind is Kind.HEAD:
        return _json(folder / HEAD)
    if kind is Kind.INDEX:
        return _json(folder / MANIFEST)
    if kind is Kind.STORE:
        return _json(folder / HEADER)
    return _json(folder / ADAPTER) | _json(folder / TRAINING)


def _base(facts: Mapping[str, Any]) -> str:
    """What it was made from, as it was named."""
    spec = facts.get("spec") or {}
    return str(facts.get("base") or facts.get("checkpoint") or spec.get("checkpoint") or "")


def _data(facts: Mapping[str, Any]) -> str:
    """The source it was trained on; empty where that is a store or not known."""
    return str((facts.get("config") or {}).get("source") or "")


def _origin(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Base and data set where the hub has them: a path on somebody's machine is no name there."""
    base, data = _base(facts).partition("@")[0], _data(facts)
    hub_data = data.removeprefix("hf:").partition("?")[0] if data.startswith("hf:") else ""
    return {
        "base_model": base if hub_id(base) else None,
        "datasets": [hub_data] if hub_id(hub_data) else None,
    }


def _short(name: str) -> str:
    """A name without the folders of the machine it was made on."""
    kind, _, rest = name.rpartition(":")
    plain = rest if hub_id(rest) else rest.rstrip("/").rpartition("/")[2]
    return f"{kind}:{plain}" if kind else plain


def _task(kind: Kind, facts: Mapping[str, Any]) -> str:
    writes = kind is Kind.ADAPTER or kind is Kind.CHECKPOINT
    return "image-to-text" if writes and facts.get("task") == "caption" else "feature-extraction"


def _tags(kind: Kind, facts: Mapping[str, Any]) -> list[str]:
    family = str((facts.get("spec") or {}).get("family") or "")
    what = "image-captioning" if facts.get("task") == "caption" else "image-text-retrieval"
    return list(filter(None, ["vlre", str(kind), family, what]))


def _figures(kind: Kind, folder: Path) -> Iterator[Figure]:
    """What was measured: the certificate first, then what the training saw on held-out images."""
    yield from _certified(_json(folder / CERTIFICATE))
    facts, held_out = _facts(kind, folder), "held-out images of the training data"
    if facts.get("refitted"):
        held_out += ", before it was trained once more with them"
    if kind is Kind.HEAD and (found := facts.get("metrics")):
        n = int((facts.get("val") or {}).get("images") or 0)
        for side in _RETRIEVAL:
            for at, value in (found.get(side) or {}).items():
                yield Figure(metric=f"{side} {at}", value=value, of=held_out, n=n)
    report = facts.get("report") or {}
    final = report.get("final") or {"mean_recall": report.get("mean_recall")}
    if kind in (Kind.CHECKPOINT, Kind.ADAPTER):
        for name, value in final.items():
            counts = name in (*_CAPTION_METRICS, "mean_recall") or name.startswith(_RETRIEVAL)
            if counts and isinstance(value, int | float):
                yield Figure(metric=name.replace("@", " R@"), value=value, of=held_out)
    if kind is Kind.INDEX and isinstance(value := report.get("recall_at_10"), int | float):
        of = "exact search over the same items"
        yield Figure(metric="recall@10 of the index", value=100 * value, of=of)


def _certified(certificate: Mapping[str, Any]) -> Iterator[Figure]:
    data = certificate.get("data") or {}
    names = ", ".join(map(_short, data.get("sources") or ())) or "?"
    of = f"{names}, split {data['split']}" if data.get("split") else names
    for score, found in (certificate.get("results") or {}).items():
        intervals = found.get("interval") or {}
        for side in _RETRIEVAL:
            for at, value in (found.get(side) or {}).items():
                if at.startswith("R@"):
                    between = (intervals.get(side) or {}).get(at)
                    yield Figure(
                        metric=f"{side} {at}" + (f" ({score})" if score != "itc" else ""),
                        value=value,
                        of=of,
                        n=int(data.get("n_images") or 0),
                        interval=tuple(between) if between else None,
                    )


def _metric(name: str) -> str:
    return name if name in _CAPTION_METRICS else "recall"


def _results(figures: Sequence[Figure]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-to-text" if figure.is_of_captions else "image-text-retrieval",
            dataset_type=re.sub(r"\W+", "-", figure.of).strip("-").lower(),
            dataset_name=figure.of + (f" ({figure.n:,} images)" if figure.n else ""),
            metric_type=_metric(figure.metric),
            metric_name=figure.metric,
            metric_value=figure.value,
        )
        for figure in figures
    ]


def _made(kind: Kind, facts: Mapping[str, Any]) -> str:
    base, data = _short(_base(facts)), _short(_data(facts))
    lines = {
        Kind.CHECKPOINT: "A BLIP-like checkpoint, in Hugging Face layout.",
        Kind.ADAPTER: "An adapter in peft's layout.",
        Kind.HEAD: "A projection head on stored features.",
        Kind.INDEX: "An index for similarity search; it knows its items and how to encode a query.",
        Kind.STORE: "The features of one encoder, of images and captions: a store of vlre, and a "
        "data set.",
    }
    more = [f"Made from `{base}`."] if base else []
    more += [f"Trained on `{data}`."] if data else []
    if kind is Kind.INDEX:
        more.append(f"Recipe `{facts.get('recipe')}`, {facts.get('items', 0):,} items.")
    if fingerprint := facts.get("encoder") or facts.get("fingerprint"):
        more.append(f"Encoder `{str(fingerprint)[:12]}`; vlre refuses it beside any other.")
    return " ".join([lines[kind], *more])


def _table(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    rows = ["## Figures", "", "| measured on | what | value |", "| --- | --- | --- |"]
    for figure in figures:
        images = f" ({figure.n:,} images)" if figure.n else ""
        tail = " ({:.1f}-{:.1f})".format(*figure.interval) if figure.interval else ""
        rows.append(f"| {figure.of}{images} | {figure.metric} | {figure.value:g}{tail} |")
    return "\n".join(rows)


def _use(kind: Kind, repo: str) -> str:
    lines = ["## Use", "", "```sh", "pip install 'vlre[cpu]'", _USE[kind].format(repo=repo), "```"]
    if kind is Kind.STORE:
        loaded = f'load_dataset("{repo}", "images")  # and "captions"'
        lines += ["", "```python", "from datasets import load_dataset", "", loaded, "```"]
    return "\n".join(lines)


def _list(inside: Sequence[str]) -> str:
    return "\n".join(["## What is inside", "", *(f"- {line}" for line in inside)]) if inside else ""
