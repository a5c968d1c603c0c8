"""Sites on a network: each client reads only its own data, and the run equals that of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from tests.conftest import PATIENCE, Recorder, wait_for
from tests.test_assignment import Network as FakeNetwork
from tests.test_assignment import Ticking
from tests.test_network import Network, flsim, started

from flsimulation import load_experiment
from flsimulation.client.app import make_client_app
from flsimulation.client.workspace import Workspace
from flsimulation.data.sites.agree import Agreement, agree
from flsimulation.data.sites.site_facts import SiteFacts
from flsimulation.errors import ClientError, DataError, InputError, RunError
from flsimulation.events import (
    ClientMoved,
    ClientReplied,
    ClientsConnected,
    Noticed,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.experiment import Experiment, flatten
from flsimulation.messages.codec import failed_reply
from flsimulation.metrics.server import PrometheusMetrics
from flsimulation.node import grid as assigned_grid
from flsimulation.node.own_site import OwnSite, become_site
from flsimulation.node.sited import agreed_sites, keep_agreement, kept_agreement
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.runtimes.network.names import SITE, SITE_DATA
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.app import make_server_app

HOSPITALS = Path(__file__).parent.parent / "experiments" / "sites"
SITES = ("berlin", "lodz", "porto")


class Site(OwnSite):
    """A site whose workspace is kept."""

    def workspace(self, context: Context, agreement: str) -> Workspace:
        key = (self.name, agreement)
        if key not in KEPT:
            experiment = EXPERIMENTS[-1]
            KEPT[key] = Workspace.load(
                experiment, clients=1, processes=1, data=self.data(experiment, agreement)
            )
        return KEPT[key]


KEPT: dict[tuple[str, str], Workspace] = {}
EXPERIMENTS: list[Experiment] = []


class Sites(FakeNetwork):
    """A network whose nodes are sites, each with a file of its own; "" is a client without a site."""

    def __init__(self, spec: Experiment, folder: Path, *names: str) -> None:
        EXPERIMENTS.append(spec)
        self.folder = folder
        super().__init__(make_client_app(), names, flatten(spec))

    def _answer(self, message: Message, node: int) -> Message:
        name = self.names[node]
        site = Site(name, self.folder / f"{name}.csv") if name != "guest" else None
        context = Context(1, node, {"name": name}, RecordDict(), self.config)
        try:
            return make_client_app(site=site)(message, context)
        except Exception as error:
            return failed_reply(message, ClientError("error", str(error)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(assigned_grid, "_LOOK_SECONDS", 0.0)
    KEPT.clear()
    with flower_identity():
        yield


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """The hospitals' files, where no experiment looks for them."""
    return Path(shutil.copytree(HOSPITALS / "hospitals", tmp_path / "apart"))


def hospitals(*overrides: str) -> Experiment:
    """The hospitals, of which the server knows the names only."""
    sets = ("strategy.rounds=2", "runtime.client-wait=5", "train.device=cpu", "train.engine=direct")
    return load_experiment(HOSPITALS / "hospitals.toml", [*sets, *overrides])


def elsewhere(spec: Experiment) -> Experiment:
    """The same experiment on a machine that has none of the files."""
    data = spec.data.model_copy(update={"dataset": "sites:/nowhere"})
    return spec.model_copy(update={"data": data})


OWN = "train.sites={berlin = {epochs = 3, learning-rate = 0.05}, porto = {batch-size = 8}}"


@pytest.mark.seconds
@pytest.mark.parametrize("own", [(), (OWN,)], ids=["alike", "own"])
def test_a_run_of_sites_that_are_apart_equals_that_of_one_process(
    apart: Path, own: tuple[str, ...]
) -> None:
    here, there = Recorder(), Recorder()
    spec = hospitals(*own)
    run_in_process(spec, [here], Workspace.load(spec, clients=1, processes=1))
    remote = elsewhere(spec)
    network = Sites(remote, apart, "porto", "berlin", "lodz")
    early: list[Any] = []
    sited = agreed_sites(network, remote, early.append, clock=Ticking())
    assert any(isinstance(event, ClientsConnected) for event in early)
    space = Workspace.load(remote, clients=0, data=sited.data)
    assert space.data.dataset.x_train.abs().sum() == 0  # type: ignore[union-attr]
    context = Context(1, 1, {}, RecordDict(), dict(flatten(remote)))
    make_server_app([there], space, connect=lambda _, __, emit, ___: sited.continued(emit))(
        network, context
    )
    first, second = (record.of(RunStarted)[0] for record in (here, there))
    for name in ("data_digest", "histogram", "train_examples", "test_examples", "parameters"):
        assert getattr(first, name) == getattr(second, name), name
    for one, other in zip(here.of(RoundFinished), there.of(RoundFinished), strict=True):
        assert one.weights_sha256 == other.weights_sha256
        assert (one.federated, one.cohort, other.central) == (other.federated, other.cohort, None)
        assert other.failures == {}


@pytest.mark.seconds
def test_a_site_that_is_restarted_during_a_run_needs_nothing_but_its_next_task(
    apart: Path,
) -> None:
    spec, there = hospitals("strategy.rounds=3"), Recorder()
    here = Recorder()
    run_in_process(spec, [here], Workspace.load(spec, clients=1, processes=1))
    remote = elsewhere(spec)
    network = Sites(remote, apart, *SITES)
    sited = agreed_sites(network, remote, lambda _: None, clock=Ticking())

    def restart(event: Any) -> None:
        there(event)
        if isinstance(event, RoundFinished) and event.round == 1:
            KEPT.clear()
            del network.names[next(n for n, name in network.names.items() if name == "lodz")]
            network.join("lodz")

    space = Workspace.load(remote, clients=0, data=sited.data)
    context = Context(1, 1, {}, RecordDict(), dict(flatten(remote)))
    app = make_server_app([restart], space, connect=lambda _, __, emit, ___: sited.continued(emit))
    app(network, context)
    rounds = there.of(RoundFinished)
    assert rounds[-1].cohort == (0, 1, 2)
    assert {name for name, _ in KEPT} == set(SITES)  # each was read again
    assert [r.weights_sha256 for r in rounds] == [r.weights_sha256 for r in here.of(RoundFinished)]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda text: text.replace('"yes"', '"ja"'), DataError, "site lodz: column 'readmitted' has 'ja' in"),
        (lambda text: text.replace('"bmi"', '"weight"'), DataError, "site lodz has no column 'bmi' (but has 'weight'), which berlin has"),
        (lambda _: "", DataError, "site lodz: lodz.csv cannot be read as CSV"),
    ],
)  # fmt: skip
def test_a_site_is_refused_before_the_run_by_name(
    apart: Path, change: Any, error: type[Exception], said: str
) -> None:
    path = apart / "lodz.csv"
    path.write_text(change(path.read_text()))
    spec = elsewhere(hospitals())
    with pytest.raises(error) as caught:
        agreed_sites(Sites(spec, apart, *SITES), spec, lambda _: None, clock=Ticking())
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("guest", "site lodz: it has no site; start it with --site NAME --data PATH"),
        ("madrid", "site lodz: its site 'madrid' is none of data.sites (berlin, lodz, porto); add it there"),
    ],
)  # fmt: skip
def test_a_client_that_is_none_of_the_sites_takes_no_part(
    apart: Path, other: str, said: str
) -> None:
    spec = elsewhere(hospitals())
    with pytest.raises(DataError) as caught:
        agreed_sites(
            Sites(spec, apart, "berlin", other, "porto"), spec, lambda _: None, clock=Ticking()
        )
    assert str(caught.value) == said


def test_two_clients_of_one_site_are_refused(apart: Path) -> None:
    spec = elsewhere(hospitals())
    network = Sites(spec, apart, *SITES)
    network.names[network.join("x")] = "lodz"
    del network.names[next(node for node, name in network.names.items() if name == "porto")]
    with pytest.raises(RunError, match="2 of 3 clients connected"):
        agreed_sites(network, spec, lambda _: None, clock=Ticking())


def test_a_site_is_the_client_with_the_key_of_its_name(apart: Path) -> None:
    spec = elsewhere(hospitals())
    network = Sites(spec, apart, *SITES)
    keys = dict(network.names)
    sited = agreed_sites(network, spec, lambda _: None, names=lambda: keys, clock=Ticking())
    assert {keys[node]: p for node, p in sited.grid.partitions.items()} == {
        "berlin": 0,
        "lodz": 1,
        "porto": 2,
    }
    other = next(node for node, name in keys.items() if name == "lodz")
    with pytest.raises(
        RunError, match=r"2 of 3 clients.*; client madrid was started as site lodz, which only the "
    ):
        agreed_sites(
            network, spec, lambda _: None, names=lambda: {**keys, other: "madrid"}, clock=Ticking()
        )


def test_facts_that_are_none_are_refused(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = elsewhere(hospitals())
    wrong = SiteFacts.model_construct(site="lodz", examples=5)
    monkeypatch.setattr(Site, "facts", lambda *_: wrong)
    with pytest.raises(DataError, match=r"site berlin reports facts that cannot be read \(task, "):
        agreed_sites(Sites(spec, apart, *SITES), spec, lambda _: None, clock=Ticking())
    with pytest.raises(ValueError, match="finite"):
        SiteFacts.model_validate_json('{"site": "a", "examples": 3, "task": "regression", "target": [], "targets": [{"mean": NaN}]}')  # fmt: skip
    for large in ('{"mean": 1e200}', '{"squares": 1e300}', '{"count": 2147483648}'):
        with pytest.raises(ValueError, match="should be less than"):
            SiteFacts.model_validate_json(f'{{"site": "a", "examples": 3, "task": "regression", "target": [], "targets": [{large}]}}')  # fmt: skip
    with pytest.raises(ValueError, match="examples"):
        SiteFacts.model_validate_json('{"site": "a", "examples": 2147483648, "task": "regression", "target": []}')  # fmt: skip


class Joined(Recorder):
    """Runs sites that may join late; ``after`` says what happens on the network after each round."""

    def __init__(
        self, network: Sites, after: dict[int, Callable[[], Any]], before: Agreement | None = None
    ) -> None:
        super().__init__()
        self.after = after
        spec = EXPERIMENTS[-1]
        early: list[Any] = []
        sited = agreed_sites(network, spec, early.append, clock=Ticking(), before=before)
        self.early = [event.text for event in early if isinstance(event, Noticed)]
        self.agreement = sited.data.dataset.agreed
        space = Workspace.load(spec, clients=0, data=sited.data)
        app = make_server_app([self], space, connect=lambda _, __, emit, ___: sited.continued(emit))
        app(network, Context(1, 1, {}, RecordDict(), dict(flatten(spec))))

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if isinstance(event, RoundFinished) and event.round in self.after:
            self.after[event.round]()

    @property
    def moves(self) -> list[tuple[str, str]]:
        return [(event.name, event.move) for event in self.of(ClientMoved)]

    @property
    def cohorts(self) -> list[tuple[int, ...]]:
        return [event.cohort for event in self.of(RoundFinished)]


JOIN = ("round.late=join", "runtime.return-wait=0", "strategy.rounds=6")


@pytest.mark.seconds
def test_a_site_joins_late_under_what_the_others_agreed_leaves_and_returns(apart: Path) -> None:
    spec = elsewhere(hospitals(*JOIN))
    network = Sites(spec, apart, "berlin", "porto")

    def leave() -> None:
        del network.names[next(n for n, name in network.names.items() if name == "lodz")]

    ran = Joined(
        network, {1: lambda: network.join("lodz"), 3: leave, 4: lambda: network.join("lodz")}
    )
    facts = [Site(n, apart / f"{n}.csv").facts(spec) for n in ("berlin", "porto")]
    two = agree(facts, spec.data, ["berlin", "porto"])
    assert ran.agreement == two
    assert {text for _, text in KEPT} == {two.for_clients()}  # lodz encodes its rows by the same
    assert [size.examples for size in two.sizes] == [160, 0, 90]
    assert ran.moves == [("lodz", "joined"), ("lodz", "left"), ("lodz", "returned")]
    assert (ran.cohorts[0], ran.cohorts[-1]) == ((0, 2), (0, 1, 2))
    assert network.types.count("evaluate") >= 3
    assert not any(event.failures for event in ran.of(RoundFinished))
    own = {e.metrics["num-examples"] for e in ran.of(ClientReplied) if (e.partition, e.phase) == (1, "train")}  # fmt: skip
    assert own == {90}  # of 120
    assert ran.of(RunFinished)[0].state == "completed"


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"yes"', '"ja"'), "site lodz has the class 'ja', which is none of those that the sites agreed on before the first round (no, yes); correct it there, or list it in data.classes and start a new run"),
        (lambda text: text.replace('"bmi"', '"weight"'), "site lodz has no column 'bmi' (but has 'weight'), which berlin has; add or rename it there, or set data.input-columns = "),
        (lambda text: text.replace('"surgery"', '"hall"'), "site lodz has 'hall' in column 'ward', which is none of those that the sites agreed on before the first round (cardiology, emergency, surgery); correct it there, or list it in data.categories"),
        (lambda text: "\n".join(text.splitlines()[:4]), "site lodz has 3 examples, but data.min-examples is 10"),
        (lambda _: "", "site lodz: lodz.csv cannot be read as CSV"),
    ],
    ids=["class", "column", "category", "rows", "damaged"],
)  # fmt: skip
def test_a_late_site_that_does_not_fit_is_refused_and_the_run_continues(
    apart: Path, change: Callable[[str], str], said: str
) -> None:
    path = apart / "lodz.csv"
    original = path.read_text()
    path.write_text(change(original))
    spec = elsewhere(hospitals(*JOIN, "data.classes=[]", "data.categories={}"))
    network = Sites(spec, apart, "berlin", "porto")
    metrics = PrometheusMetrics(None)

    refused_node: list[int] = []

    def leave() -> None:
        path.write_text(original)
        node = next(n for n, name in network.names.items() if name == "lodz")
        del network.names[node]
        refused_node.append(node)

    def come_back() -> None:
        network.names[refused_node[0]] = "lodz"  # a key keeps its node

    ran = Joined(network, {1: lambda: network.join("lodz"), 3: leave, 4: come_back})
    for event in ran.events:
        metrics(event)
    assert ran.moves == [("lodz", "refused"), ("lodz", "joined")]
    refused = ran.of(ClientMoved)[0]
    assert refused.why.startswith(said)
    assert (refused.partition, ran.cohorts[2], ran.cohorts[-1]) == (1, (0, 2), (0, 1, 2))
    count = metrics.registry.get_sample_value("fl_client_moves_total", {"move": "refused"})
    assert count == 1


class LosesOne(Sites):
    """A network on which lodz disconnects when it is asked for its facts."""

    is_lost = False

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        asked = {
            self.names[m.metadata.dst_node_id]: m.metadata.dst_node_id
            for m in messages
            if m.metadata.message_type != "query"
        }
        sent = super().push_messages(messages)
        if "lodz" in asked and not self.is_lost:
            self.is_lost = True
            del self.names[asked["lodz"]]
        return sent


@pytest.mark.seconds
def test_a_site_that_is_lost_while_it_is_asked_for_its_facts_is_left_out_and_may_come_back(
    apart: Path,
) -> None:
    spec = elsewhere(hospitals(*JOIN))
    network = LosesOne(spec, apart, *SITES)
    ran = Joined(network, {2: lambda: network.join("lodz")})
    assert [size.examples for size in ran.agreement.sizes] == [160, 0, 90]
    assert (ran.cohorts[0], ran.cohorts[-1]) == ((0, 2), (0, 1, 2))
    assert ran.moves == [("lodz", "returned")]
    assert ran.early[-1] == (
        "site lodz (it disconnected before it replied, and did not reconnect within 0 s) is left out "
        "until it reconnects: it reported no facts of its data"
    )


@pytest.mark.seconds
def test_a_run_that_needs_the_lost_site_ends_with_its_name(apart: Path) -> None:
    spec = elsewhere(hospitals(*JOIN, "round.min-results=3"))
    with pytest.raises(
        RunError, match=r"^2 of 3 sites reported .* 3 needed; missing: site lodz \("
    ):
        agreed_sites(LosesOne(spec, apart, *SITES), spec, lambda _: None, clock=Ticking())


@pytest.mark.seconds
def test_a_site_that_does_not_connect_is_named(apart: Path) -> None:
    spec = elsewhere(hospitals("runtime.client-wait=7"))
    with pytest.raises(
        RunError, match=r"^2 of 3 clients connected within 7 s; start .*client-wait; missing: lodz$"
    ):
        agreed_sites(Sites(spec, apart, "berlin", "porto"), spec, lambda _: None, clock=Ticking())


@pytest.mark.seconds
def test_a_late_client_that_is_no_site_is_refused_and_one_that_stays_away_is_named(
    apart: Path,
) -> None:
    spec = elsewhere(hospitals(*JOIN[:2]))
    network = Sites(spec, apart, "berlin", "porto")
    ran = Joined(network, {1: lambda: network.join("madrid")})
    (refused,) = ran.of(ClientMoved)
    assert (refused.move, refused.partition) == ("refused", None)
    assert refused.why.startswith(
        "client madrid is none of data.sites (berlin, lodz, porto); start"
    )
    assert ran.of(Noticed)[-1].text == (
        "client 1 (lodz) never connected: the model is made without its data"
    )


@pytest.mark.seconds
def test_a_resumed_run_keeps_what_its_sites_agreed_on(apart: Path, tmp_path: Path) -> None:
    spec = elsewhere(hospitals(*JOIN[:2]))
    first = agreed_sites(
        Sites(spec, apart, "berlin", "porto"), spec, lambda _: None, clock=Ticking()
    )
    keep_agreement(tmp_path, first)
    before = kept_agreement(tmp_path)
    ran = Joined(Sites(spec, apart, "berlin", "lodz"), {}, before)
    assert ran.agreement is not None
    assert before is not None
    assert ran.agreement.for_clients() == before.for_clients()
    assert [size.examples for size in ran.agreement.sizes] == [160, 120, 90]
    assert ran.cohorts == [(0, 1), (0, 1)]
    (tmp_path / "agreement.json").write_text("{")
    with pytest.raises(
        InputError, match=r"agreement\.json: cannot be read .*; restore it, or start a"
    ):
        kept_agreement(tmp_path)


def test_the_command_of_a_client_checks_its_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (SITE, SITE_DATA):
        monkeypatch.delenv(name, raising=False)
    become_site(None, None)
    assert OwnSite.of_environment() is None
    for site, data, said in (
        ("berlin", None, "--site without --data PATH"),
        (None, tmp_path, "--data without --site NAME"),
        ("ber lin", tmp_path, "--site ber lin: use letters, digits"),
        ("berlin", tmp_path / "no", f"--data {tmp_path}/no: there is no such file or folder"),
    ):
        with pytest.raises(InputError) as caught:
            become_site(site, data)
        assert str(caught.value).startswith(said)
    monkeypatch.setenv(SITE, "")  # so that it is removed afterwards
    monkeypatch.setenv(SITE_DATA, "")
    become_site("berlin", tmp_path)
    assert OwnSite.of_environment() == OwnSite("berlin", tmp_path.resolve())

    def full(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match="site berlin: temporary files cannot be written here"):
        become_site("berlin", tmp_path)


def join(network: Network, site: str, data: Path) -> None:
    network.join(site, f"--site={site}", f"--data={data}", f"--allow-models-in={HOSPITALS}")


def leave_and_join(network: Network, file: str, apart: Path, folder: Path) -> None:
    """A run that begins without lodz, which joins, leaves and returns."""
    network.clients["lodz"].end()
    sets = ("--set=strategy.rounds=1000", "--set=train.device=cpu", "--set=round.late=join")
    sets += ("--set=runtime.client-wait=30", "--set=runtime.return-wait=2")
    where = ("--runtime=network", f"--superlink={network.address}", "--out=runs/2-late")
    command = [sys.executable, "-m", "flsimulation", "run", file, *where, *sets, "--quiet"]
    run = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)

    def trains(*cohort: int) -> None:
        def now() -> bool:
            assert run.poll() is None
            path = folder / "runs" / "2-late" / "rounds.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            return bool(lines) and json.loads(lines[-1])["cohort"] == [*cohort]

        wait_for(f"a round of {cohort}", now)

    trains(0, 2)
    join(network, "lodz", apart / "lodz.csv")
    trains(0, 1, 2)
    network.clients["lodz"].end()
    trains(0, 2)
    join(network, "lodz", apart / "lodz.csv")
    trains(0, 1, 2)
    stopped = flsim("stop", f"--superlink={network.address}", cwd=folder)
    assert stopped.returncode == 0, stopped.stderr
    run.communicate(timeout=PATIENCE)
    moves = {k: v for k, v in network.superlink.samples().items() if "moves_total" in k}
    assert {key.rpartition("=")[2]: value for key, value in moves.items()} == {
        "joined": 1,
        "left": 1,
        "returned": 1,
        "refused": 0,
    }


@pytest.mark.slow
def test_sites_of_real_processes_agree_with_one_process_and_are_refused_by_name(
    apart: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "net"
    (folder / "runs").mkdir(parents=True)
    with started(folder) as network:
        for site in SITES:
            join(network, site, apart / f"{site}.csv")
        sets = ("--set=strategy.rounds=3", "--set=train.device=cpu")
        file = str(HOSPITALS / "hospitals.toml")
        own = f"--set={OWN}"  # a site's own values reach it over the network, too
        verified = flsim("verify", file, f"--superlink={network.address}", *sets, own, cwd=folder)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "agree" in verified.stdout
        run = flsim("run", file, "--runtime=network", f"--superlink={network.address}", *sets, "--json", cwd=folder)  # fmt: skip
        assert run.returncode == 0, run.stderr
        result = json.loads(run.stdout)
        assert result["state"] == "completed"
        lines = (folder / result["run_dir"] / "rounds.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["central"] is None
        leave_and_join(network, file, apart, folder)
        path = apart / "lodz.csv"
        path.write_text(path.read_text().replace('"yes"', '"ja"'))
        refused = flsim("run", file, "--runtime=network", f"--superlink={network.address}", *sets, cwd=folder)  # fmt: skip
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert "site lodz: column 'readmitted' has 'ja'" in refused.stderr
        assert len(list((folder / "runs").glob("2*"))) == 3  # of verify and of the runs that began


GATED = '''

class Gated(Readmission):
    """Waits in training while a file is there."""

    def training_step(self, batch):
        while Path(__file__).with_name("gate").exists():
            time.sleep(0.05)
        return super().training_step(batch)
'''


@pytest.mark.slow
def test_a_run_of_sites_that_was_stopped_is_resumed_to_the_weights_of_one_that_was_not(
    apart: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "net"
    (folder / "runs").mkdir(parents=True)
    model = (HOSPITALS / "readmission.py").read_text()
    imports = "from __future__ import annotations\n"
    model = model.replace(imports, f"{imports}\nimport time\nfrom pathlib import Path\n", 1)
    (folder / "gated.py").write_text(model + GATED)
    text = (HOSPITALS / "hospitals.toml").read_text()
    file = folder / "hospitals.toml"
    file.write_text(text.replace("readmission.py:Readmission", "gated.py:Gated"))
    sets = ["strategy.rounds=20", "train.device=cpu", "train.engine=direct"]
    whole = load_experiment(file, [*sets, f"data.dataset=sites:{apart}"])
    never, end = Recorder(), [f"--set={item}" for item in sets]
    run_in_process(whole, [never], Workspace.load(whole, clients=1, processes=1))
    with started(folder) as network:
        for site in SITES:
            network.join(site, f"--site={site}", f"--data={apart / site}.csv")
        where = ("--runtime=network", f"--superlink={network.address}")
        command = [sys.executable, "-m", "flsimulation", "run", str(file), *where, *end]
        out = folder / "runs" / "1"
        gate, rounds = folder / "gate", out / "rounds.jsonl"
        run = subprocess.Popen(
            [*command, f"--out={out.relative_to(folder)}", "--quiet"],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )

        def has_a_round() -> bool:
            assert run.poll() is None, run.stderr and run.stderr.read()
            return rounds.is_file() and bool(rounds.read_text())

        wait_for("a round", has_a_round)
        gate.touch()
        stopped = flsim("stop", f"--superlink={network.address}", cwd=folder)
        assert stopped.returncode == 0, stopped.stderr
        run.communicate()
        gate.unlink()
        done = len(rounds.read_text().splitlines())
        assert 1 <= done < 20
        network.clients["lodz"].end()  # its workspace is made anew, from what the run agreed on
        network.join("lodz", "--site=lodz", f"--data={apart / 'lodz'}.csv")
        resumed = flsim("run", "--resume=runs/1", *where, "--json", cwd=folder)
        assert resumed.returncode == 0, resumed.stderr
        result = json.loads(resumed.stdout)
        assert (result["state"], result["rounds"]) == ("completed", 20)
    lines = (folder / result["run_dir"] / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["weights_sha256"] for line in lines] == [
        event.weights_sha256 for event in never.of(RoundFinished)
    ]
