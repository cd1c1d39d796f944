"""A pinned revision from a hub, with the hubs' own clients against a server of their protocols on this machine."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.artifacts import file_digest, read_json
from xhs_pipeline.vlm.hub import changed_in_cache
from xhs_pipeline.worker import run
from xhs_pipeline_tests.small import PROFILE

REPO, REVISION = "owner/small-vl", "0123456789abcdef0123456789abcdef01234567"


def quiet(line: str) -> None:
    pass


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub and modelscope ask for: the list of a revision's files with their hashes, and each file."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urllib.parse.urlparse(self.path)
        asked = dict(urllib.parse.parse_qsl(address.query))
        if address.path == f"/api/models/{REPO}/tree/{REVISION}":
            self.answer(json.dumps([self.entry(file) for file in sorted(self.folder.iterdir())]).encode())
        elif address.path.startswith(f"/{REPO}/resolve/{REVISION}/"):
            self.send(self.folder / address.path.rpartition("/")[2])
        elif address.path == f"/api/v1/models/{REPO}/repo/files" and asked["Revision"] == REVISION:
            files = [
                {"Path": f.name, "Name": f.name, "Type": "blob", "Size": f.stat().st_size, "Sha256": file_digest(f)}
                for f in sorted(self.folder.iterdir())
            ]
            self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode())
        elif address.path == f"/api/v1/models/{REPO}/repo" and asked.get("Revision") == REVISION:
            self.send(self.folder / asked["FilePath"])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if REPO in address.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def entry(self, file: Path) -> dict[str, Any]:
        entry = {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": git_blob(file)}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"oid": file_digest(file), "size": file.stat().st_size, "pointerSize": 134}
        return entry

    def send(self, file: Path) -> None:
        large = file.suffix == ".safetensors"
        etag = file_digest(file) if large else git_blob(file)
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(file.stat().st_size)} if large else {}
        self.answer(file.read_bytes(), {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, **linked})

    def answer(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def git_blob(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's files; its address and a cache of its own stand in the environment that stages are started with."""
    served = type("Served", (Hub,), {"folder": Path(shutil.copytree(small_checkpoint, tmp_path / "hub"))})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield tmp_path / "hub"
    server.shutdown()
    server.server_close()


def build(out: Path, splits: Path, **changes: Any) -> dict[str, Any]:
    """base_model, in the process of its own that the asset runs it in: the clients read their address when they are imported."""
    out.mkdir(exist_ok=True)
    profile = PROFILE.model_copy(update={"base_model": REPO, "base_revision": REVISION, **changes})
    arguments = {"splits": str(splits), "profile": profile.model_dump(), "out": str(out)}
    return run("xhs_pipeline.training.stages:build_base", arguments, quiet)


def open_again(base: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """What adapter and merged_model do first."""
    profile = PROFILE.model_copy(update={"base_model": REPO, "base_revision": REVISION, **changes})
    script = (
        "import json, sys; from pathlib import Path; from xhs_pipeline.profile import Profile; from xhs_pipeline.vlm.base import open_base\n"
        "print(open_base(Path(sys.argv[1]), Profile(**json.loads(sys.argv[2])))[0])"
    )
    command = [sys.executable, "-c", script, str(base), json.dumps(profile.model_dump())]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ)


def test_a_pinned_revision_is_fetched_checked_and_recorded(hub: Path, small_splits: Path, tmp_path: Path) -> None:
    counts = build(tmp_path / "base", small_splits)
    recorded = read_json(tmp_path / "base" / "checkpoint.json")
    assert (recorded["name"], recorded["revision"], recorded["hub"]) == (REPO, REVISION, "huggingface")
    assert recorded["files"] == {p.name: file_digest(p) for p in hub.iterdir()}
    assert recorded["folder"].endswith(f"snapshots/{REVISION}") and counts["weight_files"] > 1
    assert not list((tmp_path / "base").glob("**/*.safetensors")), "weights are not copied"


def test_a_cache_that_was_emptied_is_filled_again_and_must_hold_the_same(
    hub: Path, small_splits: Path, tmp_path: Path
) -> None:
    build(tmp_path / "base", small_splits)
    shutil.rmtree(tmp_path / "hf")
    again = open_again(tmp_path / "base")
    assert again.returncode == 0, again.stderr[-2000:]
    assert len(list(Path(again.stdout.strip()).glob("*.safetensors"))) > 1
    shutil.rmtree(tmp_path / "hf")
    file = hub / "generation_config.json"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # other content under the same revision
    again = open_again(tmp_path / "base")
    assert again.returncode and "no longer what base recorded: generation_config.json (changed)" in again.stderr


def fetch(repo: str = REPO, revision: str = REVISION, hub: str = "huggingface") -> Path:
    """The first thing base_model does, alone. Raises ValueError with what it said."""
    script = "import sys; from xhs_pipeline.vlm.hub import fetch_checkpoint; print(fetch_checkpoint(*sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", script, repo, revision, hub], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.splitlines()[-1])
    return Path(done.stdout.splitlines()[-1])


def test_a_file_that_changed_in_the_cache_is_named_with_both_hashes_and_what_to_delete(hub: Path) -> None:
    snapshot = fetch()
    shard, small = sorted(snapshot.glob("*.safetensors"))[0], snapshot / "generation_config.json"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # one bit of a weight: no size, name or header says so
    for link, changed in ((shard, bytes(content)), (small, small.read_bytes() + b"\n")):
        link.resolve().write_bytes(changed)
    with pytest.raises(ValueError) as refused:
        fetch()
    for link in (shard, small):
        blob = link.resolve()
        assert f"{link}: its hash is " in str(refused.value)
        assert f"the hub recorded {blob.name[:16]}…; delete {blob} and run" in str(refused.value)
        blob.unlink()
    assert fetch() == snapshot and changed_in_cache(snapshot) == []  # the remedy helps


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        (REPO, "f" * 40, "cannot be fetched (RevisionNotFoundError"),
        ("owner/nothing", REVISION, "cannot be fetched (RepositoryNotFoundError"),
        (REPO, "main", "needs base_revision (a commit of the repository, 40 hex digits), which is 'main'"),
    ],
)
def test_what_the_hub_does_not_have_is_said_with_what_to_check(hub: Path, repo: str, revision: str, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        fetch(repo, revision)
    assert words in str(refused.value)


def test_without_a_network_the_cache_is_enough_and_without_both_the_error_says_so(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fetch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert fetch() == snapshot
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(
        ValueError, match=r"cannot be fetched .*copy the checkpoint here and set base_model to its folder"
    ):
        fetch()


def test_modelscope_is_asked_where_the_profile_says_so(hub: Path, tmp_path: Path) -> None:
    pytest.importorskip("modelscope", reason='the extra of that name is not installed: pip install -e ".[modelscope]"')
    folder = fetch(hub="modelscope")
    assert folder.is_relative_to(tmp_path / "modelscope")
    assert {p.name: file_digest(folder / p.name) for p in hub.iterdir()} == {
        p.name: file_digest(p) for p in hub.iterdir()
    }
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    fetch(hub="modelscope")  # its client finds the difference and fetches the file again
    assert file_digest(shard) == file_digest(hub / shard.name)
    with pytest.raises(ValueError, match=r"cannot be fetched .*MODELSCOPE_ENDPOINT"):
        fetch(revision="f" * 40, hub="modelscope")
