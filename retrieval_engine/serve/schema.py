"""What requests and answers hold; the models behind `/openapi.json`."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MOST_TEXT = 2_000
MOST_IMAGES, MOST_TEXTS, MOST_HITS, MOST_RERANK = 64, 64, 1_000, 256


def _decoded(value: Any) -> Any:
    """The bytes of base64, with or without `data:image/…;base64,` before it."""
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("it is no base64") from error


_WRITERS = "One of `captioners` in /api/store; the first where it is empty."
_SENT = {"type": "string", "contentEncoding": "base64", "description": "An image file in base64."}
Image = Annotated[bytes, BeforeValidator(_decoded), WithJsonSchema(_SENT)]
Text = Annotated[str, Field(min_length=1, max_length=MOST_TEXT, pattern=r"\S")]
Id = Annotated[str, Field(min_length=1, max_length=4_096)]


class Body(BaseModel):
    """A request: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    example: ClassVar[dict[str, Any]] = {}


class MixPart(Body):
    """One part of a mixed query: words, an image, or an item; with its weight."""

    text: Text | None = None
    image: Image | None = None
    id: Id | None = Field(None, description="An item of the store.")
    weight: float = Field(1.0, ge=-100, le=100, description="Below 0: what not to find.")

    @model_validator(mode="after")
    def _one(self) -> "MixPart":
        _exactly_one(self, "text", "image", "id")
        return self


class SearchRequest(Body):
    """Find images by words, an image, an item, or a weighted mix of them."""

    text: Text | None = None
    image: Image | None = None
    id: Id | None = Field(None, description="An item of the store, as a query.")
    mix: list[MixPart] = Field([], max_length=16)
    k: int = Field(20, ge=1, le=MOST_HITS, description="How many images.")
    offset: int = Field(0, ge=0, le=10_000, description="Leave out so many of the best.")
    rerank: int = Field(0, ge=0, le=MOST_RERANK, description="So many in the ITM's order.")
    min_match: float = Field(0, ge=0, le=1, description="Leave out what is less likely a match.")
    where: str = Field(
        "",
        max_length=MOST_TEXT,
        description="Only images of which this holds: taken >= '2023-05' and camera like 'iPhone%'.",
    )
    example: ClassVar[dict[str, Any]] = {"text": "a dog on grass", "k": 10}

    @model_validator(mode="after")
    def _asks(self) -> "SearchRequest":
        if self.text is None and self.image is None and self.id is None and not self.mix:
            raise ValueError("give `text`, `image`, `id` or `mix`")
        return self

    @property
    def parts(self) -> Sequence[MixPart]:
        """All that is asked with, as parts of a mix."""
        named = {"text": self.text, "image": self.image, "id": self.id}
        single = [MixPart.model_validate({k: v}) for k, v in named.items() if v is not None]
        return [*single, *self.mix]


class CaptionRequest(Body):
    """Write sentences about images that are sent, or about items."""

    images: list[Image] = Field([], max_length=MOST_IMAGES)
    ids: list[Id] = Field([], max_length=MOST_IMAGES, description="Items of the store.")
    n: int = Field(1, ge=1, le=5, description="Different sentences for each image.")
    length: int | None = Field(None, ge=5, le=50, description="Tokens of a sentence at most.")
    beams: int | None = Field(None, ge=1, le=5, description="1 is greedy; not with `temperature`.")
    temperature: float | None = Field(
        None, ge=0.1, le=2, description="Draw words at random; higher is bolder."
    )
    seed: int = Field(0, ge=0, le=2**31, description="Of what is drawn at random.")
    model: str = Field("", max_length=999, examples=["vlre-tiny"], description=_WRITERS)
    prompt: str | None = Field(None, max_length=200, description="Beginning of every sentence.")
    format: Literal["json", "csv", "coco", "xml"] = "json"
    example: ClassVar[dict[str, Any]] = {"ids": ["12"], "n": 3, "beams": 3, "length": 30}

    @model_validator(mode="after")
    def _asks(self) -> "CaptionRequest":
        if not 1 <= len(self.images) + len(self.ids) <= MOST_IMAGES:
            raise ValueError(f"give 1 to {MOST_IMAGES} images as `images` or `ids`")
        return self


class MatchRequest(Body):
    """How well sentences fit an image."""

    image: Image | None = None
    id: Id | None = Field(None, description="An item of the store.")
    texts: list[Text] = Field(min_length=1, max_length=MOST_TEXTS)
    example: ClassVar[dict[str, Any]] = {"id": "12", "texts": ["a dog", "a boat at night"]}

    @model_validator(mode="after")
    def _one(self) -> "MatchRequest":
        _exactly_one(self, "image", "id")
        return self


class ExplainRequest(Body):
    """Where a model looks in an image for each word of a text."""

    image: Image | None = None
    id: Id | None = Field(None, description="An item of the store.")
    text: Text
    format: Literal["json", "png"] = Field("json", description="`png` is one picture of all words.")
    example: ClassVar[dict[str, Any]] = {"id": "12", "text": "a dog on grass"}

    @model_validator(mode="after")
    def _one(self) -> "ExplainRequest":
        _exactly_one(self, "image", "id")
        return self


class AddRequest(Body):
    """Encode images and keep them in the store; what it has already stays as it is."""

    images: list[Image] = Field(min_length=1, max_length=MOST_IMAGES)
    captions: list[Text] = Field(
        [], max_length=MOST_IMAGES, description="A sentence for each of the images, or none."
    )
    example: ClassVar[dict[str, Any]] = {"images": ["…"], "captions": ["a dog on grass"]}

    @model_validator(mode="after")
    def _fits(self) -> "AddRequest":
        if self.captions and len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.images)} `images` have {len(self.captions)} `captions`")
        return self


class EmbeddingsRequest(Body):
    """OpenAI's request. A text that begins with `data:image/` is an image."""

    input: str | list[str] = Field(
        description="Texts, or images as data URLs (data:image/png;base64,)."
    )
    model: str = Field("", description="Any: the store's encoder answers.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str = ""
    example: ClassVar[dict[str, Any]] = {"input": ["a dog on grass"], "model": "vlre"}

    @model_validator(mode="after")
    def _asks(self) -> "EmbeddingsRequest":
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 1 <= len(texts) <= MOST_TEXTS:
            raise ValueError(f"give 1 to {MOST_TEXTS} texts as `input`")
        if any(not t.strip() or (len(t) > MOST_TEXT and t[:5] != "data:") for t in texts):
            raise ValueError(f"a text is empty or longer than {MOST_TEXT} characters")
        return self


def _exactly_one(body: BaseModel, *names: str) -> None:
    if sum(getattr(body, name) is not None for name in names) != 1:
        raise ValueError(f"give exactly one of {', '.join(f'`{name}`' for name in names)}")


class Hit(BaseModel):
    """One answer; `image` and `thumbnail` are addresses of this server."""

    rank: int
    score: float
    id: str
    title: str = Field(description="Its id; of a video's frame 'clip.mp4 at 02:13'.")
    source: str
    captions: list[str]
    meta: dict[str, Any]
    image: str
    thumbnail: str
    match: float | None = Field(None, description="Probability, where `min_match` asked for it.")


class SearchAnswer(BaseModel):
    """The best images, best first."""

    query: str
    offset: int
    items: int = Field(description="How many images were searched.")
    hits: list[Hit]
    note: str = Field("", description="Which part of `where` leaves none.")
    best_match: float | None = Field(None, description="The highest probability, left out or not.")


class Caption(BaseModel):
    """What was written about one image, or why nothing was."""

    image: str
    captions: list[str] = []
    scores: list[float] = Field([], description="Log-probability over the length.")
    error: str | None = None


class CaptionAnswer(BaseModel):
    """Sentences about each image, in the order asked."""

    model: str
    images: list[Caption]


class MatchAnswer(BaseModel):
    """The probability that each text fits the image, in the order of `texts`."""

    probabilities: list[float]


class AddAnswer(BaseModel):
    """What was added: searches find it from now on."""

    added: int
    known: int = Field(description="Images that the store had already.")
    items: int = Field(description="How many images are searched now.")


class Word(BaseModel):
    """A word, and a PNG (data URL) that, laid over the image, darkens what did not matter."""

    word: str
    map: str


class ExplainAnswer(BaseModel):
    """Each word of the text as the model reads it; with `format=png` the answer is a picture."""

    probability: float = Field(description="That the text fits the image.")
    words: list[Word]


class Embedding(BaseModel):
    """One vector of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: dict[Literal["prompt_tokens", "total_tokens"], int] = Field(
        description="Words stand for tokens."
    )


class StoreAnswer(BaseModel):
    """What is served."""

    items: int
    model: str
    captioners: list[str] = Field(description="The first writes where no `model` is named.")
    failures: list[dict[str, str]] = Field(description="The first hundred.")
    failed: int
    index: str = Field("", description="Recipe of the index; empty where there is none.")
    recall_at_10: float | None = None
    reloads: int
    notes: list[str]


class Problem(BaseModel):
    """What went wrong."""

    code: str
    message: str
    hint: str
    request_id: str


class ProblemAnswer(BaseModel):
    """Every answer that is an error."""

    error: Problem
