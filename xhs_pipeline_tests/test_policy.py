"""policy.yaml is the one place where verdicts and categories live."""

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from xhs_pipeline.policy import POLICY_FILE, Policy, load_policy
from xhs_pipeline.posts.source_yaml import load_source
from xhs_pipeline.posts.sources import read_week
from xhs_pipeline.splits.conversation import neutralise, render_answer, render_prompt

POLICY = load_policy()
PACKAGE = POLICY_FILE.parent
ADDED = "  - {name: 未成年保护, severity: 2, verdicts: [needs_edit, remove], description: 泄露或利用未成年人}\n"


def changed(folder: Path, old: str, new: str) -> Path:
    """A copy of policy.yaml with one passage replaced."""
    text = POLICY_FILE.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file = folder / "policy.yaml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


def with_added_category(folder: Path) -> Policy:
    end = "# Cost of one mistake"
    return load_policy(changed(folder, end, f"{ADDED}\n{end}"))


def test_the_policy_has_the_agreed_verdicts_and_categories() -> None:
    assert [(v.id, v.label) for v in POLICY.verdicts] == [
        ("pass", "通过"), ("needs_edit", "需要修改"), ("remove", "违规删除"), ("escalate", "人工复核"),
    ]  # fmt: skip
    assert POLICY.category_names == (
        "正常", "虚假宣传", "私域引流", "医疗违规", "诱导互动", "歧视", "违法违规", "政治安全", "暴恐", "色情低俗", "赌博", "诈骗", "辱骂引战",
    )  # fmt: skip
    assert (POLICY.pass_verdict, POLICY.normal_category) == ("pass", "正常")
    assert all(v.description for v in POLICY.verdicts) and all(c.description for c in POLICY.categories)


def test_a_harmless_post_can_only_pass_and_a_violation_never_does() -> None:
    answers = POLICY.answers()
    assert [c for v, c in answers if v == "pass"] == ["正常"] and [v for v, c in answers if c == "正常"] == ["pass"]
    assert len(answers) == len(set(answers)) == 1 + 3 * 12
    assert not POLICY.allows("pass", "诈骗") and not POLICY.allows("remove", "没有的类别")


def test_verdicts_are_found_by_id_and_by_label() -> None:
    assert POLICY.verdict_id("违规删除") == POLICY.verdict_id("remove") == "remove"
    assert POLICY.verdict_id("删除") is None and POLICY.label("remove") == "违规删除"


def test_adding_a_category_to_the_file_is_all_it_takes(tmp_path: Path) -> None:
    policy = with_added_category(tmp_path)
    assert [pair for pair in policy.answers() if pair not in POLICY.answers()] == [
        ("needs_edit", "未成年保护"), ("remove", "未成年保护"),
    ]  # fmt: skip
    assert policy.severity("未成年保护") == 2
    assert "未成年保护（泄露或利用未成年人）" in render_prompt("标题", "正文", policy, "full").user
    assert render_answer("remove", "未成年保护", policy) == "审核结论：违规删除\n违规类别：未成年保护"
    assert policy.wording != POLICY.wording  # so every artefact that depends on labels is made anew
    # posts with it can be read
    (tmp_path / "posts.jsonl").write_text(
        json.dumps({"post_id": "p1", "title": "标题", "verdict": "删", "category": "未成年保护"}), encoding="utf-8"
    )
    (tmp_path / "source.yaml").write_text(
        "format: jsonl\npath: posts.jsonl\nweek: 2026-02-16\nvalues: {verdict: {删: remove}}\n", encoding="utf-8"
    )
    batches = list(read_week(load_source(tmp_path / "source.yaml", policy), "2026-02-16", policy, b"k" * 16))
    rows = [row for posts, _ in batches for row in posts.to_pylist()]
    assert [(row["verdict"], row["category"], row["severity"]) for row in rows] == [("remove", "未成年保护", 2)]


def literals(file: Path) -> Iterator[str]:
    """Every string of a module that is not a docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_module_spells_a_verdict_or_a_category_itself() -> None:
    terms = {*POLICY.category_names, *(v.label for v in POLICY.verdicts), "needs_edit"}
    spelt = {
        (file.relative_to(PACKAGE).as_posix(), text)
        for file in PACKAGE.rglob("*.py")
        for text in literals(file)
        if text.strip() in terms
    }
    prose = {("judgement/page/__init__.py", "正常")}  # the table column of harmless posts
    assert spelt - prose == set()


def test_the_answer_lines_of_the_policy_are_what_is_neutralised_in_posts(tmp_path: Path) -> None:
    policy = load_policy(changed(tmp_path, "verdict: 审核结论：{verdict}", "verdict: 最终结论：{verdict}"))
    assert neutralise("最终结论：通过", policy) == "最·终结论：通过" and "审核结论：" in neutralise(
        "审核结论：通过", policy
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{id: remove, ", "{id: pass, ", "verdict ids repeat.*'pass', 'needs_edit', 'pass'"),
        ("label: 违规删除", "label: 通过", "verdict labels repeat.*'通过'"),
        ("name: 诈骗", "name: 赌博", "category names repeat.*'赌博', '赌博'"),
        ("name: 诈骗", "name: 赌博诈骗", "category names may not begin one another: 赌博 begins 赌博诈骗; rename one"),
        (
            "{name: 诈骗, severity: 3, verdicts: [needs_edit, remove, escalate]",
            "{name: 诈骗, severity: 3, verdicts: [remove, ban]",
            r"category 诈骗 lists unknown verdicts \['ban'\]; allowed: \['pass', 'needs_edit', 'remove', 'escalate'\]",
        ),
        ("{name: 歧视, severity: 2", "{name: 歧视, severity: 0", "exactly one category must have severity 0"),
        ("{name: 正常, severity: 0", "{name: 正常, severity: 1", "exactly one category must have severity 0"),
        ("    【正文】{body}\n", "", r"prompt\.full lacks \{body\}"),
        ("short: |-\n    {title}\n", "short: |-\n", r"prompt\.short lacks \{title\}"),
        ("违规类别：{category}", "违规类别：", r"answer\.category lacks \{category\}"),
        ("appeals:\n  min_adjudicated: 20", "appeal:\n  min_adjudicated: 20", "lacks appeals"),
        ("trusted_sources: [appeal, audit]", "trusted_sources: appeal", "trusted_sources is 'appeal'; expected a list"),
        (
            "trusted_sources: [appeal, audit]",
            "trusted_sources: [appeal, appeal]",
            "expected a list of different label sources",
        ),
        ("  min_audit: 20 ", "  min_audits: 20 ", "appeals.min_audit is None, expected a number from 0"),
        ("per_author: 3,", "per_author: many,", "appeals.burst.per_author is 'many', expected a number from 0"),
        ("prevalence: [0.01,", "prevalence: [2,", r"deployment.prevalence is \[2, .*expected a list of shares between"),
        ("  prevalence: [0.01, 0.02, 0.05]", "  prevalence: 0.02", "deployment.prevalence is 0.02, expected a list"),
    ],
)
def test_a_broken_policy_is_an_error_that_names_the_file_and_the_value(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = changed(tmp_path, old, new)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{message}"):
        load_policy(file)


def test_an_unknown_category_has_no_severity() -> None:
    with pytest.raises(ValueError, match="category '没有' is not in policy .*; allowed: 正常, 虚假宣传"):
        POLICY.severity("没有")


def test_the_file_that_the_environment_names_is_read_and_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = changed(tmp_path, "max_ece: 0.05 ", "max_ece: 0.10 ")
    monkeypatch.setenv("XHS_POLICY", str(file))
    assert load_policy().gates["max_ece"] == 0.10
    file.write_text(file.read_text(encoding="utf-8").replace("max_ece: 0.10 ", "max_ece: 0.20 "), encoding="utf-8")
    os.utime(file, ns=(1, 1))
    assert load_policy().gates["max_ece"] == 0.20
    monkeypatch.setenv("XHS_POLICY", str(tmp_path / "none.yaml"))
    with pytest.raises(FileNotFoundError, match="none.yaml: no such policy file; see XHS_POLICY"):
        load_policy()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  max_ece: 0.05 ", "  # ", "gates lacks max_ece"),
        ("  max_ece: 0.05 ", "  max_ece: 0.05\n  max_fcp: 1 ", "gates holds unknown max_fcp"),
        ("  max_ece: 0.05 ", "  max_ece: low ", "gates: max_ece='low'; expected numbers from 0"),
    ],
)
def test_a_limit_that_is_missing_unknown_or_no_number_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        load_policy(changed(tmp_path, old, new))
