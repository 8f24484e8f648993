"""The queue that gives calls to workers, with workers that need no model; the processes are real."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss.errors import BuildError, ModelError
from neuraldb_faiss.integrations import ray
from neuraldb_faiss.integrations.ray import AHEAD, TRIES, Workers

pytestmark = pytest.mark.ray


def toy() -> type:
    """A class made here goes to the workers by value: they cannot import the tests."""

    class Toy:
        def load(self, model: str, device: str, dtype: str | None) -> str:
            if model == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if model == "bad":
                raise ModelError("there is no model at bad")
            self.device = device
            return "toy"

        def double(self, number: int, folder: Path, wait_for: int) -> int:
            """Returns when so many other calls have."""
            while len(list(folder.iterdir())) < wait_for:
                time.sleep(0.01)
            (folder / str(number)).touch()
            return 2 * number

        def die_once(self, mark: Path) -> int:
            """Ends its process, unless `mark` says that one died before."""
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return os.getpid()

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def gpu(self, folder: Path) -> str:
            """The device, told when both workers are at it."""
            (folder / str(os.getpid())).touch()
            while len(list(folder.iterdir())) < 2:
                time.sleep(0.01)
            return f"{self.device} {os.environ.get('CUDA_VISIBLE_DEVICES')}"

        def refuse(self, what: str) -> None:
            raise ModelError(what)

    return Toy


@pytest.fixture
def crew_of(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray, "Worker", toy())
    return lambda count=2, model="toy", device="cpu": Workers("local", count, model, device, None)


def test_answers_come_in_order_and_workers_run_ahead_only_so_far(
    crew_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    give = Workers._give

    def note(self: Workers, worker: Any, number: int, *call: Any) -> None:
        given.append(number)
        give(self, worker, number, *call)

    monkeypatch.setattr(Workers, "_give", note)
    ahead = 2 * AHEAD
    calls = [(0, tmp_path, ahead - 1), *((number, tmp_path, 0) for number in range(1, 30))]
    with crew_of() as crew:
        answers = crew.run("double", calls, str)
        assert next(answers) == 0  # only after all that may run ahead of it
        assert sorted(given) == list(range(ahead))
        assert list(answers) == [2 * number for number in range(1, 30)]
        assert list(crew.run("double", [(7, tmp_path, 0)], str)) == [14]  # the same workers serve the next run
    assert sorted(given) == [0, *range(30)]


def test_a_call_whose_worker_died_is_given_to_another(crew_of: Any, tmp_path: Path) -> None:
    with crew_of() as crew:
        pids = list(crew.run("die_once", [(tmp_path / "mark",)] * 3, str))
    assert len(pids) == 3


def test_a_call_that_ends_every_worker_ends_the_build(crew_of: Any) -> None:
    with crew_of() as crew, pytest.raises(BuildError, match=f"{TRIES} workers died solving piece 0"):
        list(crew.run("die", [()], lambda number: f"solving piece {number}"))


def test_workers_that_die_loading_end_the_build(crew_of: Any) -> None:
    with crew_of(model="dies") as crew, pytest.raises(BuildError, match=f"{TRIES} workers died loading dies"):
        list(crew.run("double", [(1, Path(), 0)], str))


def test_errors_of_workers_are_what_they_were(crew_of: Any) -> None:
    with crew_of(1) as crew, pytest.raises(ModelError, match="^no FFN in layer 99$"):
        list(crew.run("refuse", [("no FFN in layer 99",)], str))
    with crew_of(1, model="bad") as crew, pytest.raises(ModelError, match="^there is no model at bad$"):
        list(crew.run("double", [(1, Path(), 0)], str))


def test_more_workers_than_the_cluster_has_room_for(crew_of: Any, tmp_path: Path) -> None:
    with crew_of(5) as crew:
        answers = crew.run("double", [(number, tmp_path, 0) for number in range(9)], str)
        assert list(answers) == [2 * number for number in range(9)]


def test_each_worker_sees_the_gpu_it_is_given(crew_of: Any, tmp_path: Path) -> None:
    with crew_of(2, device=None) as crew:
        assert set(crew.run("gpu", [(tmp_path,)] * 4, str)) == {"cuda 0", "cuda 1"}
    with crew_of(1, device="cpu") as crew:
        (told,) = crew.run("gpu", [(tmp_path,)], str)
        assert told.startswith("cpu ")


def test_gpus_where_there_are_none(crew_of: Any, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(BuildError, match="no GPU"), crew_of(device="cuda"):
        pass
    assert ray._place(None, 1) == ("cpu", {"num_cpus": 2})
    assert ray._place(None, 5) == ("cpu", {"num_cpus": 1})


@pytest.mark.parametrize(("how", "told"), [({"device": "cuda:1"}, "cuda:1"), ({"count": 0}, "workers is 0")])
def test_what_cannot_work_is_refused(crew_of: Any, how: dict[str, Any], told: str) -> None:
    with pytest.raises(BuildError, match=told), crew_of(**how):
        pass


def test_a_cluster_that_is_not_there(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "nonsense"):
        with pytest.raises(BuildError, match=f"cannot join the Ray cluster at {address}"):
            Workers(address, 1, "toy", None, None)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BuildError, match=r"neuraldb-faiss\[ray\]"):
        Workers("local", 1, "toy", None, None)
