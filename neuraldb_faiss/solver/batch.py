"""Token rows of equation 21 for groups of facts, and the places in them whose logits the loss needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuraldb_faiss.models.tokenization import (
    EncodedTarget,
    encode,
    encode_all,
    encode_targets,
)
from neuraldb_faiss.solver.prefixes import contexts
from neuraldb_faiss.solver.target_end import end_places, point_token

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact


@dataclass(frozen=True, slots=True)
class Row:
    """One text; `ids` ends before the target's last token, which is only predicted, unless what follows the target
    counts too (`end`): then with the target, and for a number with "." behind it."""

    group: int
    fact: int  # index of the fact within its group; -1 on a row that serves KL alone
    raw: bool
    ids: tuple[int, ...]
    last: int  # index of the token at which the vector is added: the subject's last, or the prompt's
    targets: tuple[int, ...]  # predicted from the last len(targets) positions, with `end` from those before the last
    kl: tuple[int, ...] = ()  # indices of the tokens at which KL(edited || base) is taken
    end: int = 0  # places behind the target at which its last word must not go on; 2: also behind "." (a number's)
    context: int = 0  # which prefix the prompt stands behind, from 1; 0 for none

    def without_end(self) -> Row:
        """The row up to its target: what follows that is not looked at."""
        return replace(self, ids=self.ids[: len(self.ids) - self.end], end=0)


def group_rows(
    tokenizer: Any,
    group: int,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    kl_prompts: Sequence[str] = (),
    ends: bool = False,
) -> list[Row]:
    """Rows of one group: for each fact its raw prompt and one behind each prefix; for KL "{subject} is a", and the
    subject in each of `kl_prompts` that is none of the facts' own templates.

    The target's end (`Row.end`) is looked at in raw rows, and with `ends` in all, unless the target ends in a sign.

    In "{subject} is a" the KL is taken at the subject's last token, in `kl_prompts` at the prompt's. What a model
    computes at the subject's last token depends only on the tokens up to it. Where the raw prompt begins with the
    subject, that is the beginning of "{subject} is a": the raw row then serves for KL too, and that row is spared.
    """
    texts = [place for fact in facts for place in contexts(fact, prefixes)]
    per_fact = 1 + len(prefixes)
    encoded = encode_targets(
        tokenizer,
        [text for text, _ in texts],
        [span for _, span in texts],
        [fact.target for fact in facts for _ in range(per_fact)],
        [fact.separator for fact in facts for _ in range(per_fact)],
    )
    point = point_token(tokenizer)
    places = [end_places(fact.target) if point is not None else min(end_places(fact.target), 1) for fact in facts]

    def row_of(fact: int, context: int, text: EncodedTarget) -> Row:
        end = places[fact] if ends or not context else 0
        ids = (text.ids[:-1], text.ids, (*text.ids, point or 0))[end]
        return Row(group, fact, not context, ids, text.last, text.ids[text.target_start :], end=end, context=context)

    rows = [row_of(*divmod(number, per_fact), text) for number, text in enumerate(encoded)]
    subject = facts[0].subject
    about = encode(tokenizer, f"{subject} is a", (0, len(subject)))
    head = about.ids[: about.last + 1]
    if rows[0].ids[: rows[0].last + 1] == head:
        raw = rows[0]
        rows[0] = replace(raw, kl=(raw.last,))
    else:
        rows.append(Row(group, -1, False, head, about.last, (), (about.last,)))
    own = {fact.template for fact in facts}
    for template in kl_prompts:
        if template not in own:
            before, _, behind = template.partition("{}")
            other = encode(tokenizer, before + subject + behind, (len(before), len(before) + len(subject)))
            rows.append(Row(group, -1, False, other.ids, other.last, (), (len(other.ids) - 1,)))
    return rows


def prefix_tokens(tokenizer: Any, prefixes: Sequence[str]) -> list[tuple[int, ...]]:
    """What the rows behind each prefix begin with, unless the tokenizer joins its end with what follows."""
    texts = [f"{prefix}." for prefix in prefixes]
    return [row.ids for row in encode_all(tokenizer, texts, [(0, len(text)) for text in texts])]


@dataclass(frozen=True, slots=True)
class Picks:
    """The places whose logits the loss needs, group by group. N target places come first, then K KL places, then the E
    places behind targets.

    Columns count from the subject's last token (column 0), rows from the batch's first.
    """

    row: Tensor  # int64 [N + K + E]
    column: Tensor  # int64 [N + K + E]
    target: Tensor  # int64 [N]: the token wanted at each target place
    fact: Tensor  # int64 [N]: index of the place's fact among all the batch's facts
    raw: Tensor  # bool [N]: the place is in a raw row
    share: Tensor  # float32 [N]: 1 / (tokens of the target * rows of the fact)
    group_of_kl: Tensor  # int64 [K]
    group_of_fact: Tensor  # int64 [F]
    group_of_row: Tensor  # int64 [rows]
    end_fact: Tensor  # int64 [E]: index of the fact whose target ends before the place
    end_raw: Tensor  # bool [E]: the place is in a raw row
    end_after: Tensor  # int64 [E]: the token between the target and the place; -1 for none

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N + K + E, vocab] at these places, as those of targets, for KL, and of ends."""
        first, second, third = logits.split([len(self.target), len(self.group_of_kl), len(self.end_fact)])
        return first, second, third


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups that are solved together; a row's group counts within the batch."""

    groups: tuple[tuple[Row, ...], ...]

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group]

    def keep(self, groups: Sequence[int]) -> Batch:
        """The batch with only the given groups, in the given order."""
        return Batch(tuple(self.groups[g] for g in groups))

    def row_index(self, groups: Sequence[int]) -> list[int]:
        """Positions of the given groups' rows among this batch's rows."""
        starts = [0]
        for group in self.groups:
            starts.append(starts[-1] + len(group))
        return [row for g in groups for row in range(starts[g], starts[g + 1])]

    def sample(self, turn: int) -> list[int]:
        """Positions of the rows without a prefix, and of those behind the one whose turn it is (from 0, round and
        round; below 0 it is none's)."""
        n = max(1, max(row.context for row in self.rows))
        return [i for i, row in enumerate(self.rows) if not row.context or (turn >= 0 and row.context - 1 == turn % n)]

    def select(self, rows: Sequence[int], endless: Collection[int] = ()) -> Batch:
        """The batch with only the rows at these positions, which ascend and of which every group has some; those that
        are `endless` too are taken `without_end`."""
        wanted, number = set(rows), 0
        groups: list[tuple[Row, ...]] = []
        for group in self.groups:
            numbered = [(i, row) for i, row in enumerate(group, number) if i in wanted]
            groups.append(tuple(row.without_end() if i in endless else row for i, row in numbered))
            number += len(group)
        return Batch(tuple(groups))

    def picks(self, device: torch.device) -> Picks:
        """Where the loss looks; see `Picks`."""
        row: list[int] = []
        column: list[int] = []
        target: list[int] = []
        fact: list[int] = []
        raw: list[bool] = []
        share: list[float] = []
        kl_row: list[int] = []
        kl_column: list[int] = []
        group_of_kl: list[int] = []
        group_of_fact: list[int] = []
        group_of_row: list[int] = []
        end_row: list[int] = []
        end_column: list[int] = []
        end_fact: list[int] = []
        end_raw: list[bool] = []
        end_after: list[int] = []
        number = 0
        for g, rows in enumerate(self.groups):
            first_fact = len(group_of_fact)
            n_facts = 1 + max(r.fact for r in rows)
            group_of_fact += [g] * n_facts
            for r in rows:
                group_of_row.append(g)
                for place in r.kl:
                    kl_row.append(number)
                    kl_column.append(place - r.last)
                    group_of_kl.append(g)
                n_rows = sum(other.fact == r.fact for other in rows)
                start = len(r.ids) - len(r.targets) - r.end - r.last
                for place in range(r.end):
                    end_row.append(number)
                    end_column.append(len(r.ids) - r.end + place - r.last)
                    end_fact.append(first_fact + r.fact)
                    end_raw.append(r.raw)
                    end_after.append(r.ids[-1] if place else -1)
                for offset, token in enumerate(r.targets):
                    row.append(number)
                    column.append(start + offset)
                    target.append(token)
                    fact.append(first_fact + r.fact)
                    raw.append(r.raw)
                    share.append(1.0 / (len(r.targets) * n_rows))
                number += 1

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return Picks(
            row=ints(row + kl_row + end_row),
            column=ints(column + kl_column + end_column),
            target=ints(target),
            fact=ints(fact),
            raw=torch.tensor(raw, dtype=torch.bool, device=device),
            share=torch.tensor(share, dtype=torch.float32, device=device),
            group_of_kl=ints(group_of_kl),
            group_of_fact=ints(group_of_fact),
            group_of_row=ints(group_of_row),
            end_fact=ints(end_fact),
            end_raw=torch.tensor(end_raw, dtype=torch.bool, device=device),
            end_after=ints(end_after),
        )
