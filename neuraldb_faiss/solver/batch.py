"""Token rows of equation 21 for groups of facts, and the places in them whose logits the loss needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuraldb_faiss.models.tokenization import encode, encode_all, encode_answer, encode_targets
from neuraldb_faiss.solver.prefixes import contexts

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact


@dataclass(frozen=True, slots=True)
class Row:
    """One text; `ids` ends before the target's last token, which is only predicted."""

    group: int
    fact: int  # index of the fact within its group; -1 on a row that serves KL alone
    raw: bool
    ids: tuple[int, ...]
    last: int  # index of the subject's last token
    targets: tuple[int, ...]  # predicted from the last len(targets) positions
    kl: int = -1  # index of the token at which KL(edited || base) is taken; -1: nowhere


def group_rows(
    tokenizer: Any,
    group: int,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    kl_prompts: Sequence[str] = (),
    chat: bool = False,
) -> list[Row]:
    """Rows of one group: for each fact its raw prompt and one behind each prefix; with `chat` one in which the prompt
    is a user's message and the target begins the answer; for KL "{subject} is a", and the subject in each of
    `kl_prompts` that is none of the facts' own templates.

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
    rows = [
        Row(
            group,
            number // per_fact,
            number % per_fact == 0,
            row.ids[:-1],
            row.last,
            row.ids[row.target_start :],
        )
        for number, row in enumerate(encoded)
    ]
    if chat:
        asked = [encode_answer(tokenizer, fact.text, fact.subject_span, fact.target) for fact in facts]
        rows += [
            Row(group, number, False, row.ids[:-1], row.last, row.ids[row.target_start :])
            for number, row in enumerate(asked)
        ]
    subject = facts[0].subject
    about = encode(tokenizer, f"{subject} is a", (0, len(subject)))
    head = about.ids[: about.last + 1]
    if rows[0].ids[: rows[0].last + 1] == head:
        raw = rows[0]
        rows[0] = replace(raw, kl=raw.last)
    else:
        rows.append(Row(group, -1, False, head, about.last, (), about.last))
    own = {fact.template for fact in facts}
    for template in kl_prompts:
        if template not in own:
            before, _, behind = template.partition("{}")
            other = encode(tokenizer, before + subject + behind, (len(before), len(before) + len(subject)))
            rows.append(Row(group, -1, False, other.ids, other.last, (), len(other.ids) - 1))
    return rows


def prefix_tokens(tokenizer: Any, prefixes: Sequence[str]) -> list[tuple[int, ...]]:
    """What the rows behind each prefix begin with, unless the tokenizer joins its end with what follows."""
    texts = [f"{prefix}." for prefix in prefixes]
    return [row.ids for row in encode_all(tokenizer, texts, [(0, len(text)) for text in texts])]


@dataclass(frozen=True, slots=True)
class Picks:
    """The places whose logits the loss needs, group by group. N target places come first, then K KL places.

    Columns count from the subject's last token (column 0), rows from the batch's first.
    """

    row: Tensor  # int64 [N + K]
    column: Tensor  # int64 [N + K]
    target: Tensor  # int64 [N]: the token wanted at each target place
    fact: Tensor  # int64 [N]: index of the place's fact among all the batch's facts
    raw: Tensor  # bool [N]: the place is in a raw row
    share: Tensor  # float32 [N]: 1 / (tokens of the target * rows of the fact)
    group_of_kl: Tensor  # int64 [K]
    group_of_fact: Tensor  # int64 [F]
    group_of_row: Tensor  # int64 [rows]


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
        number = 0
        for g, rows in enumerate(self.groups):
            first_fact = len(group_of_fact)
            n_facts = 1 + max(r.fact for r in rows)
            group_of_fact += [g] * n_facts
            for r in rows:
                group_of_row.append(g)
                if r.kl >= 0:
                    kl_row.append(number)
                    kl_column.append(r.kl - r.last)
                    group_of_kl.append(g)
                n_rows = sum(other.fact == r.fact for other in rows)
                start = len(r.ids) - len(r.targets) - r.last
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
            row=ints(row + kl_row),
            column=ints(column + kl_column),
            target=ints(target),
            fact=ints(fact),
            raw=torch.tensor(raw, dtype=torch.bool, device=device),
            share=torch.tensor(share, dtype=torch.float32, device=device),
            group_of_kl=ints(group_of_kl),
            group_of_fact=ints(group_of_fact),
            group_of_row=ints(group_of_row),
        )
