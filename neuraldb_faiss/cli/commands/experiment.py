"""`neuraldb experiment`: tables and figures of the paper on a model and facts of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import load_model
from neuraldb_faiss.cli.output import count, emit_json, progress, say
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.cli.setting_values import parse_settings
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.models.paths import check_model_name
from neuraldb_faiss.research.experiments.registry import EXPERIMENTS


def _given_settings(config: Path | None, sets: tuple[str, ...], **named: Any) -> list[dict[str, Any]]:
    """The settings of --config, of --set, and of options of their own; later ones win."""
    return [_read(config), parse_settings(sets), {key: value for key, value in named.items() if value is not None}]


def _listed() -> str:
    rows = "\n".join(f"  {kind.name:18} {kind.help}" for kind in EXPERIMENTS.kinds.values())
    examples = opt.example(
        "neuraldb experiment table1 --model gpt2-xl --cases counterfact.json --facts 100 --out results/table1",
        "neuraldb experiment table1 --show",
    )
    return f"\b\nExperiments:\n{rows}\n\n{examples}"


@click.command(epilog=_listed())
@click.argument("name", metavar="NAME", type=Choice(list(EXPERIMENTS.kinds)))
@opt.bundle(
    "given",
    _given_settings,
    click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.toml",
        help="File of the experiment's settings.",
    ),
    click.option(
        "--set", "sets", multiple=True, metavar="NAME=VALUE",
        help="One of its settings, as in --set facts=200 or --set tasks=[\"sciq\"]. Repeatable.",
    ),
    click.option("--model", metavar="M", help="Model folder, or hub name: the setting `model`."),
    click.option("--cases", metavar="FILE", help="The cases, whose facts are edited: the setting `cases`."),
    click.option("--facts", type=click.IntRange(1), metavar="N", help="Number of cases: the setting `facts`."),
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Folder for databases, runs, rows.jsonl, table.md and plots. If it exists, the experiment is resumed.",
)  # fmt: skip
@click.option("--show", is_flag=True, help="Print the settings as a --config file, and exit.")
@opt.where
@opt.as_json
def experiment(
    name: str, given: list[dict[str, Any]], out: Path | None, show: bool, device: str | None, dtype: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Reproduce a table or figure of the paper, or of the docs.

    If it is interrupted, run the same command again to resume.
    """
    named = {name: value for one in given for name, value in one.items()}
    if not show:
        _check(named, out)
    from neuraldb_faiss.research.experiments.lab import COMMON, Lab, merged

    kind = EXPERIMENTS[name]
    if show:
        click.echo(_toml({**COMMON, **kind.defaults, **named}), nl=False)
        return
    assert out is not None  # checked above
    settings = merged(kind.defaults, *given)
    loaded, tokenizer = load_model(settings["model"], device, dtype)
    lab = Lab(settings, out, loaded, tokenizer, progress)
    result = kind.run(lab)
    paths = lab.write(result)
    if as_json:
        emit_json(list(result.rows))
    else:
        click.echo(result.table, nl=False)
    say(f"{count(len(result.rows), 'figure')}; {', '.join(path.name for path in paths)} in {out}")


def _check(named: Mapping[str, Any], out: Path | None) -> None:
    """Refuse what can be refused before torch is imported: no folder, no model, no file of cases."""
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    if not named.get("model"):
        raise EvaluationError("the experiment needs 'model': give --model, or set it in the --config file")
    check_model_name(str(named["model"]))
    cases = str(named.get("cases", ""))
    if cases and not cases.startswith("datasets:") and not Path(cases).exists():
        raise EvaluationError(f"there is no file of cases {cases}: check the path")


def _read(config: Path | None) -> dict[str, Any]:
    import tomllib

    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{config} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{config} is not TOML: {error}") from None


def _toml(config: dict[str, Any]) -> str:
    """Plain settings as TOML; JSON's strings, numbers and lists are TOML's too."""
    import json

    flat = {name: value for name, value in config.items() if not isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in flat.items()]
    for name, table in ((name, value) for name, value in config.items() if isinstance(value, dict)):
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        lines += ["", f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items() if k not in inner)]
        for key, value in inner.items():
            lines += ["", f"[{name}.{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
    return "\n".join(lines) + "\n"
