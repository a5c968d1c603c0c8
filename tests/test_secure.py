"""Secure aggregation as a whole: the mean is that of the clients' models, and only it is seen."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from scipy import stats

from flsimulation import resume, run
from flsimulation.client.answers import answers
from flsimulation.client.secure import SecureClient
from flsimulation.client.vault import KeptVault, SeededVault
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, InputError, RoundError
from flsimulation.events import ClientReplied, Noticed, PhaseStarted, RoundFinished
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.messages.state_dicts import record_of
from flsimulation.messages.vectors import MASKED, change_of
from flsimulation.messages.weights import mean_of
from flsimulation.privacy.field import Field
from flsimulation.privacy.graph import is_enough
from flsimulation.report import write_report
from flsimulation.rundir import RunRecord
from flsimulation.runtimes.inprocess import InProcessGrid, run_in_process
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.exchange import Exchange
from flsimulation.server.replies import Replies
from flsimulation.server.secure import SecureExchange

CLIENTS = 15
LOST = ClientError("lost", "it is gone")


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower_identity():
        yield


class Federation:
    """Clients of one process of which some fail in a phase, and what is sent between it and the server."""

    def __init__(self, make_experiment: Any, recorder: Any, **tables: Any) -> None:
        privacy = {"secure-aggregation": True, "assumed-dropped": 0.2, **tables.pop("privacy", {})}
        data = {"clients": CLIENTS, "partition": "linear", "min-examples": 2}
        tables = {"data": data, "privacy": privacy, "train": {"engine": "direct"}, **tables}
        self.spec = make_experiment(**tables)
        self.space = Workspace.load(self.spec, processes=1)
        self.model = record_of(self.space.initial_state())
        self.drops: dict[str, set[int]] = {}
        self.change: Callable[[Outcome], Outcome] = lambda outcome: outcome
        self.tasks: list[Task] = []
        self.outcomes: list[Outcome] = []
        self.grid = InProcessGrid(self._answer, self.spec.data.clients)
        self.exchange = Exchange(self.grid, 0.0, recorder)
        self.secure = SecureExchange(self.exchange, self.spec, recorder)

    def _answer(self, batch: Batch) -> Iterator[Reply]:
        self.tasks += batch.tasks
        for reply in answers(batch, self.space):
            found = [self.change(self._dropped(outcome)) for outcome in reply.outcomes]
            self.outcomes += found
            yield replace(reply, outcomes=found)

    def _dropped(self, outcome: Outcome) -> Outcome:
        if outcome.partition not in self.drops.get(outcome.phase, ()):
            return outcome
        return Outcome(outcome.partition, outcome.phase, {}, LOST)

    def train(self, exchange: Any, round: int = 1, **options: Any) -> Replies:
        config = ConfigRecord({"server-round": round})
        tasks = [Task(p, "train", round, config) for p in range(self.spec.data.clients)]
        replies: Replies = exchange.post(round, "train", [Batch(self.model, tasks, **options)])
        for _ in exchange.outcomes():
            pass
        return replies

    def plain_mean(self, alive: set[int]) -> ArrayRecord:
        """The mean that FedAvg computes of the clients' own models."""
        replies = self.train(self.exchange)
        weights = [replies.metrics[p]["num-examples"] for p in sorted(alive)]
        return mean_of([replies.models[p] for p in sorted(alive)], weights)


@pytest.fixture
def federation(make_experiment: Any, recorder: Any) -> Federation:
    return Federation(make_experiment, recorder)


def bound(federation: Federation, alive: set[int]) -> float:
    """How far the mean may be from the plain one: each client's rounding, and that of float32."""
    sizes = [federation.space.data.train_size(p) for p in range(CLIENTS)]
    field = Field(federation.spec.privacy.largest_change, CLIENTS)
    worst = len(alive) * field.step * max(sizes) / sum(sizes[p] for p in alive)
    return worst + 2**-22  # of numbers below 4


@pytest.mark.parametrize(
    "drops",
    [
        {},
        {"keys": {3}},
        {"shares": {0}},
        {"train": {5, 14}},
        {"unmask": {1, 2, 3, 4}},
        {"keys": {7}, "shares": {8}, "train": {9}, "unmask": {10, 11}},
    ],
)
def test_the_mean_is_that_of_the_clients_that_did_not_drop_out(
    federation: Federation, drops: dict[str, set[int]], recorder: Any
) -> None:
    federation.drops = drops
    replies = federation.train(federation.secure, average=True)
    federation.drops = {}
    gone = set().union(*(drops.get(phase, set()) for phase in ("keys", "shares", "train")))
    alive = set(range(CLIENTS)) - gone
    ((first, mean),) = replies.means.items()
    assert first == min(alive)
    assert replies.models == {}
    assert mean.weight == sum(federation.space.data.train_size(p) for p in alive)
    apart = change_of(mean.model, federation.plain_mean(alive))
    assert np.abs(apart).max() < bound(federation, alive)
    assert np.abs(change_of(mean.model, federation.model)).max() > 1e-3  # they trained
    assert replies.cohort == tuple(range(CLIENTS))
    assert replies.failures.keys() == gone
    assert replies.metrics.keys() == alive
    assert replies.is_complete
    counts = {phase: len(drops.get(phase, ())) for phase in ("keys", "shares", "train", "unmask")}
    took_part = CLIENTS - counts["keys"]
    sizes = {"neighbours": took_part - 1, "threshold": (took_part - 1) // 2 + 1}
    assert replies.secure == {**sizes, **counts}
    told = [e for e in recorder.of(ClientReplied) if e.reason is not None]
    assert {(e.phase, e.partition, e.error) for e in told} == {
        ("train", p, "it is gone") for p in gone
    }
    assert {e.phase for e in recorder.of(PhaseStarted)} == {"train"}


@pytest.mark.parametrize(
    ("phase", "count", "why"),
    [
        ("keys", 14, "1 clients are too few where 0.2 of them may drop out and 0.1 may be corrupt"),
        ("shares", 4, "11 of 15 clients sealed shares of their keys, 12 needed"),
        ("train", 4, "11 of 15 clients sent a masked update, 12 needed"),
        ("unmask", 8, "6 shares of a secret of client 0 arrived, 8 needed"),
    ],
)
def test_below_the_threshold_the_round_fails_with_a_sentence_and_nothing_is_unmasked(
    federation: Federation, phase: str, count: int, why: str
) -> None:
    federation.drops = {phase: set(range(CLIENTS - count, CLIENTS))}
    with pytest.raises(RoundError) as failed:
        federation.train(federation.secure)
    text = str(failed.value)
    assert text.startswith(f"round 1: secure aggregation: {why}")
    assert text.endswith(f"{count} clients: it is gone")
    if phase in ("shares", "train"):
        assert "(privacy.assumed-dropped 0.2); no mask was removed; " in text
        assert "unmask" not in {task.phase for task in federation.tasks}
    federation.drops = {}  # the next training is not affected
    assert len(federation.train(federation.secure, 2).means) == 1


def phases(federation: Federation) -> list[str]:
    """Phases of a training of round 2, whose mean is right."""
    federation.drops, federation.change = {}, lambda outcome: outcome
    federation.tasks.clear()
    replies = federation.train(federation.secure, 2)
    found = [*dict.fromkeys(task.phase for task in federation.tasks)]
    assert {t.own["made"] for t in federation.tasks if t.own is not None} == {2}
    assert replies.metrics.keys() == set(range(CLIENTS))
    assert replies.secure is not None
    assert [replies.secure[phase] for phase in ("keys", "shares", "train", "unmask")] == [0] * 4
    change = change_of(replies.means[0].model, federation.model)
    federation.tasks.clear()
    plain = federation.train(federation.exchange, 2)
    weights = [plain.metrics[p]["num-examples"] for p in range(CLIENTS)]
    mean = mean_of([plain.models[p] for p in range(CLIENTS)], weights)
    apart = change_of(mean, federation.model) - change
    assert np.abs(apart).max() < bound(federation, set(range(CLIENTS)))
    assert np.abs(change).max() > 1e-3
    return found


def test_keys_and_shares_come_with_the_last_round_so_that_a_later_one_has_two_phases(
    federation: Federation,
) -> None:
    federation.train(federation.secure)
    first = list(dict.fromkeys((t.phase, t.round) for t in federation.tasks))
    assert first == [("keys", 1), ("shares", 1), ("train", 1), ("unmask", 1)]
    assert phases(federation) == ["train", "unmask"]


@pytest.mark.parametrize(
    ("phase", "needed"),
    [
        ("train", ["keys", "shares", "train", "unmask"]),  # it sent no keys
        ("unmask", ["keys", "shares", "train", "unmask"]),  # it sealed no shares
    ],
)
def test_after_a_client_dropped_out_the_next_round_has_all_phases(
    federation: Federation, phase: str, needed: list[str]
) -> None:
    federation.drops = {phase: {3}}
    federation.train(federation.secure)
    assert phases(federation) == needed


def test_keys_that_cannot_be_read_are_requested_again(federation: Federation) -> None:
    federation.change = lambda o: (
        o._replace(text='{"keys": "AAAA"}') if (o.phase, o.partition) == ("train", 2) else o
    )
    replies = federation.train(federation.secure)
    assert replies.metrics.keys() == set(range(CLIENTS))
    assert phases(federation) == ["keys", "shares", "train", "unmask"]


def test_shares_for_the_next_round_that_are_missing_are_requested_again(
    federation: Federation,
) -> None:
    def change(outcome: Outcome) -> Outcome:
        if (outcome.phase, outcome.partition) != ("unmask", 2):
            return outcome
        content = json.loads(outcome.text)
        assert content.pop("next-1")
        return outcome._replace(text=json.dumps(content))

    federation.change = change
    assert federation.train(federation.secure).means
    assert phases(federation) == ["keys", "shares", "train", "unmask"]


def test_where_cohorts_are_samples_a_round_begins_with_shares(
    make_experiment: Any, recorder: Any
) -> None:
    federation = Federation(make_experiment, recorder, strategy={"fraction-train": 0.999})
    federation.train(federation.secure)
    assert "next-made" not in federation.tasks[-1].own
    assert phases(federation) == ["shares", "train", "unmask"]


def test_a_masked_update_looks_like_chance_and_not_like_the_update(make_experiment: Any) -> None:
    federation = Federation(
        make_experiment, lambda _: None, model={"class": "mlp", "args": {"hidden": [256, 128]}}
    )
    federation.train(federation.secure)
    plain = federation.train(federation.exchange)
    for partition in (0, 7):
        (masked,) = (
            o.model[MASKED].numpy()
            for o in federation.outcomes
            if o.partition == partition and o.model is not None and MASKED in o.model
        )
        update = change_of(plain.models[partition], federation.model)
        assert masked.shape == update.shape
        assert len(update) > 30_000
        counts = np.bincount(masked.view(np.uint8), minlength=256)
        assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
        words = masked.view(np.int32).astype(np.float64)
        assert abs(np.corrcoef(words, update)[0, 1]) < 4 / len(update) ** 0.5
        clear = Field(10.0, CLIENTS).encoded(update, np.random.default_rng(0)).words
        assert stats.chisquare(np.bincount(clear.view(np.uint8), minlength=256)).pvalue < 1e-12
        assert np.corrcoef(clear.view(np.int32).astype(float), update)[0, 1] > 0.999


def test_a_share_that_does_not_fit_fails_the_round_by_name(federation: Federation) -> None:
    def change(outcome: Outcome) -> Outcome:
        if outcome.phase != "unmask" or outcome.partition != 4:
            return outcome
        content = json.loads(outcome.text)
        return outcome._replace(text=json.dumps({**content, "0": content["1"]}))

    federation.change = change
    with pytest.raises(RoundError, match="the shares of a secret of client 0 do not fit its keys"):
        federation.train(federation.secure)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": 3}', '{"keys": "AAAA"}', '{"keys": "!"}'])
def test_a_client_that_sends_no_keys_is_left_out(federation: Federation, text: str) -> None:
    federation.change = lambda o: (
        o._replace(text=text) if (o.phase, o.partition) == ("keys", 2) else o
    )
    replies = federation.train(federation.secure)
    assert replies.failures[2].reason == "rejected"
    assert str(replies.failures[2]).startswith("its keys cannot be read: ")
    assert len(replies.metrics) == CLIENTS - 1


@pytest.mark.parametrize("place", [0, 32])
def test_a_client_whose_key_is_the_same_with_everybody_is_left_out(
    federation: Federation, place: int
) -> None:
    """A point of low order (RFC 7748, section 6.1): else no neighbour could seal a share for it."""

    def change(outcome: Outcome) -> Outcome:
        if (outcome.phase, outcome.partition) != ("keys", 2):
            return outcome
        keys = bytearray(base64.b64decode(json.loads(outcome.text)["keys"]))
        keys[place : place + 32] = bytes(32)
        return outcome._replace(text=json.dumps({"keys": base64.b64encode(keys).decode()}))

    federation.change = change
    replies = federation.train(federation.secure)
    assert str(replies.failures[2]) == (
        "its keys cannot be read: a public key is a point of low order"
    )
    assert len(replies.metrics) == CLIENTS - 1


def test_a_model_in_place_of_a_masked_update_is_rejected(federation: Federation) -> None:
    federation.change = lambda o: (
        o._replace(model=federation.model) if (o.phase, o.partition) == ("train", 2) else o
    )
    replies = federation.train(federation.secure)
    assert str(replies.failures[2]) == "its model lacks 1 arrays, first masked"
    assert replies.secure is not None
    assert replies.secure["train"] == 1


def test_numbers_beyond_the_range_are_cut_and_said_once(
    make_experiment: Any, recorder: Any
) -> None:
    federation = Federation(make_experiment, recorder, privacy={"largest-change": 1e-4})
    for round in (1, 2):
        mean = federation.train(federation.secure, round).means[0].model
        assert np.abs(change_of(mean, federation.model)).max() <= 1.1e-4
    _, told = recorder.of(Noticed)
    assert "of client 0 changed by more than privacy.largest-change 0.0001 in round 1" in told.text


class Server:
    """What a server sends one client, which keeps its secret as on a network."""

    def __init__(self, federation: Federation) -> None:
        self.state = RecordDict()
        self.federation = federation
        self.client = SecureClient(federation.spec, KeptVault(self.state))
        others = SecureClient(federation.spec, SeededVault(1))
        keys = {p: others.reply("keys", 1, p, None, 9).text for p in range(1, CLIENTS)}
        self.own: dict[str, Any] = {
            "made": 1,
            "clients": CLIENTS,
            "neighbours": list(keys),
            "keys": [self.bytes_of(text) for text in keys.values()],
        }

    @staticmethod
    def bytes_of(text: str) -> bytes:
        return base64.b64decode(json.loads(text)["keys"])

    def request(self, phase: Any, **own: Any) -> Outcome:
        record = ConfigRecord({**self.own, **own})
        if phase != "train":
            return self.client.reply(phase, 1, 0, None if phase == "keys" else record, 9)
        trained = Outcome(0, "train", {"num-examples": 9.0}, model=self.federation.model)
        return self.client.masked(trained, self.federation.model, 1, record)

    def refused(self, phase: Any, **own: Any) -> str:
        outcome = self.request(phase, **own)
        assert outcome.error is not None
        assert (outcome.model, outcome.text) == (None, "")
        return str(outcome.error)


def test_a_client_refuses_what_would_show_its_update(federation: Federation) -> None:
    server = Server(federation)
    trains = {"senders": list(range(1, CLIENTS)), "examples": 9, "next": 2}
    assert "it has no secret of round 1" in server.refused("shares")
    assert server.request("keys").error is None
    assert "requests 'train' again, or with other neighbours" in server.refused("train", **trains)
    few = {"neighbours": [1], "keys": server.own["keys"][:1]}
    assert server.refused("shares", **few) == "the server sent keys of 1 clients, not 14"
    assert server.request("shares").error is None
    assert "requests 'shares' again" in server.refused("shares")
    other = {"keys": [*server.own["keys"][1:], server.own["keys"][0]]}
    assert "with other neighbours" in server.refused("train", **trains, **other)
    alone = {**trains, "senders": [1, 2]}
    assert (
        server.refused("train", **alone) == "the server requests masks with 2 clients; it refuses"
    )
    first = server.request("train", **trains)
    assert first.error is None
    assert first.model is not None
    assert "requests 'train' again" in server.refused("train", **trains)
    unmask = {"others": [1, 1], "alive": 1, "sealed": [b"", b""], "survivors": CLIENTS}
    assert "more than the sum of 12 updates" in server.refused("unmask", **unmask)
    few = {**unmask, "others": [1], "sealed": [b""], "survivors": 11}
    assert "more than the sum of 12 updates" in server.refused("unmask", **few)
    stranger = {**unmask, "others": [0], "sealed": [b""]}
    assert "more than the sum of 12 updates" in server.refused("unmask", **stranger)


def test_a_client_names_a_neighbours_key_that_cannot_be_used(federation: Federation) -> None:
    server = Server(federation)
    assert server.request("keys").error is None
    keys = [bytes(96), *server.own["keys"][1:]]
    assert "Error computing shared key" in server.refused("shares", keys=keys)


def test_the_secret_of_a_network_is_new_each_time_and_deleted_with_the_round() -> None:
    state = RecordDict()
    vault = KeptVault(state)
    first, second = vault.create(0, 1), vault.create(0, 1)
    assert len(first) == 32
    assert first != second
    assert vault.use(0, 1, "shares", b"") == second
    third = vault.create(0, 2, keep=1)  # for the next round, while the second is used
    assert vault.use(0, 1, "train", b"") == second
    assert vault.use(0, 2, "shares", b"") == third
    vault.delete(0, 1)
    assert [*state] == ["flsim-secure-aggregation-2"]
    vault.create(0, 3)
    with pytest.raises(ClientError, match="it has no secret of round 2"):
        vault.use(0, 2, "train", b"")
    vault.delete(0, 3)
    assert not state
    assert SeededVault(1).create(0, 1) == SeededVault(1).create(0, 1) != SeededVault(2).create(0, 1)


# Whole runs


def secured(make_experiment: Any, secure: bool = True, **tables: Any) -> Any:
    privacy = {"secure-aggregation": True} if secure else {}
    return make_experiment(train={"engine": "direct"}, privacy=privacy, **tables)


def final_weights(spec: Any) -> tuple[dict[str, np.ndarray], list[Any]]:
    seen: list[Any] = []
    run_in_process(spec, [seen.append])
    model = [e.arrays for e in seen if type(e).__name__ == "Checkpoint"][-1]
    rounds = [e for e in seen if isinstance(e, RoundFinished)]
    return {name: array.numpy() for name, array in model.items()}, rounds


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedavg"},
        {"name": "fedprox", "proximal-mu": 0.1},
        {"name": "fedavgm", "server-momentum": 0.9},
        {"name": "fedadam"},
        {"name": "fedadagrad"},
        {"name": "fedyogi"},
    ],
)
def test_every_strategy_of_the_mean_gives_what_it_gives_without(
    make_experiment: Any, strategy: dict[str, Any]
) -> None:
    tables = {"strategy": {"rounds": 3, **strategy}, "data": {"clients": 6, "partition": "linear"}}
    plain, before = final_weights(secured(make_experiment, secure=False, **tables))
    ours, rounds = final_weights(secured(make_experiment, **tables))
    assert plain.keys() == ours.keys()
    moving = strategy["name"] in ("fedadam", "fedadagrad", "fedyogi")
    for name in plain:  # an adaptive step divides by a change's size: rounding becomes larger
        np.testing.assert_allclose(ours[name], plain[name], atol=2e-3 if moving else 2e-6)
    for line, other in zip(rounds, before, strict=True):
        assert (line.cohort, line.failures) == (other.cohort, other.failures)
        assert line.train == pytest.approx(other.train, rel=1e-2)
        assert line.secure is not None
        assert other.secure is None


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm"])
def test_central_privacy_has_the_same_noise_on_the_sum_of_masked_updates(
    make_experiment: Any, strategy: str
) -> None:
    tables = {
        "strategy": {"name": strategy, "rounds": 2},
        "data": {"clients": 8, "partition": "linear"},
        "train": {"engine": "direct"},
    }
    own = {"mode": "central", "noise-multiplier": 0.5, "clip": 0.1, "delta": 1e-3}
    plain, before = final_weights(make_experiment(privacy=own, **tables))
    recorded: list[Any] = []
    spec = make_experiment(privacy={**own, "secure-aggregation": True}, **tables)
    run_in_process(spec, [recorded.append])
    ours, rounds = final_weights(spec)
    still, _ = final_weights(make_experiment(privacy={**own, "noise-multiplier": 1.0}, **tables))
    for name in plain:
        np.testing.assert_allclose(ours[name], plain[name], atol=2e-6)
    assert max(np.abs(still[name] - plain[name]).max() for name in plain) > 1e-3
    assert [line.privacy for line in rounds] == [line.privacy for line in before]
    trained = [e for e in recorded if isinstance(e, ClientReplied) and e.phase == "train"]
    assert len(trained) == 16
    assert not any("unclipped" in e.metrics for e in trained)  # a bit on a single update


def test_a_sample_of_one_client_trains_nobody(make_experiment: Any) -> None:
    own = {"mode": "central", "noise-multiplier": 1.0, "delta": 1e-3, "secure-aggregation": True}
    spec = make_experiment(
        privacy=own, strategy={"rounds": 12, "fraction-train": 0.5}, data={"clients": 4}
    )
    _, rounds = final_weights(spec)
    sizes = [len(line.cohort) for line in rounds]
    assert len(sizes) == 12
    assert 1 not in sizes
    assert {0, 2, 3} <= {*sizes}  # the samples of this seed
    assert all((line.secure is None) == (not line.cohort) for line in rounds)


def test_a_sample_that_is_too_small_for_the_assumed_shares_trains_nobody(
    make_experiment: Any,
) -> None:
    own = {"mode": "central", "noise-multiplier": 1.0, "delta": 1e-3, "secure-aggregation": True}
    spec = make_experiment(
        privacy={**own, "assumed-dropped": 0.4, "assumed-corrupt": 0.3},
        strategy={"rounds": 12, "fraction-train": 0.5},
        data={"clients": 8},
    )
    _, rounds = final_weights(spec)
    sizes = {len(line.cohort) for line in rounds}
    few = {n for n in range(9) if not is_enough(n, 0.4, 0.3)}
    assert few == {0, 1, 3, 5}
    assert sizes & few == {0}
    assert sizes - few == {4, 6, 7}  # the samples of this seed


def test_what_is_hidden_is_said_at_the_start_and_too_few_clients_are_refused(
    make_experiment: Any, recorder: Any
) -> None:
    Federation(make_experiment, recorder)
    (told,) = recorder.of(Noticed)
    assert told.text == (
        "secure aggregation: the server learns sums of at least 12 of 15 updates, and no single one; each client "
        "shares masks with 14 others; keys follow the run's seed, which hides nothing from who knows it"
    )
    spec = make_experiment(
        data={"clients": 5},
        privacy={"secure-aggregation": True, "assumed-dropped": 0.4, "assumed-corrupt": 0.4},
    )
    with pytest.raises(InputError, match="assumed-dropped is 0.4 .* 5 clients are too few"):
        run_in_process(spec)


def test_a_clipped_update_is_no_longer_than_the_norm_after_its_rounding() -> None:
    draws = np.random.default_rng(5)
    field = Field(0.1, 2**24)  # few steps
    update = draws.standard_normal(400)
    update *= 0.1 / np.linalg.norm(update)
    weight = field.room(400)
    assert 0.8 < weight < 0.9
    for _ in range(20):
        words, cut = field.encoded(update, draws, weight)
        assert cut == 0
        assert np.linalg.norm(field.decoded(words)) < 0.1
    lengths = [np.linalg.norm(field.decoded(field.encoded(update, draws).words)) for _ in range(20)]
    assert max(lengths) > 0.1
    with pytest.raises(ValueError, match="16777216 clients are too many for 20,000 numbers"):
        field.room(20_000)


@pytest.mark.parametrize("name", ["fedmedian", "krum", "qfedavg"])
def test_a_strategy_that_needs_single_updates_is_refused(make_experiment: Any, name: str) -> None:
    more = {"client-learning-rate": 0.1} if name == "qfedavg" else {}
    with pytest.raises(ValueError, match=f"strategy.name '{name}' needs the update of each client"):
        secured(make_experiment, strategy={"name": name, **more})


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"data": {"clients": 1}}, "1 client trains in a round, so that the sum is its update"),
        (
            {"privacy": {"mode": "central", "epsilon": 1.0, "clipping": "adaptive"}},
            "which tells the server of each client whether its update was clipped",
        ),
    ],
)
def test_what_would_show_one_client_is_refused(make_experiment: Any, tables: Any, why: str) -> None:
    privacy = {"secure-aggregation": True, **tables.pop("privacy", {})}
    with pytest.raises(ValueError, match=why):
        make_experiment(privacy=privacy, **tables)


def test_keys_of_secure_aggregation_need_it_and_no_mode(make_experiment: Any) -> None:
    with pytest.raises(
        ValueError, match=r"assumed-dropped is 0\.25, but privacy\.secure-aggregation"
    ):
        make_experiment(privacy={"assumed-dropped": 0.25})
    spec = make_experiment(privacy={"secure-aggregation": True, "assumed-dropped": 0.2})
    assert spec.privacy.mode == "none"


def test_buffers_are_averaged_and_counters_stay(make_experiment: Any, own_modules: Any) -> None:
    path = own_modules(NORMALIZED)
    tree = secured(make_experiment).model_dump(by_alias=True)
    spec = type(secured(make_experiment)).model_validate(
        {**tree, "model": {"class": f"{path}:Net", "args": {}}}
    )
    plain, _ = final_weights(spec.model_copy(update={"privacy": type(spec.privacy)()}))
    ours, _ = final_weights(spec)
    assert plain["norm.num_batches_tracked"] > 0
    assert ours["norm.num_batches_tracked"] == 0
    for name in ("norm.running_mean", "norm.running_var", "layer.weight"):
        np.testing.assert_allclose(ours[name], plain[name], atol=2e-6)
    assert np.abs(ours["norm.running_mean"]).max() > 0.1
    assert np.array_equal(ours["mask"], plain["mask"])  # it has an infinity


NORMALIZED = """
import pytorch_lightning as pl
import torch
from torch import nn

class Net(pl.LightningModule):
    def __init__(self, inputs=6, classes=3):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.layer(self.norm(x)), y)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


def test_a_run_says_that_it_was_secure_and_is_resumed_to_the_same_bits(
    make_experiment: Any, tmp_path: Path
) -> None:
    spec = secured(make_experiment, strategy={"rounds": 3}, data={"clients": 4})
    whole = run(spec, tmp_path / "whole")

    class EndError(Exception):
        pass

    def end(event: Any) -> None:
        if isinstance(event, PhaseStarted) and event.round == 3:
            raise EndError

    with pytest.raises(EndError):
        run(spec, tmp_path / "cut", [end])
    done = resume(tmp_path / "cut")
    assert done.weights_sha256 == whole.weights_sha256
    assert run(spec, tmp_path / "again").weights_sha256 == whole.weights_sha256
    lines = RunRecord(tmp_path / "cut").rounds
    expected = {"neighbours": 3, "threshold": 2, "keys": 0, "shares": 0, "train": 0, "unmask": 0}
    assert [line["secure"] for line in lines] == [expected] * 3
    assert RunRecord(tmp_path / "cut").manifest["secure-aggregation"] is True
    page = write_report(tmp_path / "whole").read_text()
    assert "added; the server saw no single one" in page
    assert "no client" in page
