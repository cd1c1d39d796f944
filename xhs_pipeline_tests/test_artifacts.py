"""Artefacts appear whole or not at all, whatever ends the run that writes them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.artifacts import (
    Artifact,
    ArtifactStore,
    Built,
    CheckOutcome,
    RejectedArtifact,
    file_digest,
    read_json,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


class Stage:
    """A stage that writes one file and counts how often it ran."""

    def __init__(self, text: str = "rows", checks: list[CheckOutcome] | None = None) -> None:
        self.text, self.checks, self.runs = text, checks or [], 0
        self.found: list[str] = []

    def __call__(self, work: Path) -> Built:
        self.runs += 1
        self.found = sorted(p.name for p in work.iterdir())
        (work / "rows.txt").write_text(self.text, encoding="utf-8")
        return Built({"rows": 1}, self.checks)


def build(store: ArtifactStore, stage: Any, **changes: Any) -> Artifact:
    """The artefact `things` of settings that `changes` may change."""
    wanted: dict[str, Any] = {"inputs": {"posts": "abc"}, "settings": {"size": 1}, "code_version": "1"}
    return store.build("things", stage, **{**wanted, **changes})


def latest_version(store: ArtifactStore) -> Any:
    return read_json(store.folder("things") / "latest.json")["version"]


def versions(store: ArtifactStore) -> set[str]:
    return {p.name for p in store.folder("things").iterdir() if p.is_dir() and p.name != ".work"}


# What a child process needs to build the same artefact; `write` comes before it, arguments follow it in sys.argv.
PRELUDE = """
import os, resource, sys, time
from pathlib import Path
from xhs_pipeline.artifacts import ArtifactStore, Built

store = ArtifactStore(Path(sys.argv[1]))
def build(write, **changes):
    wanted = {"inputs": {"posts": "abc"}, "settings": {"size": 1}, "code_version": "1"}
    return store.build("things", write, **{**wanted, **changes}, log=lambda line: print(line, flush=True))
"""


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def child_script(children: list[subprocess.Popen[str]], code: str, *arguments: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    children.append(child)
    return child


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


# --- the same again, and something else ---------------------------------------------------------------------------------


def test_the_same_inputs_again_rewrite_nothing_and_the_log_says_so(tmp_path: Path) -> None:
    store, stage, said = ArtifactStore(tmp_path), Stage(), list[str]()
    first = build(store, stage)
    written = (first.file("rows.txt").stat().st_mtime_ns, first.file("manifest.json").read_bytes())
    again = build(store, stage, log=said.append)
    assert stage.runs == 1 and not first.reused and again.reused
    assert (again.version, again.content, again.path) == (first.version, first.content, first.path)
    assert (again.file("rows.txt").stat().st_mtime_ns, again.file("manifest.json").read_bytes()) == written
    assert said == [f"things: {first.version} is there already, nothing recomputed"]


@pytest.mark.parametrize(
    "change",
    [{"inputs": {"posts": "abd"}}, {"settings": {"size": 2}}, {"code_version": "2"}, {"inputs": {"other": "abc"}}],
)
def test_another_input_setting_or_code_version_is_another_version(tmp_path: Path, change: dict[str, Any]) -> None:
    store, stage = ArtifactStore(tmp_path), Stage()
    first, second = build(store, stage), build(store, stage, **change)
    assert first.version != second.version and stage.runs == 2
    assert latest_version(store) == second.version
    assert first.file("rows.txt").is_file()  # the older one stays


def test_going_back_to_earlier_settings_moves_latest_back_without_recomputing(tmp_path: Path) -> None:
    store, stage = ArtifactStore(tmp_path), Stage()
    first = build(store, stage)
    build(store, stage, settings={"size": 2})
    again = build(store, stage)
    assert again.reused and stage.runs == 2 and latest_version(store) == first.version


def test_lineage_is_recorded_and_makes_no_version(tmp_path: Path) -> None:
    store, stage = ArtifactStore(tmp_path), Stage()
    first = build(store, stage, lineage={"posts": "v1"})
    again = build(store, stage, lineage={"posts": "v2"})
    assert again.reused and first.manifest["lineage"] == {"posts": "v1"}


def test_equal_files_have_an_equal_content_hash_whatever_made_them(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first, second = build(store, Stage("same")), build(store, Stage("same"), settings={"size": 2})
    other = build(store, Stage("other"), settings={"size": 3})
    assert first.version != second.version and first.content == second.content != other.content


def test_the_manifest_says_what_the_artefact_was_made_of_and_what_it_holds(tmp_path: Path) -> None:
    artifact = build(ArtifactStore(tmp_path), Stage(), week="2026-02-16")
    manifest = read_json(artifact.file("manifest.json"))
    assert artifact.path == tmp_path / "things" / "2026-02-16" / artifact.version
    assert (manifest["inputs"], manifest["settings"], manifest["counts"]) == (
        {"posts": "abc"},
        {"size": 1},
        {"rows": 1},
    )
    assert manifest["week"] == "2026-02-16" and manifest["code_version"] == "1"
    rows = artifact.file("rows.txt")
    assert manifest["files"] == {"rows.txt": {"sha256": file_digest(rows), "bytes": rows.stat().st_size}}
    assert {"torch", "transformers", "dagster"} <= set(manifest["packages"])


def test_a_linked_file_keeps_its_digest_where_its_size_agrees_and_is_hashed_anew_where_not(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = build(store, Stage())
    known = {"rows.txt": {**first.manifest["files"]["rows.txt"], "sha256": "0" * 64}}

    def link(work: Path) -> Built:
        os.link(first.file("rows.txt"), work / "rows.txt")
        return Built({"rows": 1}, linked=known)

    second = build(store, link, settings={"size": 2})
    assert second.manifest["files"] == known, "not read again"
    assert second.file("rows.txt").stat().st_ino == first.file("rows.txt").stat().st_ino
    known["rows.txt"]["bytes"] += 1
    third = build(store, link, settings={"size": 3})
    assert third.manifest["files"] == first.manifest["files"]


def test_weeks_are_apart_and_only_published_ones_are_listed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    for week in ("2026-02-23", "2026-02-16"):
        build(store, Stage(week), week=week)
    with pytest.raises(RejectedArtifact):
        build(store, Stage(checks=[CheckOutcome("whole", False, "1 row is missing")]), week="2026-03-02")
    assert store.weeks("things") == ["2026-02-16", "2026-02-23"]
    found = store.latest("things", "2026-02-16")
    assert found is not None and found.file("rows.txt").read_text() == "2026-02-16"
    assert store.latest("things", "2026-03-02") is None


def test_a_version_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: no such things; materialise things first"):
        ArtifactStore(tmp_path).get("things", "nothing")


# --- what goes wrong while writing --------------------------------------------------------------------------------------


def test_a_write_that_raises_leaves_no_version_and_latest_as_it_was(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = build(store, Stage())

    def fails(work: Path) -> Built:
        (work / "rows.txt").write_text("half")
        raise ValueError("bad row 7")

    with pytest.raises(ValueError, match="bad row 7"):
        build(store, fails, settings={"size": 2})
    assert versions(store) == {first.version} and latest_version(store) == first.version
    stage = Stage()
    assert build(store, stage, settings={"size": 2}).file("rows.txt").read_text() == "rows"
    assert stage.found == []  # nothing of the failed attempt


@pytest.mark.parametrize("resumable", [False, True])
def test_a_run_killed_while_writing_leaves_no_half_artefact_and_the_next_run_makes_it(
    tmp_path: Path, children: list[subprocess.Popen[str]], resumable: bool
) -> None:
    store = ArtifactStore(tmp_path)
    before = build(store, Stage("before"), settings={"size": 0})
    code = f"""
    def write(work):
        (work / "checkpoint.txt").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
    build(write, resumable={resumable})
    """
    child = child_script(children, code, tmp_path)
    assert line_of(child) == "writing"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert versions(store) == {before.version} and latest_version(store) == before.version

    stage = Stage()
    after = build(store, stage, resumable=resumable)  # the lock went with the killed process, so this does not wait
    assert stage.found == (["checkpoint.txt"] if resumable else [])
    assert after.file("checkpoint.txt").exists() == resumable and after.file("rows.txt").read_text() == "rows"
    assert latest_version(store) == after.version and not (store.folder("things") / ".work" / after.version).exists()


def test_of_two_runs_that_build_the_same_version_one_writes_and_the_other_waits_for_it(
    tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    data, go, runs = tmp_path / "data", tmp_path / "go", tmp_path / "runs"
    code = """
    go, runs = map(Path, sys.argv[2:])
    def write(work):
        with runs.open("a") as file:
            file.write("written\\n")
        (work / "rows.txt").write_text("rows")
        print("writing", flush=True)
        while not go.exists():
            time.sleep(0.01)
        return Built({})
    artifact = build(write)
    print(artifact.version, artifact.reused, flush=True)
    """
    first = child_script(children, code, data, go, runs)
    assert line_of(first) == "writing"
    second = child_script(children, code, data, go, runs)
    waiting = line_of(second)
    assert waiting.startswith("another run is writing") and waiting.endswith("waiting for it")
    go.touch()
    version, reused = line_of(first).split()
    assert reused == "False"
    assert line_of(second) == f"things: {version} is there already, nothing recomputed"
    assert line_of(second) == f"{version} True"
    assert runs.read_text() == "written\n" and versions(ArtifactStore(data)) == {version}


def test_a_reader_of_latest_json_never_sees_a_torn_file_or_a_version_that_is_not_there(
    tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    code = """
    def write(work):
        (work / "rows.txt").write_text("rows")
        return Built({})
    for turn in range(200):
        build(write, settings={"size": turn % 2})
    """
    store = ArtifactStore(tmp_path)
    for size in (0, 1):
        build(store, Stage(), settings={"size": size})
    pointer, both = store.folder("things") / "latest.json", versions(store)
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(tmp_path)], stdout=subprocess.DEVNULL, cwd=ROOT
    )
    seen: set[str] = set()
    try:
        while child.poll() is None:
            value = json.loads(pointer.read_text(encoding="utf-8"))
            assert set(value) == {"version"} and value["version"] in both
            found = store.latest("things")
            assert found is not None and found.file("rows.txt").is_file()
            seen.add(value["version"])
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0 and seen == both


def test_a_failed_blocking_check_publishes_nothing_keeps_the_files_and_the_next_run_tries_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = build(store, Stage("good"))
    bad = CheckOutcome("rows_accounted", False, "3 rows in = 2 kept")
    with pytest.raises(RejectedArtifact, match=r"things: not published; 3 rows in = 2 kept \(files in ") as caught:
        build(store, Stage("bad", [bad]), settings={"size": 2})
    assert latest_version(store) == first.version
    kept = caught.value.artifact
    assert kept.file("rows.txt").read_text() == "bad" and read_json(kept.file("manifest.json"))["checks"] == [vars(bad)]

    mended = Stage("mended", [CheckOutcome("rows_accounted", True, "3 rows in = 3 kept")])
    again = build(store, mended, settings={"size": 2})
    assert mended.runs == 1 and not again.reused and again.version == kept.version
    assert latest_version(store) == again.version and again.file("rows.txt").read_text() == "mended"


def test_a_failed_check_that_does_not_block_publishes_and_is_recorded(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    warning = CheckOutcome("rationales_differ", False, "too alike", {"share": 0.5}, blocking=False)
    artifact = build(store, Stage(checks=[warning]))
    assert latest_version(store) == artifact.version and artifact.manifest["checks"] == [vars(warning)]
    assert build(store, Stage()).reused


@pytest.mark.parametrize(("limit", "size"), [(200, 2), (8, 0)], ids=["manifest", "latest.json"])
def test_a_disk_that_is_full_leaves_the_previous_version_in_place(
    tmp_path: Path, children: list[subprocess.Popen[str]], limit: int, size: int
) -> None:
    store = ArtifactStore(tmp_path)
    build(store, Stage(), settings={"size": 0})
    first = build(store, Stage())
    code = f"""
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    def write(work):
        (work / "rows.txt").write_text("rows")
        return Built({{}})
    try:
        build(write, settings={{"size": {size}}})
    except OSError as error:
        print("refused:", error.strerror, flush=True)
    """
    child = child_script(children, code, tmp_path)
    said, _ = child.communicate(timeout=30)
    assert "refused: File too large" in said and child.returncode == 0
    before = versions(store)
    assert len(before) == 2 and latest_version(store) == first.version
    assert not list(store.folder("things").glob(".latest*"))  # no temporary file is left either
    assert build(store, Stage(), settings={"size": size}).reused == (size == 0)  # there is room again


def test_json_is_replaced_whole_and_the_old_file_survives_what_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_json(file, {"类别": "正常"})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(file, loop)
    assert read_json(file) == {"类别": "正常"} and os.listdir(tmp_path) == ["state.json"]


def test_a_slow_build_that_began_earlier_does_not_move_the_pointer_back(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def slow(work: Path) -> Built:
        store.build("posts", _one("both weeks"), inputs={"weeks": "1+2"}, settings={}, code_version="1")
        return _one("first week")(work)

    store.build("posts", slow, inputs={"weeks": "1"}, settings={}, code_version="1")
    latest = store.latest("posts")
    assert latest is not None and latest.file("file.txt").read_text() == "both weeks"
    store.build(
        "posts", slow, inputs={"weeks": "1"}, settings={}, code_version="1"
    )  # asked for anew: now it is the latest
    latest = store.latest("posts")
    assert latest is not None and latest.reused is False and latest.file("file.txt").read_text() == "first week"


def test_a_version_that_lost_a_file_is_built_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    built = store.build("posts", _one("text"), inputs={}, settings={}, code_version="1")
    built.file("file.txt").write_text("te")
    again = store.build("posts", _one("text"), inputs={}, settings={}, code_version="1")
    assert not again.reused and again.file("file.txt").read_text() == "text"


def _one(text: str) -> Callable[[Path], Built]:
    def write(work: Path) -> Built:
        (work / "file.txt").write_text(text)
        return Built({})

    return write
