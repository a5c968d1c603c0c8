"""Modules that are imported at their first use, and what a run must not import before it needs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flsimulation.internals.deferred import Deferred, defer, is_imported
from flsimulation.rundir import RunRecord

MODULE = "order.append('module')\nfrom slow_one import part\nvalue = 1\ndef known(): return 'own'\n"
PART = "import slow_one\nslow_one.order.append('part')\n"


@pytest.fixture
def slow_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A deferred package with a submodule that it imports, and one that it does not."""
    package = tmp_path / "slow_one"
    package.mkdir()
    (package / "__init__.py").write_text(f"order = []\n{MODULE}")
    (package / "part.py").write_text(PART)
    (package / "other.py").write_text(PART.replace("'part'", "'other'"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    defer("slow_one", {"known": lambda: "stand-in"})
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "slow_one"]:
        del sys.modules[name]


def import_it() -> Any:
    import slow_one  # type: ignore[import-not-found]

    return slow_one


@pytest.mark.usefixtures("slow_one")
def test_what_a_stand_in_knows_imports_nothing() -> None:
    module = import_it()
    assert isinstance(module, Deferred)
    assert module.known() == "stand-in"
    assert not hasattr(module, "__warningregistry__")  # as those ask who look through all modules
    assert not is_imported("slow_one")


@pytest.mark.usefixtures("slow_one")
def test_any_other_name_imports_the_module_and_takes_its_place() -> None:
    stand_in = import_it()
    assert stand_in.value == 1
    assert is_imported("slow_one")
    assert stand_in.known() == "own"
    module = import_it()
    assert not isinstance(module, Deferred)
    stand_in.value = 2
    assert module.value == 2
    assert dir(stand_in) == dir(module)


@pytest.mark.parametrize(
    ("name", "order"), [("part", ["module", "part"]), ("other", ["module", "part", "other"])]
)
@pytest.mark.usefixtures("slow_one")
def test_a_submodule_is_run_once_and_after_the_module(name: str, order: list[str]) -> None:
    import_it()
    __import__(f"slow_one.{name}")
    module = import_it()
    assert not isinstance(module, Deferred)
    assert module.order == order
    assert getattr(module, name) is sys.modules[f"slow_one.{name}"]
    assert getattr(module, name).__spec__.origin.endswith(f"{name}.py")


@pytest.mark.usefixtures("slow_one")
def test_a_module_that_is_imported_stays() -> None:
    module = json
    defer("json", {"dumps": None})
    assert sys.modules["json"] is module
    assert __import__("json").dumps is not None


@pytest.mark.usefixtures("slow_one")
def test_a_name_that_the_module_lacks() -> None:
    module = import_it()
    with pytest.raises(AttributeError, match="module 'slow_one' has no attribute 'absent'"):
        module.absent  # noqa: B018
    assert is_imported("slow_one")


@pytest.mark.usefixtures("slow_one")
def test_two_threads_import_it_once() -> None:
    stand_in, found = import_it(), list[Any]()
    threads = [threading.Thread(target=lambda: found.append(stand_in.order)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["module", "part"]] * 4
    assert all(one is found[0] for one in found)


def said(code: str, folder: Path) -> list[str]:
    """Lines that a program of this code prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


BEGIN = """
import sys
from flsimulation.internals.slow_imports import DYNAMO, PLOTS, defer_slow_imports
from flsimulation.internals.deferred import is_imported
defer_slow_imports()
import pytorch_lightning as pl, torch, torchmetrics
"""


@pytest.mark.seconds
def test_optimizers_need_no_compiler_until_something_is_compiled(tmp_path: Path) -> None:
    code = f"""{BEGIN}
from lightning_fabric.wrappers import OptimizedModule
from pytorch_lightning.utilities.compile import from_compiled
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.5)
def step():
    optimizer.zero_grad()
    (2 * weight).sum().backward()
    optimizer.step()
    print(weight.tolist(), is_imported(DYNAMO))
step()
print(isinstance(torch.nn.Linear(1, 1), OptimizedModule), len(optimizer.state_dict()))
compiled = torch.compile(pl.LightningModule(), backend="eager")
print(isinstance(compiled, OptimizedModule), type(from_compiled(compiled)).__name__)
step()
torch.compile(step, backend="eager")()
print(torch._dynamo is sys.modules[DYNAMO], torch._dynamo.config is sys.modules[DYNAMO + ".config"])
"""
    assert said(code, tmp_path) == [
        "[0.0, 0.0] False",
        "False 2",
        "True LightningModule",
        "[-1.0, -1.0] True",
        "[-2.0, -2.0] True",
        "True True",
    ]


@pytest.mark.seconds
def test_the_compilers_first_use_may_be_inside_a_step_that_is_mapped_and_counted(
    tmp_path: Path,
) -> None:
    code = f"""{BEGIN}
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {{}}))
def step(x):
    import torch._dynamo.config
    return x * 3
calls = []
for _ in range(2):
    with torch.inference_mode(), Counting() as counting:
        result = vmap(step)(torch.ones(2))
    calls.append(counting.calls)
print(result.tolist(), calls[0] == calls[1], "aten.mul.Tensor" in calls[0], is_imported(DYNAMO))
with torch.no_grad():
    print(torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.zeros(2)).tolist())
"""
    assert said(code, tmp_path) == [
        "[3.0, 3.0] True True True",
        "[1.0, 1.0]",
    ]


@pytest.mark.seconds
def test_a_metrics_plot_imports_matplotlib_then(tmp_path: Path) -> None:
    code = f"""{BEGIN}
metric = torchmetrics.MeanMetric()
metric.update(torch.tensor(2.0))
print("matplotlib" in sys.modules, is_imported(PLOTS))
figure, axes = metric.plot()
print(type(figure).__name__, axes.lines[0].get_ydata().tolist(), is_imported(PLOTS))
"""
    assert said(code, tmp_path) == ["False False", "Figure [2.0] True"]


UNUSED = (
    *("torch._dynamo.eval_frame", "torch._inductor", "torch.fx.experimental.symbolic_shapes"),
    *("torch.distributed.tensor", "torch.distributed.fsdp._flat_param", "sympy", "mpmath"),
    *("matplotlib", "ray", "datasets", "flwr_datasets", "pandas", "pyarrow", "PIL.Image"),
    *("scipy.signal", "scipy.stats", "scipy.optimize", "scipy.special", "dp_accounting", "tree"),
    *("prometheus_client", "docker", "lightning", "flwr.simulation.app", "IPython"),
)
"""What no run needs until its first round ends, unless its data, its model or its engine does."""


@pytest.mark.seconds
@pytest.mark.parametrize("engine", ["stacked", "direct"])
def test_a_run_imports_until_its_first_round_ends_only_what_it_needs(
    engine: str, tmp_path: Path
) -> None:
    code = f"""
import sys
from flsimulation.internals.deferred import is_imported
from flsimulation.internals.slow_imports import defer_slow_imports
defer_slow_imports()
from flsimulation import load_experiment, run
def sink(event):
    if type(event).__name__ == "RoundFinished":
        print([name for name in {UNUSED!r} if is_imported(name)])
changes = ["strategy.rounds=1", "train.engine={engine}"]
run(load_experiment(None, changes), "run", [sink])
"""
    assert said(code, tmp_path) == ["[]"]


SYMBOLIC = f"""{BEGIN}
from torch.fx.experimental.symbolic_shapes import expect_true, guard_or_false, sym_eq
print(expect_true(True), guard_or_false(False), sym_eq((2, 3), torch.Size([2, 3])), sym_eq([2], [3]))
print(is_imported("sympy"))
try: expect_true(1)
except AssertionError: print("refused as by", sys.modules[expect_true.__module__] is not None)
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch._subclasses.fake_tensor import FakeTensorMode
size = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(torch.ones(5)).shape[0]
print(bool(guard_or_false(size == 5)), bool(sym_eq((size,), (5,))), is_imported("sympy"))
"""


@pytest.mark.seconds
def test_sizes_that_are_numbers_need_no_symbols(tmp_path: Path) -> None:
    assert said(SYMBOLIC, tmp_path) == [
        "True False True False",
        "False",
        "refused as by True",
        "True True True",
    ]


@pytest.mark.seconds
def test_the_command_has_the_results_of_a_program_that_imports_everything(tmp_path: Path) -> None:
    code = """
import sys
from flsimulation import load_experiment, run
run(load_experiment(None, ["train.engine=stacked"]), "imported")
print("torch._dynamo.eval_frame" in sys.modules)
"""
    assert said(code, tmp_path) == ["True"]
    command = [sys.executable, "-m", "flsimulation", "run", "--out", "command", "--quiet"]
    command += ["--set", "train.engine=stacked"]
    subprocess.run(command, cwd=tmp_path, check=True)
    imported, deferred = (RunRecord(tmp_path / name) for name in ("imported", "command"))
    assert deferred.manifest["engine"] == imported.manifest["engine"] == "stacked"
    assert deferred.manifest["weights-sha256"] == imported.manifest["weights-sha256"]


@pytest.mark.seconds
def test_the_command_defers_what_a_program_with_the_package_does_not(tmp_path: Path) -> None:
    code = """
import sys
from flsimulation.cli.main import program
sys.argv[1:] = ["run", "--set", "strategy.rounds=1", "--out", "run", "--quiet"]
try: program()
finally: print([n for n in ("sympy", "torch._inductor", "matplotlib.pyplot") if n in sys.modules])
"""
    try_it = code.replace("finally:", "except SystemExit:")
    assert said(try_it, tmp_path) == ["[]"]
    alone = """
import sys, flsimulation
flsimulation.run
print([n for n in ("torch", "flwr", "pytorch_lightning") if n in sys.modules])
import pytorch_lightning
print("torch._dynamo.eval_frame" in sys.modules)
"""
    assert said(alone, tmp_path) == ["[]", "True"]
