"""The settings in docs/deploy.md, compose.yaml and the systemd unit are options of the command."""

from __future__ import annotations

import re
from pathlib import Path

import click

from neuraldb_faiss.cli.commands.serve import serve

ROOT = Path(__file__).parents[2]
VARIABLES = {name for param in serve.params for name in ([param.envvar] if isinstance(param.envvar, str) else [])}


def test_the_page_s_file_can_be_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text("utf-8"), re.DOTALL)
    path = tmp_path / "neuraldb.toml"
    path.write_text(text)
    with serve.make_context("serve", ["--config", str(path)]) as context:
        assert context.params["databases"] == ("legal=/data/legal", "base=/data/base")


def test_variables_are_the_command_s() -> None:
    for name in ("compose.yaml", "Dockerfile", "docs/deploy.md"):
        named = set(re.findall(r"NEURALDB_[A-Z_]*[A-Z]", (ROOT / name).read_text("utf-8"))) - {"NEURALDB_SERVE"}
        assert named and named <= VARIABLES | {"NEURALDB_CONFIG"}, name


def test_the_unit_starts_the_command() -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", (ROOT / "examples" / "neuraldb.service").read_text("utf-8"), re.MULTILINE)
    words = line.split()
    assert words[:2] == ["/opt/neuraldb/bin/neuraldb", "serve"]
    known = {name for param in serve.params if isinstance(param, click.Option) for name in param.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_image_is_healthy_once_it_is_ready() -> None:
    """The route that the health check asks is one of the server's."""
    from neuraldb_faiss.serving.routes.status import router

    (path,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", (ROOT / "Dockerfile").read_text("utf-8"))
    assert path == "/ready" and path in {getattr(route, "path", "") for route in router.routes}
