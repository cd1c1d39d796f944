"""The disk is full while the pointer moves: the real asset on a really full disk, beside the real service."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, read_json, write_json
from xhs_pipeline.assets.judgement import released_model
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.champion import HISTORY, POINTER, read_history
from xhs_pipeline.judgement.stages import DECISION_BYTES
from xhs_pipeline.policy import load_policy
from xhs_pipeline.resources import Workspace
from xhs_pipeline_tests.serving import PASSED, serving

PAGE = 4096
SIZE = 64 * PAGE


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[Path]:
    """The folder of released_model, on a disk of its own that holds 256 kB."""
    place = tmp_path / "data" / "released_model"
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def judged(store: ArtifactStore, model: Path, against: Artifact | None) -> Artifact:
    """A merged_model and a report on it whose gate passed; the model's folder differs from the others' by one file."""

    def merge(work: Path) -> Built:
        subprocess.run(["cp", "-r", f"{model}/.", str(work)], check=True)
        (work / "note.txt").write_text(f"after {against.version if against else 'none'}")
        return Built({})

    def report(work: Path) -> Built:
        context = {"champion_version": against.version if against else None}
        write_json(work / "report.json", {"context": context, "policy_version": load_policy().version})
        write_json(work / "calibration.json", Calibration(1.0, 0.0, 100, 0, 1.0, 0.9, None).as_dict())
        return Built({"gate": PASSED.as_dict()})

    before = against.version if against else "none"
    merged = store.build("merged_model", merge, inputs={"before": before}, settings={}, code_version="1")
    lineage, policy = {"merged_model": merged.version}, load_policy()
    limits = {"gates": policy.gates, "costs": policy.costs}
    store.build("evaluation_report", report, inputs=lineage, lineage=lineage, settings=limits, code_version="1")
    return merged


def release(data: Path) -> str:
    """Materialise released_model; returns why it failed, nothing where it did not."""
    workspace = Workspace(data_dir=str(data), source="")
    done = dg.materialize([released_model], resources={"workspace": workspace}, raise_on_error=False)
    failed = done.failure_data_for_node("released_model")
    return str(failed.user_failure_data.description) if failed and failed.user_failure_data else ""


def fill(disk: Path, free: int) -> None:
    """Leave `free` pages of the disk."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * PAGE)
        except OSError:
            file.truncate(file.tell() - free * PAGE)


def test_a_disk_that_is_full_while_the_pointer_moves_leaves_the_old_model_in_use_until_there_is_room(
    releases: Path, untrained_model: Path
) -> None:
    data = releases.parent
    store = ArtifactStore(data)
    old = judged(store, untrained_model, None)
    assert release(data) == ""
    with serving(data, ready=old.version) as service:
        new = judged(store, untrained_model, old)
        before = {name: (releases / name).read_bytes() for name in (POINTER, HISTORY, "latest.json")}
        stopped = 0
        fill(releases, stopped)
        while why := release(data):
            assert "No space left on device; free space, or set XHS_DATA_DIR elsewhere" in why
            assert {name: (releases / name).read_bytes() for name in before} == before, f"{stopped} pages were left"
            health, answer = service.ask("GET", "/health"), service.judge(body="好")
            assert (health.body["status"], health.body["model_version"]) == ("ok", old.version)
            assert (answer.status, answer.body["model_version"]) == (200, old.version)
            stopped += 1  # a page more each time: every write that there is meets the end of the disk
            fill(releases, stopped)
        assert stopped > DECISION_BYTES / PAGE
        released = store.latest("released_model")
        assert released is not None
        decision = read_json(released.file("decision.json"))
        assert (decision["action"], decision["champion"]) == ("released", new.version)
        assert [row["champion"]["version"] for row in read_history(releases)] == [old.version, new.version]
        service.until_ready(new.version)
        assert service.judge(body="好").body["model_version"] == new.version
