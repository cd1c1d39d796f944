"""What the judging command makes of a model's scores: decisions by calibrated probabilities, and agreement with labels."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from xhs_pipeline.artifacts import write_json
from xhs_pipeline.judge.__main__ import main
from xhs_pipeline.judge.batch import judge_file
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.costs import cost_matrix
from xhs_pipeline.judgement.intervals import wilson
from xhs_pipeline.posts.source_yaml import SourceError, load_source
from xhs_pipeline.posts.stages import write_raw
from xhs_pipeline_tests.serving import add_model, put_in_use
from xhs_pipeline_tests.small import POLICY, PROFILE, jpeg, jsonl

WARM = Calibration(2.5, 0.0, 100, 0, 1.0, 0.9, None)


def judged(model: Path, posts: Path, out: Path, source: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    judge_file(model, posts, out, source, say=[].append, **options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> int:
    monkeypatch.setattr("sys.argv", ["judge", *map(str, arguments)])
    return main()


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    return jsonl(tmp_path, *({"post_id": f"p{n}", "body": "稳赚不赔加我" * n} for n in range(1, 6)))


@pytest.fixture
def data(tmp_path: Path, untrained_model: Path) -> Path:
    """A data folder whose model in use was released on a report with a calibration."""
    add_model(tmp_path / "data", untrained_model, "v1", WARM.temperature)
    put_in_use(tmp_path / "data", "v1")
    return tmp_path / "data"


# probabilities and decisions


def test_a_line_says_what_was_decided_at_which_price_by_which_model(
    untrained_model: Path, posts: Path, tmp_path: Path
) -> None:
    for line in judged(untrained_model, posts, tmp_path / "out.jsonl"):
        assert list(line) == [
            "row", "post_id", "verdict", "category", "verdict_probs", "category_probs", "confidence", "expected_cost",
            "model_version", "policy_version", "calibrated",
        ]  # fmt: skip
        assert (line["model_version"], line["policy_version"]) == (untrained_model.name, POLICY.version)
        assert line["calibrated"] is False
        price = [line["category_probs"][name] for name in POLICY.category_names] @ cost_matrix(POLICY)
        assert line["expected_cost"] == pytest.approx(price[POLICY.verdict_ids.index(line["verdict"])], abs=1e-3)
        assert line["verdict"] == "escalate" or line["confidence"] == line["verdict_probs"][line["verdict"]]


def test_a_calibration_divides_the_scores_before_anything_is_decided(
    untrained_model: Path, posts: Path, tmp_path: Path
) -> None:
    cold = judged(untrained_model, posts, tmp_path / "cold.jsonl")
    warm = judged(untrained_model, posts, tmp_path / "warm.jsonl", calibration=WARM)
    normal = POLICY.normal_category  # one answer alone leads to it, and one category alone to passing
    for one, other in zip(cold, warm, strict=True):
        assert other["calibrated"] is True
        entropies = [-sum(p * math.log(p) for p in line["category_probs"].values() if p) for line in (one, other)]
        assert entropies[1] > entropies[0]
        assert other["verdict_probs"]["pass"] == pytest.approx(other["category_probs"][normal], abs=2e-6)


def test_below_the_confidence_asked_for_a_person_decides(untrained_model: Path, posts: Path, tmp_path: Path) -> None:
    sure = Calibration(1.0, 1.0, 100, 0, 1.0, 1.0, None)
    assert {line["verdict"] for line in judged(untrained_model, posts, tmp_path / "o", calibration=sure)} == {
        "escalate"
    }
    unfitted = Calibration(1.0, 0.0, 3, 0, 1.0, 1.0, "3 posts to calibrate on, at least 50 are needed")
    assert {line["calibrated"] for line in judged(untrained_model, posts, tmp_path / "o", calibration=unfitted)} == {
        False
    }


def test_without_a_calibration_the_profiles_own_confidence_counts(
    untrained_model: Path, posts: Path, tmp_path: Path
) -> None:
    model = tmp_path / "strict"
    model.mkdir()
    for file in untrained_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    card = json.loads((model / "moderation.json").read_text())
    write_json(model / "moderation.json", card | {"profile": card["profile"] | {"min_confidence": 1.0}})
    assert {line["verdict"] for line in judged(model, posts, tmp_path / "out.jsonl")} == {"escalate"}
    assert PROFILE.min_confidence == 0


def test_the_model_in_use_brings_its_reports_calibration_and_champion_means_that_model(
    data: Path, posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = judged(data / "merged_model" / "v1", posts, tmp_path / "named.jsonl")
    assert all(line["calibrated"] and line["model_version"] == "v1" for line in named)
    by_hand = judged(data / "merged_model" / "v1", posts, tmp_path / "by_hand.jsonl", calibration=WARM)
    assert named == by_hand
    monkeypatch.setenv("XHS_DATA_DIR", str(data))
    assert command(monkeypatch, "champion", posts, tmp_path / "champion.jsonl") == 0
    assert (tmp_path / "champion.jsonl").read_bytes() == (tmp_path / "named.jsonl").read_bytes()


def test_a_model_that_is_not_in_use_does_not_take_the_calibration_of_the_one_that_is(
    data: Path, posts: Path, tmp_path: Path
) -> None:
    (data / "merged_model" / "v1").rename(data / "merged_model" / "v2")
    lines = judged(data / "merged_model" / "v2", posts, tmp_path / "out.jsonl")
    assert not any(line["calibrated"] for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"not JSON"),
        ("[]", r"holds a list"),
        (json.dumps(WARM.as_dict() | {"temperature": 0}), r"temperature is 0, expected a number from 0\.05 to 20"),
    ],
)
def test_a_calibration_that_cannot_be_read_is_an_error_and_never_left_out(
    content: str,
    message: str,
    data: Path,
    posts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = data / "evaluation_report" / "r-v1" / "calibration.json"
    file.write_text(content)
    for arguments in ([], ["--calibration", file]):
        out = tmp_path / "out.jsonl"
        assert command(monkeypatch, data / "merged_model" / "v1", posts, out, *arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and re.match(rf"error: {re.escape(str(file))}: .*{message}", said)
        assert not out.exists()


def test_champion_without_a_release_says_where_none_is(
    posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XHS_DATA_DIR", str(tmp_path / "empty"))
    assert command(monkeypatch, "champion", posts, tmp_path / "out.jsonl") == 2
    assert f"{tmp_path / 'empty' / 'released_model' / 'champion.json'}: missing" in capsys.readouterr().err


# comparing with labels


def labelled(folder: Path) -> list[dict[str, Any]]:
    labels = [("pass", "正常"), ("通过", "正常"), ("remove", "诈骗"), ("escalate", "诈骗"), ("remove", "闻所未闻")]
    (folder / "a.jpg").write_bytes(jpeg(90, 70))
    return [
        {
            "post_id": f"p{n}",
            "body": "稳赚不赔加我" * (n % 11),
            "images": "a.jpg" if n % 3 == 0 or n % 11 == 0 else "",
            "verdict": labels[n % 5][0],
            "category": labels[n % 5][1],
        }
        for n in range(40)
    ]


def test_compare_writes_labels_beside_answers_and_figures_that_follow_from_the_lines(
    untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*labelled(tmp_path), {"post_id": "bare", "body": "好"}, {"post_id": "empty", "body": "好", "verdict": None}]
    out = tmp_path / "out.jsonl"
    assert command(monkeypatch, untrained_model, jsonl(tmp_path, *rows, b"{"), out, "--compare") == 0
    captured = capsys.readouterr()
    figures, lines = json.loads(captured.out), [json.loads(line) for line in out.read_text().splitlines()]
    by_id = {line["post_id"]: line for line in lines}
    assert (by_id["p1"]["label_verdict"], by_id["p1"]["label_category"]) == ("pass", "正常")
    assert by_id["p4"]["label_category"] is None and by_id["p4"]["label_problems"] == ["unknown_category"]
    assert by_id["bare"]["agrees"] is None and "label_problems" not in by_id["bare"]
    assert by_id["empty"]["agrees"] is None and by_id["empty"]["label_problems"] == ["missing_verdict"]
    assert figures["not_judged"] == {"bad_json": 1} and (figures["judged"], figures["compared"]) == (42, 40)
    assert figures["labels_not_usable"] == {"missing_verdict": 1, "unknown_category": 8}
    assert "闻所未闻" not in captured.err + captured.out + out.read_text()

    compared = [line for line in lines if line.get("label_verdict")]
    for line in compared:
        right = line["verdict"] == line["label_verdict"]
        assert line["agrees"] is (right and line["category"] == (line["label_category"] or line["category"]))
    hits = sum(line["verdict"] == line["label_verdict"] for line in compared)
    verdict = figures["verdict"]
    assert (verdict["value"], verdict["n"]) == (pytest.approx(hits / 40), 40)
    if 0 < hits < 40:
        assert (verdict["low"], verdict["high"]) == pytest.approx(wilson(hits, 40))
    with_category = [line for line in compared if line["label_category"]]
    hits = sum(line["category"] == line["label_category"] for line in with_category)
    assert (figures["category"]["value"], figures["category"]["n"]) == (pytest.approx(hits / 32), 32)
    harmless = [(line["label_verdict"] == "pass") == (line["category"] == "正常") for line in compared]
    assert figures["violation"]["value"] == pytest.approx(sum(harmless) / 40)
    assert {label: sum(row.values()) for label, row in figures["verdict_confusion"].items()} == {
        "pass": 16, "needs_edit": 0, "remove": 16, "escalate": 8,
    }  # fmt: skip
    assert f"verdict    {verdict['value']:.4f} agree" in captured.err


def test_every_format_of_the_same_posts_is_judged_and_compared_alike(untrained_model: Path, tmp_path: Path) -> None:
    rows = labelled(tmp_path)
    usable = [row for row in rows if row["category"] != "闻所未闻"]
    files = [jsonl(tmp_path, *usable)]
    with (tmp_path / "posts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(usable)
        files.append(tmp_path / "posts.csv")
    book = openpyxl.Workbook()
    for cells in [list(rows[0]), *(list(row.values()) for row in usable)]:
        book.worksheets[0].append(cells)
    book.save(tmp_path / "posts.xlsx")
    files.append(tmp_path / "posts.xlsx")
    (tmp_path / "week").mkdir()
    source = tmp_path / "source.yaml"
    source.write_text("format: jsonl\npath: posts.jsonl\nweek: 2026-02-16\n")
    write_raw(load_source(source), "2026-02-16", POLICY, b"key", tmp_path / "week")
    files.append(tmp_path / "week" / "posts.parquet")
    answers = []
    for file in files:
        lines = judged(untrained_model, file, tmp_path / "out.jsonl", compare=True)
        answers.append([{k: v for k, v in line.items() if k != "row"} for line in lines])
    assert len(answers[0]) == 32 and answers[1:] == answers[:1] * 3


def test_the_splits_are_judged_as_they_are_with_their_images_and_labels(
    untrained_model: Path, small_splits: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    tally = judge_file(
        untrained_model, small_splits / "test.parquet", tmp_path / "out.jsonl", compare=True, say=said.append
    )
    assert tally.judged == tally.rows > 5 and not tally.images_left_out
    assert tally.agreement is not None
    figures = tally.agreement.figures(POLICY)
    assert figures["compared"] == tally.judged and not figures["labels_not_usable"]
    assert said[-1].startswith(f"judged {tally.rows} of {tally.rows}/{tally.rows} rows, ") and said[-1].endswith(
        "s left"
    )


def test_labels_in_other_words_are_mapped_by_the_source_and_a_file_without_labels_is_refused(
    untrained_model: Path, tmp_path: Path
) -> None:
    posts, source = tmp_path / "posts.csv", tmp_path / "source.yaml"
    posts.write_text("id,text,label\n1,好,ok\n2,好,bad\n3,好,?\n", encoding="utf-8")
    columns = "columns: {post_id: id, body: text, verdict: label}\n"
    source.write_text(f"format: csv\npath: posts.csv\n{columns}values: {{verdict: {{ok: pass, bad: remove}}}}\n")
    lines = judged(untrained_model, posts, tmp_path / "out.jsonl", source, compare=True)
    assert [line["label_verdict"] for line in lines] == ["pass", "remove", None]
    assert [line.get("label_problems") for line in lines] == [None, None, ["unknown_verdict"]]
    source.write_text("format: csv\npath: posts.csv\ncolumns: {post_id: id, body: text}\n")
    with pytest.raises(SourceError, match="no labels to compare with"):
        judged(untrained_model, posts, tmp_path / "other.jsonl", source, compare=True)
    assert len(judged(untrained_model, posts, tmp_path / "other.jsonl", source)) == 3


def test_figures_and_lines_never_mix_on_standard_output(
    posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, tmp_path, posts, "/dev/stdout", "--compare") == 2
    assert "name a file as OUT" in capsys.readouterr().err


# hostile posts


def test_a_post_that_kills_what_cleans_it_is_counted_and_the_rest_is_judged(
    untrained_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "deadly.jpg").write_bytes(b"kill")
    posts = jsonl(
        tmp_path,
        {"post_id": "p1", "body": "好"},
        {"post_id": "p2", "body": "好", "images": ["deadly.jpg"]},
        {"post_id": "p3", "body": "好"},
    )
    lines = judged(untrained_model, posts, tmp_path / "out.jsonl", clean_with="xhs_pipeline_tests.hostile:tables")
    assert [(line["post_id"], line.get("error")) for line in lines] == [
        ("p1", None), ("p2", "kills_worker"), ("p3", None),
    ]  # fmt: skip
