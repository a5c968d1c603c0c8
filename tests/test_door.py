"""One door to every runtime: it does what the experiment says, or refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flsimulation import InputError, RunError, load_experiment, resume, run
from flsimulation.events import RoundFinished
from flsimulation.experiment import Experiment, dump_toml
from flsimulation.rundir import RunRecord
from flsimulation.runtimes import apart_from_here, open_runtime, resume_hint

pytestmark = pytest.mark.seconds

SOURCE = Path(sys.modules["flsimulation"].__file__ or "").parent


def test_nobody_else_reads_where_an_experiment_runs() -> None:
    readers = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "runtime.kind ==" in (text := path.read_text()) or "runtime.kind !=" in text
    ]
    assert readers == ["runtimes/__init__.py"]


def on_network(port: int) -> Experiment:
    where = ["runtime.kind=network", f"runtime.superlink=127.0.0.1:{port}"]
    return load_experiment(None, where)


def test_without_a_superlink_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    with pytest.raises(InputError, match=rf"^runtime.superlink 127.0.0.1:{free_port}: no SuperL"):
        run(on_network(free_port), "out", [seen.append], seen.append)
    assert seen == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.seconds
def test_resume_goes_by_the_same_door(make_experiment: Any, tmp_path: Path, free_port: int) -> None:
    run(make_experiment(), tmp_path / "run")
    before = RunRecord(tmp_path / "run").rounds
    experiment = make_experiment(runtime={"kind": "network", "superlink": f"127.0.0.1:{free_port}"})
    with pytest.raises(InputError, match="no SuperLink answers there"):
        resume(tmp_path / "run", experiment=experiment)
    (tmp_path / "run" / "experiment.toml").write_text(dump_toml(experiment))
    with pytest.raises(InputError, match="no SuperLink answers there"):
        resume(tmp_path / "run")
    assert RunRecord(tmp_path / "run").rounds == before


@pytest.mark.seconds
def test_the_door_and_a_network_need_no_torch(tmp_path: Path, free_port: int) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(dump_toml(on_network(free_port)))
    code = (
        "import sys, flsimulation.runtimes\n"
        "print('flwr' in sys.modules)\n"
        "from flsimulation import InputError, load_experiment, run\n"
        "try: run(load_experiment(sys.argv[1]))\n"
        "except InputError: print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "False\n[]\n"


@pytest.mark.seconds
def test_an_error_notes_how_the_run_is_resumed(make_experiment: Any, tmp_path: Path) -> None:
    def fail(after: int) -> Any:
        def sink(event: Any) -> None:
            if isinstance(event, RoundFinished) and event.round == after:
                raise RunError("so it is")

        return sink

    with pytest.raises(RunError, match="^so it is\n") as caught:
        run(make_experiment(), tmp_path / "run", [fail(1)])
    assert caught.value.__notes__ == [f"resume with `flsim run --resume {tmp_path}/run`"]
    with pytest.raises(RunError) as caught:
        resume(tmp_path / "run", [fail(2)])
    assert caught.value.__notes__ == [f"resume with `flsim run --resume {tmp_path}/run`"]


def test_one_process_is_compared_with_a_network_unless_the_experiment_names_ray() -> None:
    for kind, other in {"inprocess": "network", "network": "network", "ray": "ray"}.items():
        experiment = load_experiment(None, [f"runtime.kind={kind}"])
        assert apart_from_here(experiment).runtime.kind == other
        assert apart_from_here(experiment).data == experiment.data


def test_a_hint_names_the_superlink_of_a_network(tmp_path: Path) -> None:
    experiment = on_network(1234)
    assert resume_hint(experiment, tmp_path) is None
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n')
    hint = f"flsim run --resume {tmp_path}"
    assert resume_hint(experiment, tmp_path) == f"{hint} --superlink 127.0.0.1:1234"
    assert resume_hint(load_experiment(), tmp_path) == hint


def test_one_process_needs_nothing_opened(make_experiment: Any) -> None:
    experiment = make_experiment()
    with open_runtime(experiment) as runtime:
        assert (runtime.experiment, runtime.place) == (experiment, "one process")
        assert runtime.federate is not None
