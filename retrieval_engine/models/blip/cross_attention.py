"""Cross-attention of sentences with images, with or without forming the images' keys and values.

A caption asks an image some fifty questions (a dozen words in each of a few beams), and for that
the keys and values of its 577 states cost more than all else that is computed for it from the
cache: two matrix products of 577 x w x w in each layer. They need not be formed:

    q . (W_k x + b_k)          =  (W_k' q) . x  +  a constant that softmax does not see
    sum_j p_j (W_v x_j + b_v)  =  W_v (sum_j p_j x_j)  +  b_v

so that each question costs 2 x 577 x w per head instead of 2 x 577 x w / heads, and nothing is paid
in advance. For ViT-B/384 on one core that is less up to four sentences at once (greedy: a third of
the time in float32, a seventh in bfloat16); for more, and on CUDA, where the products are cheap,
the keys and values are formed once, when they are first needed.
"""

from typing import Any

import torch
from torch import Tensor

from retrieval_engine.models.attend import keys_values_of, look, split_heads

_MOST_SENTENCES = 4


class CrossAttention:
    """One layer's attention with a batch of images.

    Args:
        attention: transformers' cross-attention module.
        tokens: (n, t, w) vision states, in the dtype that is computed in.
        formed: form keys and values at once, through the modules, which may be adapters'.
    """

    def __init__(self, attention: Any, tokens: Tensor, *, formed: bool = False) -> None:
        self._attention = attention
        self._tokens = tokens
        self._heads = attention.num_attention_heads
        self._formed: tuple[Tensor, Tensor] | None = None
        if formed:
            self._formed = keys_values_of(attention, tokens)
            return
        # (h, d, w); cast once for the whole batch, where autocast would at every step
        self._key, self._value = (
            linear.weight.to(tokens.dtype).view(self._heads, -1, tokens.shape[-1])
            for linear in (attention.key, attention.value)
        )

    def keep(self, images: Tensor, tokens: Tensor) -> None:
        """Go on with some of the images.

        Args:
            images: (m,) positions among the n images.
            tokens: (m, t, w) their states.
        """
        self._tokens = tokens
        if self._formed is not None:
            self._formed = self._formed[0][images], self._formed[1][images]

    def __call__(self, x: Tensor, sentences: int) -> Tensor:
        """Attend to each sentence's own image.

        Args:
            x: (n b, m, w) states of b sentences for each image.
            sentences: b.

        Returns:
            (n b, m, w).
        """
        if self._formed is None:
            if x.device.type == "cpu" and sentences <= _MOST_SENTENCES:
                return self._ask(x)
            self._formed = keys_values_of(self._attention, self._tokens)
        return look(self._attention, x, *self._formed)

    def _ask(self, x: Tensor) -> Tensor:
        n = self._tokens.shape[0]  # `len` would fix it in an exported graph
        rows, m, width = x.shape
        asked = self._attention.query(x).to(self._tokens.dtype).view(n, rows // n * m, width)
        q = split_heads(asked, self._heads) * (width // self._heads) ** -0.5  # (n, h, s, d)
        # einsum brings the heads to the front; a plain product would copy the weights n times
        questions = torch.einsum("nhsd,hdw->nhsw", q, self._key)
        scores = questions.flatten(1, 2) @ self._tokens.transpose(1, 2)  # (n, h s, t)
        seen = scores.float().softmax(-1).to(self._tokens.dtype)
        mixed = (seen @ self._tokens).view_as(questions)
        out = torch.einsum("nhsw,hdw->nshd", mixed, self._value)
        joined = out.reshape(rows, m, width)
        bias: Tensor = self._attention.value.bias
        return joined + bias.to(joined.dtype)
