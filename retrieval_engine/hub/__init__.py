"""The Hugging Face hub: what is made here goes there and comes back as it was."""

from retrieval_engine.hub.repository import Prepared, prepared, pull, push

__all__ = ["Prepared", "prepared", "pull", "push"]
