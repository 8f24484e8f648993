"""Every formula against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.datasets.cases import Case
from neuraldb_faiss.research.evaluation import metrics as m
from neuraldb_faiss.research.evaluation.generation import Match
from neuraldb_faiss.research.evaluation.scoring import Scored
from neuraldb_faiss.research.evaluation.text import TfIdf

ALL = frozenset({"rewrite", "paraphrase", "neighbour"})
FACT = Fact("Ann", "{} speaks", "English", target_true="French")
CASE = Case(
    FACT,
    paraphrases=("Ann, a native", "Ann talks"),
    neighbours=(("Bea speaks", "French"), ("Cid speaks", "French"), ("Dan speaks", "French")),
    compared=True,
)


def s(nll: float, *correct: bool) -> Scored:
    return Scored(nll, correct or (False,))


SCORES = {
    ("Ann speaks", "English"): s(0.5, True, True),
    ("Ann speaks", "French"): s(2.0),
    ("Ann, a native", "English"): s(1.0, True, True),
    ("Ann, a native", "French"): s(4.0),
    ("Ann talks", "English"): s(3.0, True, False),
    ("Ann talks", "French"): s(2.5),
    ("Bea speaks", "French"): s(1.0, True),
    ("Bea speaks", "English"): s(2.0),
    ("Cid speaks", "French"): s(3.0, False),
    ("Cid speaks", "English"): s(1.0),
    ("Dan speaks", "French"): s(2.0, False),
    ("Dan speaks", "English"): s(2.0),
}


def test_counterfact() -> None:
    assert set(m.pairs(CASE, ALL)) == set(SCORES)
    values = m.teacher_forced(CASE, ALL, SCORES)
    assert values == pytest.approx(
        {
            "efficacy": 1.0,  # 0.5 < 2.0
            "efficacy_acc": 1.0,
            "efficacy_margin": 1.5,
            "generalization": 0.5,  # 1.0 < 4.0, but 3.0 > 2.5
            "generalization_acc": 0.5,
            "generalization_margin": (3.0 - 0.5) / 2,
            "specificity": 1 / 3,  # a tie is no win
            "specificity_acc": 1 / 3,
            "specificity_margin": (1.0 - 2.0 + 0.0) / 3,
            "target_nll": 0.5,
            "target_probability": math.exp(-0.5),
        }
    )


def test_zsre_counts_tokens() -> None:
    case = Case(Fact("Ann", "When was {} born?", "2 May"), ("Ann's birthday?",), (("who sang", "The String"),))
    scores = {
        ("When was Ann born?", "2 May"): s(1.0, True, True, False, True),
        ("Ann's birthday?", "2 May"): s(1.0, True, False, False, False),
        ("who sang", "The String"): s(1.0, True, True),
    }
    assert set(m.pairs(case, ALL)) == set(scores)
    values = m.teacher_forced(case, ALL, scores)
    assert values == pytest.approx(
        {
            "efficacy": 0.75, "efficacy_acc": 0.0, "generalization": 0.25, "generalization_acc": 0.0,
            "specificity": 1.0, "specificity_acc": 1.0, "target_nll": 1.0, "target_probability": math.exp(-1),
        }
    )  # fmt: skip


def test_other_relations_and_what_follows() -> None:
    case = Case(
        FACT,
        relations=(("Ann lives in", "Lyon"), ("Ann is a", "spy")),
        portability=(("Ann's language is spoken in", "London town"), ("Annie speaks", "English")),
        compared=True,
    )
    wanted = frozenset({"paraphrase", "relation", "portability"})
    scores = {
        ("Ann lives in", "Lyon"): s(1.0, True),
        ("Ann lives in", "English"): s(3.0),
        ("Ann is a", "spy"): s(2.0, False),
        ("Ann is a", "English"): s(1.5),
        ("Ann's language is spoken in", "London town"): s(1.0, True, False),
        ("Annie speaks", "English"): s(0.1, True),
    }
    assert set(m.pairs(case, wanted)) == set(scores)
    assert m.teacher_forced(case, wanted, scores) == pytest.approx(
        {
            "generalization": None, "generalization_acc": None, "generalization_margin": None,  # no paraphrases
            "relation_specificity": 0.5, "relation_specificity_acc": 0.5,
            "relation_specificity_margin": (2.0 - 0.5) / 2,
            "portability": (0.5 + 1.0) / 2,
        }
    )  # fmt: skip


def test_only_what_is_asked_for() -> None:
    assert m.pairs(CASE, frozenset({"rewrite"})) == [("Ann speaks", "English"), ("Ann speaks", "French")]
    values = m.teacher_forced(CASE, frozenset({"neighbour"}), SCORES)
    assert set(values) == {"specificity", "specificity_acc", "specificity_margin"}


def test_not_available_is_none() -> None:
    assert m.generated(CASE, [], None, "mean") == {"fluency": None, "consistency": None}
    values = m.generated(CASE, ["a b c"], TfIdf(["a word"]), "mean")  # no references in the record
    assert values["consistency"] is None and values["fluency"] is not None
    assert m.decoded(None, chat=True) == {"ar_chat_acc": None, "ar_chat_stop_acc": None}
    assert m.decoded(Match(True, False), chat=False) == {"ar_acc": 1.0, "ar_stop_acc": 0.0}


def test_metrics_are_chosen_by_name_and_data_set() -> None:
    assert m.check("zsre", None)[:4] == ("efficacy", "generalization", "specificity", "score")
    assert "fluency" not in m.check("zsre", None)
    assert m.check("counterfact", ["score"]) == ("efficacy", "generalization", "specificity", "score")
    assert m.check("counterfact", ["fluency", "efficacy"]) == ("efficacy", "fluency")
    assert m.probes(["efficacy_acc", "score"]) == {"rewrite"}
    with pytest.raises(EvaluationError, match="unknown metric 'bleu'"):
        m.check("counterfact", ["bleu"])
    with pytest.raises(EvaluationError, match="zsre has no metric 'fluency'"):
        m.check("zsre", ["fluency"])
    with pytest.raises(EvaluationError, match="unknown quirk 'x'"):
        m.check_quirks(["x"])
