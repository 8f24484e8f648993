"""Means, bootstrap intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from neuraldb_faiss.research.evaluation.statistics import differences, shown, summarise


def row(case: str, **values: float | None) -> dict[str, object]:
    return {"case": case, **values}


def test_mean_and_interval_of_a_known_case() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(5, 2, 1000)
    one = summarise([row(str(i), target_nll=v) for i, v in enumerate(values)], ["target_nll"])["target_nll"]
    assert one is not None and one.n == 1000
    assert one.value == pytest.approx(values.mean())
    # for a mean the bootstrap interval is close to the normal one: 1.96 standard errors each way
    error = values.std() / 1000**0.5
    assert one.low == pytest.approx(one.value - 1.96 * error, abs=0.15 * error)
    assert one.high == pytest.approx(one.value + 1.96 * error, abs=0.15 * error)


def test_score_is_the_harmonic_mean_of_means() -> None:
    rows = [
        row("a", efficacy=1.0, generalization=1.0, specificity=0.5),
        row("b", efficacy=1.0, generalization=0.0, specificity=0.5),
    ]
    one = summarise(rows, ["score"])["score"]
    assert one is not None and one.value == pytest.approx(3 / (1 / 1.0 + 1 / 0.5 + 1 / 0.5))
    assert one.low == 0.0 and one.high == pytest.approx(3 / (1 + 1 + 2))


def test_missing_values() -> None:
    rows = [row("a", fluency=6.0, consistency=None), row("b", fluency=None), row("c", fluency=7.0)]
    found = summarise(rows, ["fluency", "consistency"])
    assert found["consistency"] is None
    assert found["fluency"] is not None and (found["fluency"].value, found["fluency"].n) == (6.5, 2)


def test_one_case_and_equal_cases() -> None:
    one = summarise([row("a", efficacy=1.0)], ["efficacy"])["efficacy"]
    assert one is not None and (one.low, one.value, one.high) == (1.0, 1.0, 1.0)
    same = summarise([row(str(i), efficacy=1.0) for i in range(9)], ["efficacy"])["efficacy"]
    assert same is not None and (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


def test_base_columns() -> None:
    rows = [row("a", efficacy=1.0, base_efficacy=0.25)]
    one = summarise(rows, ["efficacy"], prefix="base_")["efficacy"]
    assert one is not None and one.value == 0.25


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 10, 300)
    left = {str(i): row(str(i), target_nll=v + 1) for i, v in enumerate(noise)}
    right = {str(i): row(str(i), target_nll=v) for i, v in enumerate(noise)} | {"other": row("other", target_nll=1e6)}
    one = differences(left, right, ["target_nll"])["target_nll"]
    # unpaired, the interval would be a good two wide
    assert one is not None and one.n == 300
    assert one.value == pytest.approx(1) and one.low == pytest.approx(1) and one.high == pytest.approx(1)


def test_differences_of_scores_and_columns() -> None:
    rows = {
        "a": row("a", efficacy=1.0, generalization=1.0, specificity=1.0, base_efficacy=0.5, base_generalization=0.5,
                 base_specificity=1.0),
    }  # fmt: skip
    one = differences(rows, rows, ["score"], right_prefix="base_")["score"]
    assert one is not None and one.value == pytest.approx(1 - 3 / 5)
    assert differences(rows, {}, ["score"])["score"] is None


def test_figures_are_shown_in_their_units() -> None:
    assert shown("efficacy", 0.9912) == "99.1" and shown("fluency", 6.327) == "632.7"
    assert shown("target_nll", 1.23456) == "1.235" and shown("fluency", None) == "n/a"
