"""Penn Treebank tokens of captions, as the COCO caption tools make them, without Java.

The COCO tools run the Stanford tokenizer (CoreNLP 3.4.1, `-lowerCase`) and drop punctuation. These
rules were written from that program's answers to probes, not from its source: at each place the
rule with the longest match wins, and of equals the earlier. One difference is wanted: the Stanford
program reads all captions as one text, so that a caption ending in `b.` keeps or loses the full
stop by the first word of the caption after it. Here a caption ends at its end.

The trap: bracket tokens stay (`-lrb-`), because the COCO tools look for them in upper case after
lowering; so do `!!`, `?!`, `#`, `$` and `&`. Removing "all punctuation" changes every metric.
"""

import re
from collections.abc import Callable, Sequence

# What the COCO tools drop, after the tokens are made.
_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

_PERIOD_STAYS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bancorp bhd bldg blvd brig bros
    calif capt cf cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est
    etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky
    lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb
    nev nov oct okla penn pfc ph ph.d plc ppte ppty pres prof pte ptes pty ptys pvt rd rep reps rev
    rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues
    univ va vs vt wed wis wisc wm wyo
"""
_PERIOD_STAYS_IN_CAPITALS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_PERIOD_STAYS_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
# After one of these a single letter's full stop ends a sentence: `plan b. The dog`.
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Now Once One Other Our She Since So Some Such That The Their Then There These They This We
    What When While Yet You
"""
_IN_TWO = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": ""}
_FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_MONEY = {"£": "#", "€": "$", "¢": "cents"}

_APOSTROPHE = "['\u2019]"
_LETTER = r"[^\W\d_½¼¾⅓⅔]"
_ALNUM = r"[^\W_½¼¾⅓⅔]"


def _any(words: str) -> str:
    """An alternation of words, the longest first."""
    return "|".join(sorted(map(re.escape, words.split()), key=len, reverse=True))


def _brackets(text: str) -> str:
    return "".join(_BRACKETS.get(c, c) for c in text)


def _halves(text: str) -> str:
    at = _IN_TWO[text.lower()]
    return f"{text[:at]} {text[at:]}"


def _before_not(text: str) -> str:
    at = max(map(text.rfind, "nN"))
    return f"{text[:at]} {_straight(text[at:])}"


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")


Rewrite = Callable[[str], str] | None

# Each rule: what it matches, and what becomes of the match (spaces part tokens, "" drops it).
_RULES: Sequence[tuple[str, Rewrite]] = (
    (r"</?[A-Za-z!?][^>\n]*>", None),
    (rf"(?i:{_any(' '.join(_ENTITIES))})", lambda t: _ENTITIES[t.lower()]),
    (r"&#\d+;", None),
    (r"https?://[^\s\"<>|(){}]*[^\s\"<>|.!?(){},;:'-]", None),
    (r"(?:[^\s\"`'<>|.!?(){},_$/-]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|(){}]*[^\s\"<>|.!?(){},-])?",
     None),
    (rf"{_ALNUM}[^\s\"<>|(){{}}@]*@(?:[^\s\"<>|(){{}}.,@]+\.)*[^\s\"<>|(){{}}\[\].,;:!?'@-]+", None),
    (r"@[A-Za-z_][A-Za-z0-9_]*|#[A-Za-z_]+", None),
    (rf"(?i:{_any(' '.join(_IN_TWO))})", _halves),
    (rf"(?i:{_APOSTROPHE}t(?=is|was))", _straight),
    (rf"{_LETTER}*[nN]['\u2019`][tT]s?(?![A-Za-z])", _before_not),
    (rf"(?i:{_APOSTROPHE}(?:s|m|d|re|ve|ll))(?![A-Za-z])", _straight),
    (rf"(?i:{_APOSTROPHE}(?:em|til|cause)(?![A-Za-z])|{_APOSTROPHE}n(?:{_APOSTROPHE}|(?![A-Za-z])))",
     _straight),
    (rf"{_APOSTROPHE}[2-9]0s", None),
    # Words with an apostrophe inside.
    (rf"[A-HJ-XZn]{_APOSTROPHE}{_LETTER}{{2,}}", _straight),
    (rf"(?i:o{_APOSTROPHE}clock|e{_APOSTROPHE}er|c{_APOSTROPHE}(?:est|mon)|qu{_APOSTROPHE}[a-z]+)",
     _straight),
    (rf"(?i:[a-z]+[aeiou]{_APOSTROPHE}[aeiou][a-z]*|li{_APOSTROPHE}l|somethin{_APOSTROPHE}|ol{_APOSTROPHE})",
     _straight),
    (rf"(?i:[ldj]{_APOSTROPHE}|y{_APOSTROPHE}(?=[a-z]))", _straight),
    # Abbreviations keep their full stop, and so does anything before a comma or semicolon.
    (rf"{_LETTER}(?:\.{_LETTER})+\.(?!{_ALNUM})", None),
    (rf"(?i:{_any(_PERIOD_STAYS)})\.", None),
    (rf"(?:{_any(_PERIOD_STAYS_IN_CAPITALS + ' ' + _PERIOD_STAYS_IN_CAPITALS.upper())})\.", None),
    (rf"(?i:{_any(_PERIOD_STAYS_BEFORE_NUMBERS)})\.(?=\s*\d)", None),
    (rf"{_LETTER}\.(?!\s+(?:{_any(_STARTERS)})\s)(?!\s*$)", None),
    (rf"{_ALNUM}+\.(?=[,;])", None),
    # Words, hyphenated words, words with a slash or a missing space after the full stop.
    (rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*", None),
    (rf"(?:[dDoOlL]{_APOSTROPHE}(?={_LETTER}))?{_ALNUM}+"
     rf"(?:[-_](?:[dDoOlL]{_APOSTROPHE}(?={_LETTER}))?{_ALNUM}+)*", _straight),
    (rf"(?:{_LETTER}\.)+(?:-{_ALNUM}+)+", None),
    (rf"{_ALNUM}+(?:-{_LETTER}+){{0,2}}(?:/{_ALNUM}+(?:-{_LETTER}+){{0,2}}){{1,2}}", None),
    (r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", lambda t: t.replace("&amp;", "&")),
    (r"[wW]/(?:o|out)(?![A-Za-z])", None),
    (rf"\d+(?:[.,]\d+)+(?:-{_LETTER}+)+", None),
    # Numbers, dates, fractions, telephones.
    (r"[+-]?\d+(?:[.:,]\d+)*|[+-]?(?:[.:,]\d+)+", None),
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d{1,4}/\d{1,4}", None),
    (r"\(\d{3}\) ?\d{3}-\d{4}", _brackets),
    (r"[A-Za-z]{1,2}\$", None),
    # Punctuation.
    (r"\.{3,}|(?:\.[ \u00a0]){2,4}\.|\u2026", lambda _: ""),
    (r"[!?]+", None),
    (r"-{2,4}|[\u2012-\u2015]", lambda _: ""),
    (r"-{5,}", None),
    (r"[:;=]['-]?[()DPOdp](?![A-Za-z])|\^_\^", _brackets),
    (r"(?i:-[lr][rsc]b-)", None),
    (r"\*+|_+", None),
    (r"[()\[\]{}]", _brackets),
    (r"''|``|[\"\u201c\u201d\u2018\u2019\u201a-\u201f]", lambda _: ""),
    (r"[½¼¾⅓⅔]", lambda t: _FRACTIONS[t]),
    (r"[£€¢]", lambda t: _MONEY[t]),
    (r"[\U00010000-\U0010ffff]", lambda _: ""),
    (r"\S", None),
)  # fmt: skip

_COMPILED = [(re.compile(pattern), rewrite) for pattern, rewrite in _RULES]
# Nine words in ten need no rule: letters between spaces, or before a comma or the last full stop.
_PLAIN = re.compile(rf"\s*(?:({_LETTER}+)(?=[\s,]|$)|({_LETTER}{{2,}})(?=\.\s*$)|[.,;:](?=\s|$))")
_SPACE = re.compile(r"\s*")
_RULED = frozenset(
    _IN_TWO.keys() | set(_PERIOD_STAYS.split()) | set(_PERIOD_STAYS_IN_CAPITALS.lower().split())
)


def ptb_tokens(caption: str) -> list[str]:
    """The tokens by which a caption is scored.

    Args:
        caption: as written; a line break is a space.

    Returns:
        Lower-case tokens without the punctuation that the COCO tools drop; none for a caption of
        spaces and punctuation alone.

    Examples:
        >>> ptb_tokens("A dog's ball, on the grass.")
        ['a', 'dog', "'s", 'ball', 'on', 'the', 'grass']
    """
    text = caption.strip()
    tokens: list[str] = []
    at = 0
    while at < len(text):
        plain = _PLAIN.match(text, at)
        if plain and (word := (plain[1] or plain[2] or "").lower()) not in _RULED:
            tokens.append(word)
            at = plain.end()
            continue
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if at < len(text):
            at, found = _longest(text, at)
            tokens += found.split()
    return [t for token in tokens if (t := token.lower()) and t not in _DROPPED]


def _longest(text: str, at: int) -> tuple[int, str]:
    """End of the longest match at a place that is no space, and what becomes of it."""
    end, rule = at, _COMPILED[-1][1]
    for pattern, rewrite in _COMPILED:
        match = pattern.match(text, at)
        if match and match.end() > end:
            end, rule = match.end(), rewrite
    piece = text[at:end]
    return end, rule(piece) if rule else piece
