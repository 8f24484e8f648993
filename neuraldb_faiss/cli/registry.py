"""Commands by name: their modules, and the headings of the help under which they stand."""

from __future__ import annotations

from dataclasses import dataclass

import click

from neuraldb_faiss.errors import ConfigError
from neuraldb_faiss.registry import Registry, load

FACTS, ASKING, SERVING = "Facts and databases", "Asking a model", "Serving"
MEASURING, MAINTENANCE = "Measuring", "Maintenance"
OTHERS = "Commands of other packages"
GROUPS = (FACTS, ASKING, SERVING, MEASURING, MAINTENANCE, OTHERS)


@dataclass(frozen=True, slots=True)
class CommandKind:
    """One command.

    Attributes:
        name: as in `neuraldb NAME`.
        target: "module:attribute", a click command. The module is imported when the help lists the command or somebody
            runs it, and imports no torch, transformers, faiss or datasets before the command runs.
        group: heading of the help, one of GROUPS.
    """

    name: str
    target: str
    group: str

    @property
    def help(self) -> str:
        return self.load().get_short_help_str(limit=200)

    def load(self) -> click.Command:
        """The command; where another package's cannot be loaded, one that says why when it is run."""
        try:
            command = load(self.target)
        except Exception as error:
            if self.group != OTHERS:
                raise
            return self._missing(f"cannot be imported: {error}")  # it must not hide our own commands from the help
        if not isinstance(command, click.Command):
            return self._missing(f"is a {type(command).__name__}, not a click command")
        return command

    def _missing(self, why: str) -> click.Command:
        text = f"Not available: the entry point {self.name} of the group {REGISTRY.group}: {self.target} {why}."

        def fail() -> None:
            raise click.ClickException(text)

        return click.Command(self.name, callback=fail, help=text)


def _ours(name: str, place: str, group: str) -> CommandKind:
    return CommandKind(name, f"neuraldb_faiss.cli.commands.{place}", group)


REGISTRY = Registry(
    "command",
    "neuraldb_faiss.commands",
    (
        _ours("demo", "demo:demo", FACTS),
        _ours("models", "models:models", FACTS),
        _ours("build", "build:build", FACTS),
        _ours("rebuild", "rebuild:rebuild", FACTS),
        _ours("add", "add:add", FACTS),
        _ours("remove", "remove:remove", FACTS),
        _ours("solve", "solve:solve", FACTS),
        _ours("merge", "merge:merge", FACTS),
        _ours("export", "export:export", FACTS),
        _ours("import", "import_:import_", FACTS),
        _ours("push", "push:push", FACTS),
        _ours("facts", "facts:facts", FACTS),
        _ours("info", "info:info", FACTS),
        _ours("generate", "generate:generate", ASKING),
        _ours("chat", "chat:chat", ASKING),
        _ours("explain", "explain:explain", ASKING),
        _ours("serve", "serve:serve", SERVING),
        _ours("inspect", "inspect:inspect", SERVING),
        _ours("test", "test:test", MEASURING),
        _ours("eval", "eval:evaluate", MEASURING),
        _ours("lm-eval", "lm_eval:lm_eval", MEASURING),
        _ours("experiment", "experiment:experiment", MEASURING),
        _ours("tune-layer", "tune_layer:tune_layer", MEASURING),
        _ours("report", "report:report", MEASURING),
        _ours("statistics", "statistics:statistics", MEASURING),
        _ours("bench", "bench:bench", MEASURING),
        _ours("history", "history:history", MAINTENANCE),
        _ours("rollback", "rollback:rollback", MAINTENANCE),
        _ours("compact", "compact:compact", MAINTENANCE),
        _ours("reindex", "reindex:reindex", MAINTENANCE),
        _ours("calibrate", "calibrate:calibrate", MAINTENANCE),
        _ours("verify", "verify:verify", MAINTENANCE),
    ),
    ConfigError,
    lambda point: CommandKind(point.name, point.value, OTHERS),  # loaded when it is used: it may be slow, or broken
)
