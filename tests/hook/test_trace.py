"""What a handle and a trace say of themselves, as text and in notebooks."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

from neuraldb_faiss.hook.trace import ROWS_SHOWN, Fire, Namer, Trace


class Shown:
    """A snapshot with two facts of one entry."""

    def facts(self, *, entry: int) -> list[Any]:
        both = [("a", "Eiffel <Tower>", "Rome"), ("b", "Eiffel <Tower>", "Italy")]
        return [SimpleNamespace(id=i, subject=s, target=t) for i, s, t in both] if entry == 7 else []


NAMER = Namer(Shown, {5: " Tower"}.__getitem__)


def test_a_row_names_subject_target_and_token() -> None:
    one = Fire(0, 3, 7, ("a", "b"), 0.98765, 5, NAMER)
    assert repr(one) == (
        "<Fire 'Eiffel <Tower>' -> 'Rome, Italy' at token 3 ' Tower' of sequence 0: entry 7, cosine 0.9877>"
    )
    assert Fire(0, 3, 7, ("a",), 0.5, 5, NAMER).target == "Rome"  # what it served then


def test_a_row_without_database_or_tokenizer_says_what_it_knows() -> None:
    wanted = "<Fire at token 3 of sequence 1: entry 7, cosine 0.5000>"
    for namer in (None, Namer(Shown, None), Namer(lambda: None, None)):
        one = Fire(1, 3, 8 if namer else 7, ("a",), 0.5, None, namer)
        assert repr(one).replace("entry 8", "entry 7") == wanted and one.subject is one.target is one.token is None


def test_rows_compare_and_copy_by_their_values() -> None:
    one = Fire(0, 3, 7, ("a",), 0.5, 5, NAMER)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), Fire(0, 3, 7, ("a",), 0.5)):
        assert other == one and other.namer is None


def test_a_trace_is_a_list_and_a_table() -> None:
    trace = Trace([Fire(0, at, 7, ("a",), 0.5, 5, NAMER) for at in range(ROWS_SHOWN + 2)])
    assert isinstance(trace, list) and trace[1].position == 1
    html = trace._repr_html_()
    assert html.count("<tr>") == ROWS_SHOWN + 1 and html.endswith("<p>and 2 more</p>")
    assert "<td> Tower</td><td>Eiffel &lt;Tower&gt;</td><td>Rome</td>" in html
