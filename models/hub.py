"""Files of a repository on a Hugging Face style hub, through ``huggingface_hub``.

That library brings the cache, resumption, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``; this module
adds one clear sentence for each way a download can go wrong, and the comparison of what arrived with the
SHA-256 that the hub states.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import PullError
from models.manifest import file_entry

Progress = Callable[[str, float], None]

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DEFAULT_BRANCH = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class HubRepository:
    """One commit of a repository.

    ``files`` maps every path to the SHA-256 (hex) that the hub states for it, or to None where it states
    none: small files outside its large file storage, and everything in offline mode.
    """

    repo: str
    commit: str
    files: Mapping[str, str | None]
    licence: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"

    def download(self, path: str, progress: Progress) -> Path:
        """Fetch one file into the hub's cache, or find it there; a connection that breaks is resumed.

        Raises:
            PullError: it cannot be had, the disk is full, or it is not what the hub says it is.
        """
        from huggingface_hub import hf_hub_download

        with _explained(self.repo, self.commit, path):
            local = hf_hub_download(
                self.repo,
                path,
                revision=self.commit,
                tqdm_class=_progress_bar(path, progress),
            )
        stated = self.files.get(path)
        if stated is not None:
            check_sha256(Path(local), path, stated, by="the hub")
        return Path(local)


def open_repository(repo: str, revision: str | None) -> HubRepository:
    """Resolve ``revision`` (branch, tag or commit; None for the default branch) and list its files.

    In offline mode (``HF_HUB_OFFLINE=1``) the answer comes from the cache.

    Raises:
        PullError: the hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _explained(repo, revision):
        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except OfflineModeIsEnabled:
            return _cached_repository(repo, revision)
    if info.sha is None:
        raise PullError(f"the hub names no commit for {repo}@{revision or 'its default branch'}")
    _remember(repo, revision, info.sha)
    stated = {
        sibling.rfilename: sibling.lfs.sha256 if sibling.lfs else None for sibling in info.siblings or ()
    }
    licence = getattr(info.card_data, "license", None)
    return HubRepository(repo=repo, commit=info.sha, files=stated, licence=str(licence or ""))


def check_sha256(local: Path, path: str, expected: str, *, by: str) -> None:
    """Compare a file with the SHA-256 that ``by`` expects.

    Raises:
        PullError: it differs; the text names both.
    """
    found = file_entry(local).sha256
    if found != expected.lower():
        raise PullError(f"{path}: {by} expects the SHA-256 {expected.lower()}, the file has {found}; refused")


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _remember(repo: str, revision: str | None, commit: str) -> None:
    """Note in the cache which commit a branch or tag is, for offline mode: downloads go by the commit."""
    reference = _cache_folder(repo) / "refs" / (revision or _DEFAULT_BRANCH)
    if not _COMMIT.fullmatch(reference.name):
        with suppress(OSError):  # a cache that is read only, or full, is met again by the downloads
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)


def _cached_repository(repo: str, revision: str | None) -> HubRepository:
    folder = _cache_folder(repo)
    commit = revision or _DEFAULT_BRANCH
    if not _COMMIT.fullmatch(commit):
        reference = folder / "refs" / commit
        if not reference.is_file():
            raise PullError(f"{repo}@{commit} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
        commit = reference.read_text().strip()
    snapshot = folder / "snapshots" / commit
    paths = (path for path in snapshot.rglob("*") if path.is_file())
    return HubRepository(
        repo=repo, commit=commit, files=dict.fromkeys(path.relative_to(snapshot).as_posix() for path in paths)
    )


@contextmanager
def _explained(repo: str, revision: str | None, path: str = "") -> Iterator[None]:
    """Turn whatever ``huggingface_hub`` raises into one sentence."""
    try:
        yield
    except PullError:
        raise
    except Exception as error:
        sentence = _sentence(error, repo, revision, path)
        if sentence is None:
            raise
        raise PullError(sentence) from error


def _sentence(error: Exception, repo: str, revision: str | None, path: str) -> str | None:
    """What went wrong, for a user's eyes; None for an error that is none of the hub's."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    what = f"{path} of {repo}" if path else repo
    known: dict[type[Exception], str] = {
        errors.HFValidationError: f"repo: {repo!r} is no repository name, which has the form owner/name",
        errors.GatedRepoError: f"{repo} is gated: accept its terms on {hub} and set HF_TOKEN",
        errors.RepositoryNotFoundError: f"repo: {hub} has no {repo} (if it is private, set HF_TOKEN)",
        errors.RevisionNotFoundError: f"revision: {repo} has no branch, tag or commit {revision!r}",
        errors.LocalEntryNotFoundError: f"{what} is not in the cache, and {hub} cannot be reached",
        errors.EntryNotFoundError: f"{repo} has no file {path}",
        errors.HfHubHTTPError: f"{hub} did not hand out {what}: {error}",
    }
    for kind, sentence in known.items():
        if isinstance(error, kind):
            return sentence
    if isinstance(error, OSError) and error.errno is not None:
        reason = "the disk is full" if error.errno in _DISK_FULL else error.strerror
        return f"{what} could not be stored in {cache}: {reason}"
    # The HTTP library under huggingface_hub changed its name between releases.
    if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
        return None
    if path:
        return f"the connection to {hub} was cut while {what} was fetched; pull again"
    return f"the hub {hub} cannot be reached ({error})"


def _progress_bar(path: str, progress: Progress) -> Any:
    """A ``tqdm`` class that reports to ``progress`` and draws nothing."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self.n = kwargs.get("initial") or 0
            self.total = kwargs.get("total")

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.total:
                progress(path, min(1.0, self.n / self.total))

    return Bar
