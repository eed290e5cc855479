"""What a search refuses before it looks for anything."""

from collections.abc import Sequence

from retrieval_engine.errors import UsageError
from retrieval_engine.search.queries import Query, is_words, name_of


def check_numbers(k: int, offset: int = 0, rerank: int = 0, rerank_model: str = "") -> None:
    """Refuse how much is asked for.

    Raises:
        UsageError: a number is out of range, or there is nothing for the other model to judge.
    """
    if k < 1:
        raise UsageError(f"`k` is {k}; it must be at least 1")
    if offset < 0:
        raise UsageError(f"`offset` is {offset}; it must be 0 or more")
    if rerank and rerank < k + offset:
        least = f"`k`, which is {k}" if not offset else f"`k` and `offset`, {k + offset}"
        raise UsageError(f"`rerank` is {rerank}; it must be at least {least}")
    if rerank_model and not rerank:
        raise UsageError("`rerank_model` needs `rerank`: how many images it shall look at")


def check_asked(asked: Sequence[Query], *, rerank: int, min_match: float) -> None:
    """Refuse queries that are no words where words are needed, and words that are none.

    Raises:
        UsageError: with the number of the query.
    """
    for number, query in enumerate(asked, start=1):
        if isinstance(query, str) and not query.strip():
            raise UsageError(f"query {number} is empty", hint='ask for something: "a dog"')
        if isinstance(query, str) and not _is_unicode(query):
            raise UsageError(
                f"query {number} is not UTF-8: {query!a}",
                hint="set the terminal to UTF-8, or give the words in a file through stdin",
            )
        for name, value in (("rerank", rerank), ("min_match", min_match)):
            if value and not is_words(query):
                raise UsageError(
                    f"`{name}` matches words with pictures; query {number} is {name_of(query)!r}"
                )


def check_kinds(*, captions: bool, rerank: int, distinct: bool, min_match: float) -> None:
    """Refuse what is asked of images where captions are the answer.

    Raises:
        UsageError: with what does not go together, or a probability that is none.
    """
    if not 0 <= min_match <= 1:
        raise UsageError(f"`min_match` is {min_match}, a probability, must lie between 0 and 1")
    if captions and (min_match or distinct):
        raise UsageError(
            "`captions` answers with captions; `distinct` and `min_match` are of images"
        )
    if captions and rerank:
        raise UsageError("`rerank` orders images; `captions` answers with captions")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, or bytes that were no UTF-8
        return False
    return True
