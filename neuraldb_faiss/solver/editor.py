"""Editor: a model, and the settings by which a database's keys and residuals are made with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np

from neuraldb_faiss.config import (
    DELIVERIES,
    KEYS,
    DatabaseConfig,
    ResidualConfig,
    check_choice,
    check_gate,
)
from neuraldb_faiss.errors import BuildError, ModelError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.fingerprint import Fingerprint
from neuraldb_faiss.grounding.own_prompt import unasked
from neuraldb_faiss.guard.own_prompt import unheard
from neuraldb_faiss.guard.registry import REGISTRY as GUARDS
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.models import (
    EditDefaults,
    FFNSite,
    find_site,
    key_ids,
)
from neuraldb_faiss.models.adapters import has_virtual_tokens
from neuraldb_faiss.models.fingerprint import fingerprint
from neuraldb_faiss.models.identity import check_model, model_name
from neuraldb_faiss.models.interventions import check_causal
from neuraldb_faiss.models.tokenization import encode_prompt
from neuraldb_faiss.options import BuildConfig, BuildOptions
from neuraldb_faiss.solver.bare_keys import with_bare_keys
from neuraldb_faiss.solver.first_guess import FirstGuess, Solutions
from neuraldb_faiss.solver.keys import KeyRows, compute_keys
from neuraldb_faiss.solver.objectives.base import Objective
from neuraldb_faiss.solver.objectives.registry import REGISTRY, check_stored
from neuraldb_faiss.solver.outcome import FactOutcome
from neuraldb_faiss.solver.prefixes import generate_prefixes
from neuraldb_faiss.solver.residuals import Solver

# Settings that decide an entry's arrays, and the gate, which the facts left out hang on.
_DECIDING = (
    "fingerprint", "layer", "ffn_module", "d1", "d2", "prefixes", "keys", "residual", "config", "guard", "gamma",
)  # fmt: skip
_TIMES = 3  # the steps that a fact may take which is not said after its usual ones
_END_FACTOR = 0.25
_DEFAULTS = ("steps", "lr", "weight_decay", "clamp", "kl_factor")  # settings that a model's defaults have


@dataclass(frozen=True)
class Edited:
    """One entry's worth of work: the residual float32 [d2] of a group and what became of its facts."""

    residual: np.ndarray
    loss: float | None
    facts: tuple[FactOutcome | None, ...]


@dataclass(frozen=True)
class Editor:
    """A model, where it is edited, and how; `settings()` is all of it but the model itself."""

    model: Any
    tokenizer: Any
    site: FFNSite
    fingerprint: Fingerprint
    prefixes: tuple[str, ...]
    keys: str
    residual: str
    config: ResidualConfig
    guard: str
    gamma: float
    ffn_module: str | None
    name: str | None = None  # where the model came from; told to people, compared with nothing
    delivery: str = "auto"
    guess: FirstGuess | None = None  # where the solver begins

    @classmethod
    def new(
        cls,
        model: Any,
        tokenizer: Any,
        config: BuildConfig | None = None,
        **options: Unpack[BuildOptions],
    ) -> Editor:
        """Create an editor for a new database.

        Args:
            config: how keys and residuals are made; the defaults of the model and the kind otherwise.
            options: fields of BuildConfig that replace those of `config`.

        Raises:
            BuildError: an unknown kind, or a value out of range.
            ModelError: no FFN, no such layer, not what the objective needs, a model that is not causal, one with
                learnt virtual tokens (PEFT), or a tokenizer that the guard cannot read.
        """
        if has_virtual_tokens(model):
            raise ModelError(
                "PEFT puts learnt tokens in front of this model's every prompt (prompt learning), and keys are made"
                " without them: build inside `with model.disable_adapter():`, and attach there too"
            )
        given = BuildConfig.of(config, options)
        check_choice("keys", given.keys, KEYS)
        kind = REGISTRY[given.residual]
        objective = kind.load()
        defaults = objective.defaults(model, given.ffn_module)
        site = find_site(model, defaults.layer if given.layer is None else given.layer, given.ffn_module)
        objective.second_site(model, site)  # a model that lacks it is refused before anything slow
        settings = _config(objective, defaults, given, kind.optimizer)
        guard = GUARDS[given.guard or kind.guard]
        if guard.place != (place := GUARDS[kind.guard].place):
            raise BuildError(
                f"residual {kind.name} is solved for the {place}, and the guard {guard.name} fires at the"
                f" {guard.place}: leave the guard out, or choose another residual"
            )
        if guard.reads_text:
            Texts.of(tokenizer)  # a tokenizer that the guard cannot read is refused before anything slow
        prefixes = generate_prefixes(model, tokenizer, seed=given.seed)
        check_causal(model, site, encode_prompt(tokenizer, prefixes[0]))
        return cls(
            model=model,
            tokenizer=tokenizer,
            site=site,
            fingerprint=fingerprint(model, site),
            prefixes=prefixes,
            keys=given.keys,
            residual=given.residual,
            config=settings,
            guard=guard.name,
            gamma=check_gate(guard.name, given.gamma),
            ffn_module=given.ffn_module,
            name=model_name(model),
            delivery=check_choice("delivery", given.delivery, DELIVERIES),
        )

    @classmethod
    def of(cls, config: DatabaseConfig, model: Any, tokenizer: Any) -> Editor:
        """Create an editor from the stored settings of a database.

        Raises:
            FingerprintError: it was built with another model, layer or revision.
            BuildError: its residuals are of a kind that is no longer made.
            CorruptError: its settings are none that this program writes.
        """
        config.check_known()
        if config.config.get("chat"):
            raise BuildError(
                "the database was built with --chat, which no longer exists: build it anew (neuraldb rebuild), with"
                " --residual answer for chats"
            )
        check_stored(config.residual)
        return cls(
            model=model,
            tokenizer=tokenizer,
            site=check_model(config, model),
            fingerprint=config.model,
            prefixes=config.prefixes,
            keys=config.keys,
            residual=config.residual,
            config=config.objective,
            guard=config.guard,
            gamma=config.gamma,
            ffn_module=config.ffn_module,
            name=config.model_name,
            delivery=config.delivery,
        )

    def settings(self) -> DatabaseConfig:
        """What the database must keep to be changed later, and to refuse other models."""
        return DatabaseConfig(
            fingerprint=self.fingerprint.to_json(),
            layer=self.site.layer,
            ffn_module=self.ffn_module,
            d1=self.site.d1,
            d2=self.site.d2,
            prefixes=self.prefixes,
            keys=self.keys,
            residual=self.residual,
            config={**asdict(self.config), "kl_prompts": list(self.config.kl_prompts)},
            guard=self.guard,
            gamma=self.gamma,
            model_name=self.name,
            delivery=self.delivery,
        )

    def unheard(self, facts: Sequence[Fact]) -> list[int]:
        """Indices of the facts that could never fire, because the guard does not find the subject in their own prompt,
        or not that it asks for them.

        Raises:
            ModelError: the guard cannot read this tokenizer's tokens.
        """
        guard = GUARDS[self.guard]
        if guard.place == "answer":
            return unasked(facts)
        return unheard(self.tokenizer, facts) if guard.reads_text else []

    def key_ids(self, facts: Sequence[Fact]) -> list[str]:
        """Facts with the same one have the same key: they must share an entry."""
        return key_ids(self.tokenizer, facts, at_prompt_end=GUARDS[self.guard].place == "answer")

    def make_keys(self, facts: Sequence[Fact]) -> KeyRows:
        """Keys of these facts (eq. 20), one or two rows each; under a guard that names subjects, those of bare names
        behind them."""
        mode: Literal["two", "paper"] = "paper" if self.keys == "paper" else "two"
        at_end = GUARDS[self.guard].place == "answer"
        rows = compute_keys(
            self.model, self.tokenizer, self.site, facts, self.prefixes, mode, at_prompt_end=at_end
        )  # fmt: skip
        if mode == "paper" or self.guard == "none" or at_end:
            return rows
        return with_bare_keys(self.model, self.tokenizer, self.site, rows, facts, self.prefixes)

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        """One residual a group, by the database's objective; for raw prompts alone without `prefixed`."""
        if not REGISTRY[self.residual].load().solves:
            zero = np.zeros(self.site.d2, np.float32)
            return [Edited(zero, None, (None,) * len(group)) for group in groups]
        prefixes = self.prefixes if prefixed else ()
        guesses = None
        if self.guess is not None and prefixed and groups:
            guesses = self.guess([[fact.separator + fact.target for fact in group] for group in groups])
        solver = Solver(self.model, self.tokenizer, self.site, self.config, self.residual)
        solved = solver.solve(groups, prefixes, guesses)
        return [Edited(one.residual, one.loss, one.facts) for one in solved]

    def knowing(self, solutions: Solutions) -> Editor:
        """The editor whose residuals begin at first guesses from these."""
        if self.guess is not None and self.guess.digest == solutions.digest:
            return self
        return replace(self, guess=FirstGuess(self.model, self.tokenizer, solutions))

    def digest(self) -> str:
        """Hex; equal where the same facts give the same arrays, solved from the same first guesses."""
        return digest_of(self.settings())


def digest_of(settings: DatabaseConfig) -> str:
    """`Editor.digest` of an editor with these settings."""
    stored = settings.to_json()
    deciding = {name: stored[name] for name in sorted(_DECIDING)}
    return hashlib.sha256(repr(list(deciding.items())).encode()).hexdigest()


def _config(
    objective: Objective, defaults: EditDefaults, config: BuildConfig, optimizer: str
) -> ResidualConfig:  # fmt: skip
    given = config.objective()
    if (odd := next((name for name in objective.unused if given.get(name)), None)) is not None:
        raise BuildError(f"{odd} has no part in residual {config.residual}: leave it out")
    base: dict[str, Any] = {name: getattr(defaults, name) for name in _DEFAULTS}
    base["optimizer"] = given.get("optimizer", optimizer)
    if base["optimizer"] == "sampled":
        base |= objective.sampled
    wanted = {**base, **given}
    end_factor = 0.0 if "end_factor" in objective.unused else _END_FACTOR
    return ResidualConfig(**{"max_steps": _TIMES * wanted["steps"], "end_factor": end_factor, **wanted})
