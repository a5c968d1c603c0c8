"""Damaged input for everything that reads what others wrote.

    python benchmarks/fuzz.py --cases 100000

A case is a valid experiment file, data set, checkpoint, run log or reply, a part of which was changed by
a generator that is seeded with the case's number. Whatever it has become, its reader must return, or
raise an error of this package; it must not take long, and must write nothing outside the case's folder.
A case that fails is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flsimulation.data.sources import load_dataset
from flsimulation.errors import ClientError, FLSimulationError
from flsimulation.experiment import load_experiment
from flsimulation.experiment.load import dump_toml
from flsimulation.experiment.spec import Data
from flsimulation.messages.metric_states import StateForm
from flsimulation.messages.state_dicts import record_of
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.messages.codec import batch_of, message_of, reply_to
from flsimulation.messages.packing import pack
from flsimulation.messages.received import read_reply
from flsimulation.node.outbox import unpacked
from flsimulation.report import details, headline, tables, tiles
from flsimulation.rundir import RunRecord
from flsimulation.rundir.checkpoint import safetensors_of, state_of, write_checkpoint
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.checks import Checks

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdam
from PIL import Image

_GUARD_SECONDS = 60.0  # far from what any case takes, also on a busy machine
_LARGEST = 65536  # bytes of a damaged part
_WORDS = (
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"[]", b"{}", b'""', b"0"),
    *(b"[" * 2000, b'{"a":' * 2000, b"../../x", b"/dev/zero", b"\x00", b"\xff\xfe", b"\x1b[2J", b"\r\n"),
    *(b'"', b"'", b",", b";", b"=", b"inf", b"2147483648", b"-9223372036854775809", "é€😀".encode()),
)  # fmt: skip
"""What parsers stumble over."""


class Kind(NamedTuple):
    """What is damaged, and who reads it."""

    parts: Callable[[], dict[str, bytes]]
    """Valid files, by their paths in the case's folder."""
    read: Callable[[Path], object]
    """Reads the case's folder; raises this package's errors only."""


class HangError(BaseException):
    """A case takes too long."""


class OutsideError(BaseException):
    """A case writes outside its folder."""


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content after one to four changes."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        content = draw.choice(_CHANGES)(content, draw)[:_LARGEST]
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    place, changed = draw.randrange(max(1, len(content))), bytearray(content or b"\0")
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _without(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start + draw.choice((1, 4, 64)) :]


def _twice(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    end = start + draw.choice((1, 16, 256))
    return content[:end] + content[start:]


def _noise(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + draw.randbytes(draw.choice((1, 8, 64))) + content[start:]


def _word(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + draw.choice(_WORDS) + content[start:]


def _token(content: bytes, draw: random.Random) -> bytes:
    """Another word in place of a value: what follows a colon, comma or equals sign."""
    starts = [i + 1 for i, byte in enumerate(content) if byte in b":,=[\n"]
    if not starts:
        return _word(content, draw)
    start = draw.choice(starts)
    end = next((i for i in range(start, len(content)) if content[i] in b",}]\n"), len(content))
    return content[:start] + draw.choice(_WORDS) + content[end:]


_CHANGES = (_flip, _cut, _without, _twice, _noise, _word, _token, _token)

EXPERIMENT = b"""name = "x"
seed = 1
[data]
dataset = "file:data.csv"
clients = 4
partition = "dirichlet"
alpha = 0.5
[model]
class = "mlp"
args = { hidden = [8, 8], learning_rate = 0.01 }
[train]
epochs = 1
batch-size = 8
[strategy]
name = "fedadam"
rounds = 2
fraction-train = 0.5
[runtime]
kind = "inprocess"
"""


def _experiment(folder: Path) -> None:
    dump_toml(load_experiment(folder / "experiment.toml"))


def _csv() -> dict[str, bytes]:
    rows = "".join(
        f'{i},{i / 7:.3f},"{"ab"[i % 2]}",{"yes" if i % 3 else "no"}\n' for i in range(24)
    )
    return {"data.csv": b"age,size,kind,label\n" + rows.encode()}


def _npz() -> dict[str, bytes]:
    file, draw = io.BytesIO(), np.random.default_rng(0)
    np.savez(file, x=draw.random((24, 3), np.float32), y=np.arange(24) % 3)
    return {"data.npz": file.getvalue()}


def _idx() -> dict[str, bytes]:
    found = {}
    for part, count in (("train", 24), ("t10k", 6)):
        images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 4, 4))
        labels = b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(i % 3 for i in range(count))
        found[f"{part}-images-idx3-ubyte"] = images + bytes(i % 256 for i in range(16 * count))
        found[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(labels, mtime=0)
    return found


def _images() -> dict[str, bytes]:
    found = {}
    for i, kind in enumerate(("png", "jpeg", "bmp", "gif", "tiff", "webp") * 2):
        file, pixels = io.BytesIO(), np.full((8, 8, 3), i * 20, np.uint8)
        Image.fromarray(pixels).save(file, kind)
        found[f"{'ab'[i // 6]}/{i}.{kind}"] = file.getvalue()
    return found


def _data(name: str, **keys: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        spec = {"dataset": f"file:{folder / name}", "clients": 2, **keys}
        return load_dataset(Data.model_validate(spec), 0)

    return read


def _checkpoint() -> dict[str, bytes]:
    strategy, model = FedAdam(), _MODEL
    strategy.current_arrays = {name: array.numpy() for name, array in model.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        write_checkpoint(folder, 1, safetensors_of(model), state_of(strategy))
        return {f"checkpoint/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def _read_checkpoint(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    (folder / "rounds.jsonl").write_text('{"round": 1}\n')
    RunRecord(folder).checkpoint()


def _run() -> dict[str, bytes]:
    scores = {"loss": 0.5, "accuracy": 0.75, "num-examples": 10}
    rounds = [
        {
            "round": r, "central": scores, "federated": scores, "train": {"loss": 1.0},
            "cohort": [0, 1], "failures": {"lost": 1}, "bytes": {"down": 10, "up": 20},
            "seconds": {"total": 2.0, "train": 1.0, "aggregate": 0.5, "evaluate": 0.5},
            "weights_sha256": "ab",
        }
        for r in (1, 2)
    ]  # fmt: skip
    clients = [
        {"round": r, "phase": phase, "partition": p, **scores}
        for r in (1, 2) for phase in ("train", "evaluate") for p in (0, 1)
    ]  # fmt: skip
    clients.append({"round": 2, "phase": "train", "partition": 1, "reason": "lost", "error": "x"})
    manifest = {
        "name": "x", "state": "completed", "started": "2026-01-01T00:00:00+00:00", "seconds": 4.0,
        "seed": 0, "rounds": 2, "error": None, "versions": {"python": "3.11"},
        "host": {"system": "x", "processor-count": 2, "memory-bytes": 1024},
        "peak-memory-bytes": 1, "weights-sha256": "ab", "engine": "direct",
        "data": {
            "dataset": "x", "digest": "d", "classes": ["a", "b"], "train-examples": 20,
            "test-examples": 5, "clients": 2, "histogram": {"0": [5, 5], "1": [1, 9]},
            "task": "classification", "notes": [],
        },
        "model": {"class": "mlp", "arguments": {"hidden": [8]}, "parameters": 10},
    }  # fmt: skip
    written = lambda lines: "".join(json.dumps(line) + "\n" for line in lines).encode()  # noqa: E731
    return {
        "manifest.json": json.dumps(manifest, indent=2).encode(),
        "rounds.jsonl": written(rounds),
        "clients.jsonl": written(clients),
        "experiment.toml": EXPERIMENT,
    }


def _read_run(folder: Path) -> None:
    run = RunRecord(folder)
    for about in (
        headline.headline, tiles.tiles, details.details, tables.rounds_table, tables.spread_table,
        tables.worst_table, tables.errors_table, tables.reasons_table,
    ):  # fmt: skip
        about(run)
    run.trained(1)
    run.result()
    run.started()


_MODEL = record_of({"w": torch.ones(3, 4), "b": torch.zeros(4), "n": torch.tensor(1)})
_BATCH = Batch(
    _MODEL, [Task(0, "evaluate", 1, ConfigRecord()), Task(0, "train", 2, ConfigRecord())]
)


def _reply() -> dict[str, bytes]:
    """The parts of a packed reply: its JSON, its model, and an array as Flower sends it."""
    with flower_identity():
        content = pack(reply_to(message_of(_BATCH, 7), _good()).content)
    packed = content["flsim-packed"]
    found = {name: value for name, value in packed.items() if name != "json"}
    (model,) = [v for n, v in found.items() if n.endswith("arrays-0")]
    return {
        "json": str(packed["json"]).encode(),
        "model": bytes(model),
        "array": _MODEL["w"].data,
    }


_FORMS = {"metric": {"tp": StateForm((3,), "f")}}
"""Of the states of the server's metric."""


def _good() -> Reply:
    left_out, states = {"auroc": "one class"}, ArrayRecord({"f1\nmetric\ntp": Array(np.ones(3))})
    scored = {"loss": 1.0, "num-examples": 5}
    fitted = {**scored, "epochs": 1, "steps": 3, "seconds": 0.5}
    return Reply(
        [
            Outcome(0, "evaluate", scored, None, None, states, left_out),
            Outcome(0, "train", fitted, None, _MODEL),
        ],
        engine="direct",
        why_not="x",
    )


def _read_reply(folder: Path) -> None:
    """Read a reply packed, and one with the array as Flower sends it; all that remains is sound."""
    parts = {path.name: path.read_bytes() for path in folder.iterdir()}
    with flower_identity():
        sent = message_of(_BATCH, 7)
        packed = pack(reply_to(sent, _good()).content)
        own = packed["flsim-packed"]
        own["json"] = parts["json"].decode("utf-8", "replace")
        (name,) = [name for name in own if name.endswith("arrays-0")]
        own[name] = parts["model"]
        _judge(sent, packed)
        array = Array("float32", (3, 4), "numpy.ndarray", parts["array"])
        model = ArrayRecord({**_MODEL, "w": array})
        good = [o if o.model is None else o._replace(model=model) for o in _good().outcomes]
        _judge(sent, reply_to(sent, Reply(good)).content)


def _judge(sent: Message, content: RecordDict) -> None:
    try:
        reply = unpacked(Message(content, reply_to=sent))
    except Exception:  # the outbox turns each into a rejection
        return
    read = read_reply(reply)
    if isinstance(read, ClientError):
        return
    batch = batch_of(sent)
    tasks = {(task.partition, task.phase) for task in batch.tasks}
    for outcome in Checks(lambda *_: 5, _FORMS).checked(read, batch, tasks).outcomes:
        if outcome.error is None:
            assert np.isfinite([*map(float, outcome.metrics.values())]).all()
            assert outcome.metrics["num-examples"] <= 5
        for array in (outcome.model or {}).values():
            assert np.isfinite(array.numpy()).all()
        for name, array in (outcome.states or {}).items():
            assert name.split("\n")[1] != "metric" or array.numpy().shape == (3,)
        assert str(outcome.error or "").isprintable()


KINDS = {
    "experiment": Kind(lambda: {"experiment.toml": EXPERIMENT}, _experiment),
    "csv": Kind(_csv, _data("data.csv")),
    "npz": Kind(_npz, _data("data.npz")),
    "idx": Kind(_idx, _data("")),
    "images": Kind(_images, _data("", **{"image-size": 8})),
    "checkpoint": Kind(_checkpoint, _read_checkpoint),
    "run": Kind(_run, _read_run),
    "reply": Kind(_reply, _read_reply),
}


class Watch:
    """Raises for a write outside the folder that is set."""

    _WRITES = frozenset(
        ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
    )

    def __init__(self) -> None:
        self.folder: Path | None = None
        sys.addaudithook(self._saw)

    def _saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not (event in self._WRITES or event == "open"):
            return
        path, mode, flags = (*arguments, None, None)[:3]
        if event == "open" and not (set(mode or "") & set("wax+") or (flags or 0) & 3):
            return
        names = [a for a in arguments[:2] if isinstance(a, str)] if event != "open" else [path]
        for name in names:
            if isinstance(name, str) and not Path(name).resolve().is_relative_to(self.folder):
                self.folder = None
                raise OutsideError(f"{event} {name}")


@contextlib.contextmanager
def guarded(folder: Path, watch: Watch) -> Iterator[None]:
    """Bound the time of a block, and where it writes."""

    def late(*_: Any) -> None:
        raise HangError(f"took more than {_GUARD_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, _GUARD_SECONDS)
    watch.folder = folder.resolve()
    try:
        yield
    finally:
        watch.folder = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Failure(NamedTuple):
    """A case that ended as it must not."""

    kind: str
    seed: int
    what: str
    place: str
    """The deepest line of this package."""


def run_case(
    kind: str, parts: dict[str, bytes], seed: int, folder: Path, watch: Watch
) -> Failure | None:
    """Run one case in a new folder; None if it ended as it must."""
    draw = random.Random(f"{kind} {seed}")
    victim = draw.choice(sorted(parts))
    for name, content in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(damaged(content, draw) if name == victim else content)
    try:
        with guarded(folder, watch), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind].read(folder)
    except FLSimulationError as error:
        if str(error).strip():
            return None
        return Failure(kind, seed, f"{type(error).__name__} without a text", "")
    except (Exception, HangError, OutsideError) as error:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "flsimulation" in f.filename
        ]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return Failure(kind, seed, f"{type(error).__name__}: {str(error)[:100]}", place)
    return None


def fuzz(
    cases: int,
    seed: int = 0,
    kinds: tuple[str, ...] = tuple(KINDS),
    tell: Callable[[str], None] = print,
) -> list[Failure]:
    """Run cases of each kind in turn; returns those that failed.

    Parameters
    ----------
    cases : int
        How many.
    seed : int
        Number of the first.
    kinds : tuple of str
        Names of `KINDS`.
    tell : callable
        Called with a line for each failure, and from time to time.
    """
    watch, failures, began = Watch(), list[Failure](), time.monotonic()
    valid = {kind: KINDS[kind].parts() for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        for number in range(seed, seed + cases):
            kind, folder = kinds[number % len(kinds)], Path(name) / "case"
            folder.mkdir()
            if (failure := run_case(kind, valid[kind], number, folder, watch)) is not None:
                failures.append(failure)
                tell(f"{failure.kind} {failure.seed} at {failure.place}: {failure.what}")
            shutil.rmtree(folder)
            if (number - seed + 1) % 5000 == 0:
                took = time.monotonic() - began
                tell(f"{number - seed + 1:,} cases, {took:.0f} s, {len(failures)} failed")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    given = parser.parse_args()
    kinds = tuple(given.kind or KINDS)
    began = time.monotonic()
    failures = fuzz(given.cases, given.seed, kinds)
    causes = Counter((f.kind, f.what.partition(":")[0], f.place) for f in failures)
    for cause, count in causes.most_common():
        first = next(f for f in failures if (f.kind, f.what.partition(":")[0], f.place) == cause)
        alone = "" if len(kinds) == len(KINDS) else "".join(f" --kind {kind}" for kind in kinds)
        print(
            f"{count} x {first.kind} at {first.place}: {first.what}\n"
            f"    python benchmarks/fuzz.py --cases 1 --seed {first.seed}{alone}"
        )
    took = f"{time.monotonic() - began:.0f} s"
    last = given.seed + given.cases - 1
    print(f"cases {given.seed} to {last} of {', '.join(kinds)}: {took}, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(main())
