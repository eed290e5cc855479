"""What the models' threads do with a batch of questions."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.encoding.image_tokens import FEATURE, VisionStates
from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.models import Encoder
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Modality
from retrieval_engine.search import Hits, Mix, Searcher
from retrieval_engine.search.queries import combined
from retrieval_engine.serve.live import Live
from retrieval_engine.serve.questions import (
    Explain,
    Explained,
    Like,
    Match,
    Picture,
    Question,
    Rerank,
    Vectors,
    Write,
    Written,
)
from retrieval_engine.sources.decode import decode


def prepare(
    data: bytes, searcher: Searcher, *, max_pixels: int, reader: Encoder | Captioner | None = None
) -> Picture:
    """Look an image up in the store, and decode it where the store does not have what is needed.

    Args:
        data: a whole file.
        searcher: over the store, and with the encoder.
        max_pixels: see `decode`.
        reader: the model that needs its vision states; None where `itc` is needed.

    Raises:
        DecodeError: it is no usable image.
    """
    store, key = searcher.store, hashlib.sha256(data).hexdigest()
    look: ImagePreprocessor
    if reader is not None:
        states, look = VisionStates(reader, store), reader.preprocessor
        if states.store is not None:
            rows = states.store.rows(Modality.IMAGES, [key], FEATURE)
            if rows[0] >= 0:
                return Picture(data, key, None, states.read(rows, [None])[0], None)
    else:
        look = searcher.encoder.preprocessor
        if store is not None:
            rows = store.rows(Modality.IMAGES, [key], searcher.feature)
            if rows[0] >= 0:
                stored = store.read(Modality.IMAGES, searcher.feature, rows)[0]
                return Picture(data, key, stored.astype(np.float32), None, None)
    pixels = look.pixels(decode(data, max_pixels=max_pixels, least_side=look.least_side))
    return Picture(data, key, None, None, pixels)


def encoder_work(live: Live, questions: Sequence[Question | Like]) -> list[Hits | Vectors]:
    """Hits or (v, d) vectors of each question."""
    return live.steadily(lambda searcher: _answers(live, searcher, questions))


def _answers(
    live: Live, searcher: Searcher, questions: Sequence[Question | Like]
) -> list[Hits | Vectors]:
    answers: dict[int, Hits | Vectors] = {}
    mixed = [(n, q) for n, q in enumerate(questions) if isinstance(q, Question)]
    for number, question in enumerate(questions):
        if isinstance(question, Like):
            item = live.number(question.item_id, searcher.catalog)
            answers[number] = searcher.similar(item, question.k, question.where)
    encoded = _encoded(searcher, [question for _, question in mixed])
    together: dict[tuple[int, int, str], list[int]] = {}
    for (number, question), vectors in zip(mixed, encoded, strict=True):
        answers[number] = vectors
        if question.k and (len(vectors) > 1 or isinstance(searcher.store, ProjectedStore)):
            answers[number] = _by_itself(searcher, question)
        elif question.k:
            alike = (question.k, question.offset, question.where)
            together.setdefault(alike, []).append(number)
    for (k, offset, where), numbers in together.items():
        rows = [answers[number][0] for number in numbers]
        found = searcher.search(rows, k, offset=offset, where=where)
        answers |= dict(zip(numbers, found, strict=True))
    return [answers[number] for number in range(len(questions))]


def _encoded(searcher: Searcher, questions: Sequence[Question]) -> list[Vectors]:
    """(v, d) unit vectors of each question: all words in one pass, all images in another."""
    parts = [part for question in questions for part, _ in question.parts]
    words = list(dict.fromkeys(part for part in parts if isinstance(part, str)))
    images = [part for part in parts if isinstance(part, Picture) and part.vectors is None]
    known: dict[object, Vectors] = {}
    name, encoder = searcher.feature, searcher.encoder
    if words:
        known |= zip(words, encoder.encode_texts(words, [name])[name], strict=True)
    size = encoder.default_batch_size
    for start in range(0, len(images), size):
        some = images[start : start + size]
        pixels = np.stack([image.pixels for image in some if image.pixels is not None])
        known |= zip(some, encoder.encode_images(pixels, [name])[name], strict=True)
    found = []
    for question in questions:
        vectors = [
            part.vectors
            if isinstance(part, Picture) and part.vectors is not None
            else np.asarray(known[part], np.float32)
            for part, _ in question.parts
        ]
        if len(vectors) == 1 and question.parts[0][1] == 1:
            found.append(vectors[0])
            continue
        weights = [weight for _, weight in question.parts]
        found.append(combined(list(zip(vectors, weights, strict=True)), "the query"))
    return found


def _by_itself(searcher: Searcher, question: Question) -> Hits:
    """For images of several vectors (BLIP-2), and stores seen through a head."""
    parts = [(p.data if isinstance(p, Picture) else p, weight) for p, weight in question.parts]
    query = parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else Mix(tuple(parts))
    hits: Hits = searcher.search(query, question.k, offset=question.offset, where=question.where)
    return hits


def _reranked(asked: Rerank, searcher: Searcher) -> Hits:
    hits: Hits = searcher.search(
        asked.text,
        asked.k,
        offset=asked.offset,
        rerank=asked.rerank,
        where=asked.where,
        min_match=asked.min_match,
    )
    return hits


def matcher_work(
    live: Live, questions: Sequence[Match | Rerank | Explain]
) -> list[Hits | Vectors | Explained]:
    """Hits, (t,) probabilities of each text, or maps of each word, of each question."""
    answers: dict[int, Hits | Vectors | Explained] = {}
    for number, question in enumerate(questions):
        if isinstance(question, Rerank):
            answers[number] = live.steadily(partial(_reranked, question))
        elif isinstance(question, Explain):
            answers[number] = _explained(live.searcher.encoder, question)
    matches = [(n, q) for n, q in enumerate(questions) if isinstance(q, Match)]
    if matches:
        found = _matched(live.searcher.encoder, [question for _, question in matches])
        answers |= {number: p for (number, _), p in zip(matches, found, strict=True)}
    return [answers[number] for number in range(len(questions))]


def _explained(encoder: Encoder, asked: Explain) -> Explained:
    [probabilities] = _matched(encoder, [Match(asked.picture, (asked.text,))])
    states = _states(encoder, [asked.picture])[0]
    words = encoder.matcher().relevance(states, asked.text)
    return Explained(float(probabilities[0]), tuple(words))


def _matched(encoder: Encoder, questions: Sequence[Match]) -> list[Vectors]:
    states = _states(encoder, [question.picture for question in questions])
    counts = [len(question.texts) for question in questions]
    texts = [text for question in questions for text in question.texts]
    images = np.repeat(np.arange(len(questions)), counts)
    pairs = np.stack([images, np.arange(len(texts))], axis=1)
    found = encoder.matcher().score_pairs(
        lambda numbers: states[numbers], texts, pairs, as_probability=True
    )
    return np.split(found, np.cumsum(counts)[:-1])


def captioner_work(live: Live, questions: Sequence[Write]) -> list[Written]:
    """Sentences about each image; those that are asked for alike are written together.

    What is drawn at random depends on the image's content and the seed, not on its neighbours.
    """
    # A server listens before torch is there.
    import torch

    from retrieval_engine.caption.generating import complete, write_captions

    alike: dict[tuple[str, DecodingOptions], list[int]] = {}
    for number, question in enumerate(questions):
        alike.setdefault((question.model, question.options), []).append(number)
    answers: dict[int, Written] = {}
    for (model, asked), numbers in alike.items():
        captioner = live.captioner(model)
        options = complete(asked, captioner)
        size = max(1, captioner.captions_at_once // options.width)
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            pictures = [questions[number].picture for number in some]
            states = torch.from_numpy(_states(captioner, pictures))
            keys = [picture.key for picture in pictures]
            written = write_captions(captioner, states, keys, options)
            for number, sentences in zip(some, written, strict=True):
                texts = (captioner.text(s.ids, options.prompt or "") for s in sentences)
                scores = tuple(float(sentence.score) for sentence in sentences)
                answers[number] = Written(tuple(text.strip() for text in texts), scores)
    return [answers[number] for number in range(len(questions))]


def _states(model: Encoder | Captioner, pictures: Sequence[Picture]) -> NDArray[Any]:
    """(n, t, w) vision states, encoded where the store had none."""
    fresh = [picture.pixels for picture in pictures if picture.pixels is not None]
    encoded: list[NDArray[Any]] = []
    for start in range(0, len(fresh), model.default_batch_size):
        pixels = np.stack(fresh[start : start + model.default_batch_size])
        encoded.extend(model.encode_images(pixels, [FEATURE])[FEATURE])
    made = iter(encoded)
    found = [p.tokens if p.tokens is not None else next(made) for p in pictures]
    return np.stack(found)
