"""Fetching a pinned revision from a model hub, and comparing what lies in the cache with the hashes that the hub recorded."""

import hashlib
import re
from pathlib import Path

from xhs_pipeline.artifacts import file_digest
from xhs_pipeline.vlm.layout import FILES, CheckpointError

HUGGINGFACE, MODELSCOPE = "huggingface", "modelscope"


def fetch_checkpoint(repo_id: str, revision: str, hub: str = HUGGINGFACE) -> Path:
    """Download (or find in the hub's cache) a pinned revision and return its local folder, its files verified.

    Needs the network once. Raises ValueError when no commit is pinned (a model that moves under a name cannot be defended),
    when it cannot be had, or when a cached file is not what the hub recorded.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"base_model {repo_id!r} needs base_revision (a commit of the repository, 40 hex digits), which is {revision!r}; "
            "an unpinned model may change"
        )
    return _from_modelscope(repo_id, revision) if hub == MODELSCOPE else _from_huggingface(repo_id, revision)


def _from_huggingface(repo_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise _unreachable(repo_id, revision, "HF_ENDPOINT", error) from error
    changed = changed_in_cache(folder)
    if changed:
        raise CheckpointError(changed)
    return folder


def changed_in_cache(folder: Path) -> list[str]:
    """Files of a Hugging Face snapshot whose content is not what the hub recorded, each with how to mend it.

    The cache names a file's content by the hub's own record: SHA-256 for large files (the LFS object id), git's SHA-1 of the
    blob for small ones; a snapshot holds links to them. So this needs no network.
    """
    problems = []
    for link in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        blob = link.resolve()
        recorded = blob.name
        if blob.parent.name != "blobs" or len(recorded) not in (40, 64):
            continue
        found = file_digest(blob) if len(recorded) == 64 else _git_blob(blob)
        if found != recorded:
            problems.append(
                f"{link}: its hash is {found[:16]}…, the hub recorded {recorded[:16]}…; delete {blob} and run base_model again"
            )
    return problems


def _git_blob(file: Path) -> str:
    """Git's object id of a file: SHA-1 of 'blob SIZE\\0' and the content (git's documentation, Git Internals)."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _from_modelscope(repo_id: str, revision: str) -> Path:
    """ModelScope's client compares each file with the recorded SHA-256 itself, also one that is in its cache already."""
    try:
        from modelscope import snapshot_download
        from modelscope_hub.errors import HubError
    except ImportError as error:
        raise ValueError(
            'base_hub: modelscope needs the package of that name; run: pip install -e ".[modelscope]"'
        ) from error

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except (HubError, OSError) as error:
        raise _unreachable(repo_id, revision, "MODELSCOPE_ENDPOINT", error) from error


def _unreachable(repo_id: str, revision: str, variable: str, error: BaseException) -> ValueError:
    said = " ".join(str(error).split())[:300]
    return ValueError(
        f"base_model {repo_id} at {revision} cannot be fetched ({type(error).__name__}: {said}); check the name, the revision, the "
        f"network and {variable}, or copy the checkpoint here and set base_model to its folder"
    )
