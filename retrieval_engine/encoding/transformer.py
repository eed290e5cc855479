"""Features as a step of scikit-learn's pipelines; scikit-learn itself is not needed."""

import inspect
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.without_store import encode_given, narrowed
from retrieval_engine.errors import UsageError
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import DEFAULT_MODEL, Modality


class FeatureTransformer:
    """Images or sentences in, rows of features out, as scikit-learn's transformers do it.

        make_pipeline(FeatureTransformer(), LogisticRegression()).fit(pictures, labels)

    Nothing is learned: `fit` opens the model. Where a head is given, arrays of the features that
    it reads are mapped as well.

    Args:
        model: checkpoint, see `open_encoder`.
        feature: `pooled`, the state before projection, or `itc`, what is searched with. Several
            vectors of an image (BLIP-2's `itc`) are laid side by side.
        head: directory of a head; `itc` is then what it makes of the model's features.
        side: what arrays for the head are features of, `images` or `captions`.
        device: `auto`, `cpu`, `cuda`, …
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        feature: str = "pooled",
        head: str | Path | None = None,
        side: str = "images",
        device: str = "auto",
    ) -> None:
        self.model = model
        self.feature = feature
        self.head = head
        self.side = side
        self.device = device

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Open the model.

        Raises:
            UsageError: `side` is neither of the two.
            EncoderError: it cannot be loaded.
        """
        if self.side not in {str(side) for side in Modality}:
            raise UsageError(f"`side` is {self.side!r}; images or captions")
        encoder: Encoder = open_encoder(self.model, device=self.device)
        self.head_ = None
        if self.head is not None:
            from retrieval_engine.heads import HeadedEncoder, load_head

            self.head_ = load_head(Path(self.head))
            encoder = HeadedEncoder(encoder, self.head_)
        self.encoder_ = encoder
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """(n, d) float32 features of n images or sentences, or of n rows for the head."""
        if not hasattr(self, "encoder_"):
            self.fit()
        if self.head_ is not None and isinstance(X, np.ndarray) and X.ndim == 2:
            found = narrowed(self.head_.head.project(Modality(self.side), X))
        else:
            feature = "itc" if self.head_ is not None else self.feature
            found = encode_given(self.encoder_, X, feature)
        return found.reshape(len(found), -1)

    def fit_transform(self, X: Any, y: Any = None, **how: Any) -> NDArray[np.float32]:
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change what it is made with; the next `fit` takes it.

        Raises:
            UsageError: there is no such parameter.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise UsageError(f"no parameter {name!r}; known: {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Whether the model is open."""
        return hasattr(self, "encoder_")

    def __sklearn_tags__(self) -> Any:
        """That it transforms, and what it takes is no table of numbers; asked by scikit-learn."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(two_d_array=False, string=True),
            requires_fit=False,
        )

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"FeatureTransformer({given})"
