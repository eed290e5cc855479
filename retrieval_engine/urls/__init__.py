"""Files behind addresses such as `s3://bucket/key`, through fsspec; nothing else opens one.

An address is opened only where it lies below one that a person named (`named`): what annotations,
stores and requests say comes from strangers, and must not make this machine ask others.
Credentials come from where each service's client looks for them, never from the address.
"""

from retrieval_engine.urls.named import as_url, check_named, is_url, name_url, only_named
from retrieval_engine.urls.systems import READERS, file_system
from retrieval_engine.urls.url import Entry, Place, State, Url

__all__ = [
    "READERS",
    "Entry",
    "Place",
    "State",
    "Url",
    "as_url",
    "check_named",
    "file_system",
    "is_url",
    "name_url",
    "only_named",
]
