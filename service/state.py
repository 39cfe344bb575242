"""What servers may share: named classifiers and class embeddings, in a directory or in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompts.errors import StoreError
from prompts.store import ClassifierStore, DirectoryStore
from service.class_builder import SharedEmbeddings
from service.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

# A request waits for these, so they must be quick or not be; a classifier may be hundreds of megabytes.
_EMBEDDING_TIMEOUT = 0.25
_CLASSIFIER_TIMEOUT = 5.0


def open_store(settings: Settings) -> ClassifierStore:
    """Where named classifiers are kept: Redis if CLIPSERVE_STATE_URL names one, or a directory.

    Raises:
        StoreError: the directory cannot be used, the URL is none, or redis is not installed.
    """
    if settings.state_url is None:
        return DirectoryStore(settings.classifiers_folder)
    client = _connect(settings.state_url.get_secret_value(), _CLASSIFIER_TIMEOUT)
    from prompts.redis_store import RedisStore

    return RedisStore(client, prefix=settings.state_prefix)


def open_embeddings(settings: Settings) -> SharedEmbeddings | None:
    """Class embeddings in Redis, if there is one and they are not switched off."""
    if settings.state_url is None or not settings.state_embeddings_ttl:
        return None
    client = _connect(settings.state_url.get_secret_value(), _EMBEDDING_TIMEOUT)
    from prompts.redis_embeddings import RedisEmbeddings

    return RedisEmbeddings(client, seconds=settings.state_embeddings_ttl, prefix=settings.state_prefix)


def _connect(url: str, seconds: float) -> Redis:
    try:
        from prompts.redis_store import connect
    except ModuleNotFoundError as error:
        raise StoreError("CLIPSERVE_STATE_URL: needs the extra clipserve[redis]") from error
    return connect(url, seconds=seconds)
