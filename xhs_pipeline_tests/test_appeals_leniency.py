"""The loop on made-up posts whose truth is known: what three rounds of appeals do to the model, with and without an audit."""

import statistics
from dataclasses import replace

import pytest

from xhs_pipeline_tests.benchmarks.leniency import made_world, simulate

SEEDS = range(4)
WORLD = replace(made_world(2000), begin=400, new=200)


def rises(audit: int, **more: float) -> list[float]:
    """By how much the share of missed violations grew in three rounds, for every seed."""
    runs = [simulate(replace(WORLD, audit=audit, **more), seed) for seed in SEEDS]
    return [run[-1]["missed"] - run[0]["missed"] for run in runs]


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return rises(0)


def test_three_rounds_of_appeals_alone_raise_the_share_of_missed_violations(alone: list[float]) -> None:
    assert statistics.mean(alone) > 0.01
    unappealed = rises(0, innocent=0, guilty=0)  # the same rounds, posts and labels, but nobody appeals
    assert all(with_appeals > without for with_appeals, without in zip(alone, unappealed, strict=True))


def test_with_an_audit_sample_of_what_passed_they_do_not(alone: list[float]) -> None:
    audited = rises(60)
    assert all(with_audit < without for with_audit, without in zip(audited, alone, strict=True))
    assert statistics.mean(audited) < 0.005
