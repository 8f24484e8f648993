"""Every check that a model must pass to be called supported, on a tiny random model of its real class or on a real one.

`Subject` sets one model up with a database of one fact; each method of `CHECKS` is one column of the matrix. What
is compared is always the plain way: one text, no padding, no cache, or the formula written down.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.reference_pmet import reference_pmet
from helpers.reference_residual import reference_residual
from helpers.tiny import tiny
from neuraldb_faiss import Fact, build
from neuraldb_faiss.models import find_attention
from neuraldb_faiss.models.interventions import frozen
from neuraldb_faiss.solver import solve_residuals
from neuraldb_faiss.solver.batch import Batch, group_rows
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.solver.forward.packed import Heads
from neuraldb_faiss.solver.forward.strategy import Ways

LAYER = 1
FACT = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
STEPS = 4
NEW_TOKENS = 5


class Subject:
    """A model, and a database of one fact for it in a new folder."""

    def __init__(self, kind: str, folder: Path, made: tuple[Any, Any] | None = None, layer: int | None = LAYER) -> None:
        """kind: its name in the table. made: model and tokenizer; a tiny one of that kind otherwise. layer: None is the
        model's usual one."""
        self.kind = kind
        self.model: Any
        self.tokenizer: Any
        self.model, self.tokenizer = made or tiny(kind)
        self.db = build([FACT], self.model, self.tokenizer, folder, layer=layer, steps=STEPS, max_steps=0)
        self.editor = Editor.of(self.db.config, self.model, self.tokenizer)
        self.site = self.editor.site
        prompts = (FACT.text, f"{self.editor.prefixes[0]}. {FACT.text}", "Rome is the capital", FACT.text + " Italy")
        self.texts = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]

    # ---- the plain way

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """[T, vocab] of one text alone."""
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    @cached_property
    def plain(self) -> tuple[list[torch.Tensor], list[set[tuple[int, int]]]]:
        """Logits and (position, entry) of what fires, text by text, with the database attached."""
        logits, fires = [], []
        with self.db.attach(self.model, self.tokenizer) as handle:
            for ids in self.texts:
                handle.clear_trace()
                logits.append(self.logits(ids))
                fires.append({(fire.position, fire.entry_id) for fire in handle.trace()})
        return logits, fires

    def batch(self, side: str) -> dict[str, torch.Tensor]:
        width = max(map(len, self.texts)) + 1
        pad = self.tokenizer.pad_token_id
        rows, masks = [], []
        for ids in self.texts:
            gap, ones = [pad] * (width - len(ids)), [1] * len(ids)
            rows.append(ids + gap if side == "right" else gap + ids)
            masks.append(ones + [0] * len(gap) if side == "right" else [0] * len(gap) + ones)
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}

    def numbered(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with the position ids that `generate` would give."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return batch
        return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}

    # ---- the checks

    def check_fires(self) -> None:
        """Attached, the fact fires at its subject's last token and changes what the model says."""
        logits, fires = self.plain
        end = FACT.subject_span[1]
        before = self.tokenizer(FACT.text[:end])["input_ids"]
        assert len(before) - 1 in {position for position, _ in fires[0]}
        assert not torch.allclose(logits[0], self.logits(self.texts[0]), atol=1e-3)

    def check_detaches(self) -> None:
        """Detached, the model gives the very bits it gave, and no hook is left."""
        before = [self.logits(ids) for ids in self.texts]
        hooks = _hooks(self.model)
        with self.db.attach(self.model, self.tokenizer):
            assert _hooks(self.model) > hooks
            self.logits(self.texts[0])
        assert _hooks(self.model) == hooks
        assert all(torch.equal(self.logits(ids), old) for ids, old in zip(self.texts, before, strict=True))

    def check_left_padding(self) -> None:
        self._padded("left")

    def check_right_padding(self) -> None:
        self._padded("right")

    def _padded(self, side: str) -> None:
        """A padded batch gives the logits, and fires the facts, of its texts alone."""
        logits, fires = self.plain
        batch = self.batch(side)
        with self.db.attach(self.model, self.tokenizer) as handle, torch.no_grad():
            got = self.model(**self.numbered(batch), use_cache=False).logits
            for row, mask in enumerate(batch["attention_mask"].bool()):
                found = {(f.position, f.entry_id) for f in handle.trace() if f.sequence == row}
                assert found == fires[row], f"text {row} fires {found}, alone {fires[row]}"
                _close(got[row][mask], logits[row])

    def check_generates(self) -> None:
        """Greedy generation, batched on the left and with a cache, says what full forwards say."""
        batch = self.batch("left")
        width = batch["input_ids"].shape[1]
        with self.db.attach(self.model, self.tokenizer):
            wanted = []
            for ids in self.texts:
                text = list(ids)
                for _ in range(NEW_TOKENS):
                    text.append(int(self.logits(text)[-1].argmax()))
                wanted.append(text[len(ids) :])
            got = self.model.generate(
                **batch, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        assert got[:, width:].tolist() == wanted

    def check_memit(self) -> None:
        """The stored residual is the plain reference's."""
        wanted = self._reference("memit")
        (stored,) = self.db.facts()
        entry = torch.tensor([stored.entry]).numpy()
        got = torch.from_numpy(self.db.snapshot.residuals(entry)[0])
        _same_direction(got, wanted.residual)
        assert stored.loss is not None and abs(stored.loss - wanted.loss) < 2e-3 * max(1.0, wanted.loss)

    def check_pmet(self) -> None:
        wanted = self._reference("pmet")
        # The reference code knows no target's end, and no other optimizer.
        config = dataclasses.replace(self.editor.config, end_factor=0.0, optimizer="adam")
        (solved,) = solve_residuals(
            self.model, self.tokenizer, self.site, [[FACT]], self.editor.prefixes, config, kind="pmet"
        )
        _same_direction(torch.from_numpy(solved.residual), wanted.residual)
        assert abs(solved.facts[0].nll - wanted.nll[0]) < 5e-3 * max(1.0, wanted.nll[0])

    def _reference(self, kind: str) -> Any:
        settings = dataclasses.asdict(self.editor.config)
        facts = [(FACT.subject, FACT.text, FACT.target)]
        if kind == "memit":
            modules = (self.site.module, self.site.block)
            solve: Callable[..., Any] = reference_residual
        else:
            modules = (self.site.module, find_attention(self.model, self.site).module)
            solve = reference_pmet
            for name in ("kl_prompts", "max_steps", "end_factor", "optimizer"):  # it has none of them
                del settings[name]
        return solve(self.model, self.tokenizer, *modules, facts, self.editor.prefixes, **settings)

    def way(self, kind: str = "memit") -> str:
        """How residuals are solved: "packed block" (the fastest), "packed ffn", "block", "ffn", or "full"."""
        rows = tuple(group_rows(self.tokenizer, 0, [FACT], self.editor.prefixes))
        attention = find_attention(self.model, self.site) if kind == "pmet" else None
        with frozen(self.model):
            ways = Ways(self.model, self.site, attention, Heads(self.model, ()))
            return ways.prove(Batch((rows,)), self.editor.config.clamp)


# What is told instead of passing, in part.
EXPECTED = {
    ("bamba", "pmet"): "has no attention",
    ("granitemoehybrid", "pmet"): "has no attention",
}

CHECKS: dict[str, Callable[[Subject], None]] = {
    "fires": Subject.check_fires,
    "detaches": Subject.check_detaches,
    "left padding": Subject.check_left_padding,
    "right padding": Subject.check_right_padding,
    "cached generation": Subject.check_generates,
    "memit": Subject.check_memit,
    "pmet": Subject.check_pmet,
}


def _close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=2e-4 * float(wanted.abs().max()))


def _same_direction(got: torch.Tensor, wanted: torch.Tensor) -> None:
    cosine = float(torch.cosine_similarity(got, wanted, dim=0))
    assert cosine >= 0.999, f"cosine {cosine:.4f} with the plain reference"
    ratio = float(got.norm() / wanted.norm())
    assert 0.99 < ratio < 1.01, f"{ratio:.3f} times as long as the plain reference"


def _hooks(model: nn.Module) -> int:
    """Hooks, and forwards put over the class's own, in the whole model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())
