"""How an engine of vLLM is given a database, and which engines are refused one."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.tiny import tiny
from neuraldb_faiss import Fact, build
from neuraldb_faiss.errors import BuildError, NeuralDBError, ServeError, StoreError
from neuraldb_faiss.integrations.vllm import patches
from neuraldb_faiss.integrations.vllm.plugin import refresh, register
from neuraldb_faiss.integrations.vllm.settings import Settings, check


def test_no_database_is_named() -> None:
    assert Settings.read({}, {}) is None
    assert Settings.read(None, {"NEURALDB_GAMMA": "0.5"}) is None
    assert Settings.read({"other": 1}, {"NEURALDB_PATH": ""}) is None


def test_by_the_environment() -> None:
    assert Settings.read({}, {"NEURALDB_PATH": "db"}) == Settings("db")
    given = {"NEURALDB_PATH": "db", "NEURALDB_GUARD": "none", "NEURALDB_GAMMA": "0.7"}
    assert Settings.read(None, given) == Settings("db", "none", 0.7)


def test_additional_config_goes_before_the_environment() -> None:
    additional = {"neuraldb": {"path": "mine", "gamma": 0.5}}
    assert Settings.read(additional, {"NEURALDB_PATH": "db", "NEURALDB_GUARD": "none"}) == Settings("mine", None, 0.5)


def test_settings_survive_the_way_to_other_processes() -> None:
    settings = Settings("/db", "subject", 0.5, "model.layers.3.mlp.down_proj")
    assert Settings.read({"neuraldb": settings.as_dict()}, {}) == settings


@pytest.mark.parametrize(
    ("additional", "environment", "error", "message"),
    [
        ({"neuraldb": {"path": "db", "gama": 1}}, {}, ServeError, "'gama' is not known"),
        ({"neuraldb": "db"}, {}, ServeError, "'db' is not known"),
        ({"neuraldb": {"gamma": 0.5}}, {}, ServeError, "no path"),
        ({"neuraldb": {"path": "db", "gamma": "high"}}, {}, ServeError, "'high', which is no number"),
        ({}, {"NEURALDB_PATH": "db", "NEURALDB_GAMMA": "1.5"}, BuildError, "gamma is 1.5"),
        ({}, {"NEURALDB_PATH": "db", "NEURALDB_GUARD": "name"}, BuildError, "unknown guard 'name'"),
        (object(), {"NEURALDB_PATH": "db"}, ServeError, "must be a mapping"),
    ],
)
def test_bad_settings_are_refused(
    additional: Any, environment: dict[str, str], error: type[NeuralDBError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Settings.read(additional, environment)


def test_the_folder_is_looked_at_before_the_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, words = tiny("llama")
    build([Fact("Vienna", "{} is in", "Italy")], model, words, tmp_path / "db", layer=2, steps=1).close()
    monkeypatch.chdir(tmp_path)
    assert Settings("db").resolved() == Settings(str(tmp_path / "db"), module="model.layers.2.mlp.down_proj")
    with pytest.raises(StoreError, match="nowhere"):
        Settings("nowhere").resolved()


def config(**changed: Any) -> Any:
    """What of a VllmConfig is looked at, as it is for one rank and one model."""
    parallel = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "enable_dbo": False}
    whole = {
        "parallel_config": SimpleNamespace(**{**parallel, **changed.pop("parallel", {})}),
        "model_config": SimpleNamespace(**{"runner_type": "generate", **changed.pop("model", {})}),
        "speculative_config": None,
        "lora_config": None,
        "kv_transfer_config": None,
        "use_v2_model_runner": False,
    }
    return SimpleNamespace(**{**whole, **changed})


def test_one_rank_may_have_a_database() -> None:
    check(config())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parallel": {"tensor_parallel_size": 2}}, "tensor parallelism: the down-projection's input is split"),
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline parallelism: only one rank has the layer"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"parallel": {"enable_dbo": True}}, "dual batch overlap"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"lora_config": object()}, "LoRA"),
        ({"model": {"enable_prompt_embeds": True}}, "prompt embeddings"),
        ({"model": {"runner_type": "pooling"}}, "pooling"),
        ({"kv_transfer_config": object()}, "KV transfer"),
        ({"use_v2_model_runner": True}, "model runner V2"),
    ],
)
def test_other_engines_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ServeError, match=message):
        check(config(**changed))


def test_a_vllm_without_the_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = type(sys)("fake_vllm")
    fake.Runner = type("Runner", (), {"run": lambda self, x: x + 1})
    monkeypatch.setitem(sys.modules, "fake_vllm", fake)

    def make(before: Any) -> Any:
        return lambda self, x: before(self, x) * 10

    for _ in range(2):  # the second time changes nothing
        patches._patch("fake_vllm", "Runner.run", make)
        assert fake.Runner().run(1) == 20
    with pytest.raises(ServeError, match=r"no fake_vllm.Runner.walk .*tested with vLLM 0.32"):
        patches._patch("fake_vllm", "Runner.walk", make)


def test_a_vllm_of_another_kind_still_starts_without_a_database(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", type(sys)("vllm.engine.arg_utils"))
    for name in ("vllm", "vllm.engine"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.delenv("NEURALDB_PATH", raising=False)
    register()
    assert "no database can be served here: this vLLM has no vllm.engine.arg_utils.EngineArgs" in caplog.text
    monkeypatch.setenv("NEURALDB_PATH", "db")
    with pytest.raises(ServeError, match="EngineArgs"):
        register()


def test_refresh_needs_a_database() -> None:
    engine = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={}))
    with pytest.raises(ServeError, match="without a database"):
        refresh(SimpleNamespace(llm_engine=engine))


def test_refresh_empties_the_prefix_cache_or_says_that_it_cannot() -> None:
    engine = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={"neuraldb": {}}))
    asked = []

    def call(method: str) -> list[int]:
        asked.append(method)
        return [7]

    llm = SimpleNamespace(llm_engine=engine, collective_rpc=call, reset_prefix_cache=lambda: True)
    assert refresh(llm) == 7 and asked == ["neuraldb_refresh"]
    llm.reset_prefix_cache = lambda: False
    with pytest.raises(ServeError, match="no request is running"):
        refresh(llm)


def test_the_plugin_is_declared_and_light() -> None:
    """Every process of vLLM loads it, also where no database is served."""
    root = Path(__file__).resolve().parents[3]
    assert 'neuraldb = "neuraldb_faiss.integrations.vllm.plugin:register"' in (root / "pyproject.toml").read_text()
    code = (
        "import sys; import neuraldb_faiss.integrations.vllm.plugin;"
        " print(*{'torch', 'faiss', 'transformers', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---- with vLLM itself: run these in its environment (see docs/vllm.md)


def test_a_vllm_engine_gets_its_settings() -> None:
    pytest.importorskip("vllm")
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

    from neuraldb_faiss.integrations.vllm.settings import OPERATOR, adapt

    def adapted(**how: Any) -> Any:
        vllm_config = SimpleNamespace(additional_config={"other": 1}, compilation_config=CompilationConfig(**how))
        adapt(vllm_config, Settings("/db"))
        assert set(vllm_config.additional_config) == {"other", "neuraldb"}
        return vllm_config.compilation_config

    mode, full = CompilationMode.VLLM_COMPILE, CUDAGraphMode.FULL_AND_PIECEWISE
    pieces = adapted(mode=mode, cudagraph_mode=full, splitting_ops=["vllm::unified_attention_with_output"])
    assert pieces.splitting_ops == ["vllm::unified_attention_with_output", OPERATOR]
    assert pieces.cudagraph_mode == CUDAGraphMode.PIECEWISE
    assert adapted(mode=mode, cudagraph_mode=full, splitting_ops=[]).cudagraph_mode == CUDAGraphMode.NONE
    eager = adapted(mode=CompilationMode.NONE, cudagraph_mode=CUDAGraphMode.FULL)
    assert eager.cudagraph_mode == CUDAGraphMode.NONE


def test_vllm_splits_its_graph_at_the_lookup() -> None:
    pytest.importorskip("vllm")
    import torch
    from vllm.compilation.backends import split_graph

    import neuraldb_faiss.integrations.vllm.layer  # noqa: F401  (registers the operator)
    from neuraldb_faiss.integrations.vllm.settings import OPERATOR

    def layer(keys: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = keys @ weight
        torch.ops.neuraldb.vllm_lookup(keys, out, "the layer")
        return out.relu()

    traced: list[Any] = []

    def keep(graph: Any, _inputs: Any) -> Any:
        traced.append(graph)
        return lambda *_: (torch.zeros(3, 2),)  # no database answers here

    torch.compile(layer, backend=keep, fullgraph=True)(torch.ones(3, 4), torch.ones(4, 2))
    _, items = split_graph(traced[0], [OPERATOR])
    assert [item.is_splitting_graph for item in items] == [False, True, False]


def test_vllm_finds_the_plugin() -> None:
    pytest.importorskip("vllm")
    found = entry_points(group="vllm.general_plugins", name="neuraldb")
    assert [one.load().__name__ for one in found] == ["register"]
