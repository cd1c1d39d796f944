"""What a person does about the model in use: look, sign off, roll back; each in one line and with a trace."""

from pathlib import Path

import pytest

from xhs_pipeline.artifacts import ArtifactStore, Built, write_json
from xhs_pipeline.judgement.champion import Candidate, read_champion, read_history, release, verdict_of
from xhs_pipeline.judgement.gate import Gate, GateVerdict
from xhs_pipeline.policy import POLICY_FILE, load_policy
from xhs_pipeline.release import main
from xhs_pipeline_tests.small import POLICY

PASSED = GateVerdict("pass", (Gate("invalid_share", "pass", 0.0, 0.005, 100, "好"),))
MISSING = GateVerdict("insufficient", (Gate("ece", "insufficient", None, 0.05, 0, "缺"),))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.setenv("XHS_DATA_DIR", str(tmp_path))
    for version in ("v1", "v2"):
        (tmp_path / "merged_model" / version).mkdir(parents=True)
    return ArtifactStore(tmp_path)


def judged(store: ArtifactStore, model: str, verdict: GateVerdict) -> str:
    """A published report about a model."""
    report = {"policy_version": "p1", "gate": verdict.as_dict()}

    def write(work: Path) -> Built:
        write_json(work / "report.json", report)
        return Built({"gate": report["gate"]})

    lineage, settings = {"merged_model": model}, report | {"gates": POLICY.gates, "costs": POLICY.costs}
    return store.build(
        "evaluation_report", write, inputs=lineage, settings=settings, code_version="1", lineage=lineage
    ).version


def test_a_sign_off_is_one_line_and_the_next_decision_releases(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    report, folder = judged(store, "v1", MISSING), store.folder("released_model")
    assert main(["sign-off", "v1", "--name", "李雷", "--reason", "人工看过 200 条"]) == 0
    assert "v1 signed off by 李雷: 人工看过 200 条\nmaterialise released_model" in capsys.readouterr().out
    assert read_champion(folder) is None, "the pointer moves in the graph"
    assert release(folder, Candidate("v1", "merged_model/v1", report, "p1"), MISSING, None).action == "released"
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("in use: v1 since") and "signed_off  v1 by 李雷: 人工看过 200 条" in said


@pytest.mark.parametrize(
    ("verdict", "version", "message"),
    [(PASSED, "v1", "only an insufficient one"), (MISSING, "v2", "the newest report is about v1, not v2")],
)
def test_what_cannot_be_signed_is_refused_and_leaves_no_trace(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], verdict: GateVerdict, version: str, message: str
) -> None:
    judged(store, "v1", verdict)
    assert main(["sign-off", version, "--name", "李雷", "--reason", "急"]) == 2
    assert message in capsys.readouterr().err
    assert read_history(store.folder("released_model")) == []


def test_without_a_report_there_is_nothing_to_sign(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sign-off", "v1", "--name", "李雷", "--reason", "急"]) == 2
    assert "no evaluation_report" in capsys.readouterr().err


def test_a_rollback_is_one_line_and_puts_the_model_before_it_back(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.folder("released_model")
    release(folder, Candidate("v1", "merged_model/v1", "r1", "p1"), PASSED, None)
    release(folder, Candidate("v2", "merged_model/v2", "r2", "p1"), PASSED, "v1")
    assert main(["rollback", "--name", "李雷", "--reason", "误判升高"]) == 0
    assert "rolled back from v2 by 李雷: 误判升高" in capsys.readouterr().out
    now = read_champion(folder)
    assert now is not None and now.version == "v1"
    assert main(["rollback", "--name", "李雷", "--reason", "还不够"]) == 2
    assert "v1 is the first release" in capsys.readouterr().err


def test_a_report_that_was_edited_releases_nothing(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    judged(store, "v1", MISSING)
    artifact = store.latest("evaluation_report")
    assert artifact is not None
    write_json(artifact.file("report.json"), {"policy_version": "p1", "gate": {"status": "pass", "gates": []}})
    assert main(["sign-off", "v1", "--name", "李雷", "--reason", "看过"]) == 2
    assert "report.json: not the report that was published" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not the report that was published"):
        verdict_of(artifact, POLICY)


def test_a_report_that_other_limits_judged_releases_nothing(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(store, "v1", MISSING)
    text = POLICY_FILE.read_text(encoding="utf-8")
    assert "max_ece: 0.05" in text
    (tmp_path / "strict.yaml").write_text(text.replace("max_ece: 0.05", "max_ece: 0.04"), encoding="utf-8")
    monkeypatch.setenv("XHS_POLICY", str(tmp_path / "strict.yaml"))
    assert main(["sign-off", "v1", "--name", "李雷", "--reason", "看过"]) == 2
    said = capsys.readouterr().err
    assert "judged by other gates than those of policy" in said and "materialise evaluation_report again" in said
    assert read_history(store.folder("released_model")) == []
    artifact = store.latest("evaluation_report")
    assert artifact is not None
    with pytest.raises(ValueError, match="judged by other gates"):
        verdict_of(artifact, load_policy())
