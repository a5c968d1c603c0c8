"""What is changed inside Flower: that Flower is as we think it is, and what the change does."""

from __future__ import annotations

import inspect
import itertools
import queue
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import HEARTBEAT_CALL_TIMEOUT, SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore import heartbeat
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from tests.conftest import PATIENCE, wait_for

from flsimulation.internals import flower_processes
from flsimulation.internals.flower_messages import DELETED, empty_run, identity, set_message_id
from flsimulation.node import flower_patches
from flsimulation.runtimes.network.names import LEFT, TROUBLE


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class State:
    """As much of a node's state as is asked for here."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def get_messages_legacy(self, *, is_reply: bool) -> list[Any]:
        assert is_reply
        return self.answers

    def get_messages(self, *, dst_node_id: int, limit: int) -> list[Any]:
        assert (dst_node_id, limit) == (SUPERLINK_NODE_ID, 1)
        return []


def message(kind: str = "train") -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(message_type=kind))


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The patch around a stand-in for Flower's function; what that does can be set."""
    told: dict[str, Any] = {"gives": 7, "watched": []}

    def pull_and_store(**given: Any) -> int | None:
        given["receive"]()
        gives: int | None = told["gives"]
        return gives

    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", pull_and_store)
    watch = SimpleNamespace(begin=lambda *of: told["watched"].append(of[:2]))
    flower_patches.leave_with_run(watch)  # type: ignore[arg-type]
    return told


def pull(came: Any, state: State | None = None) -> int | None:
    found: int | None = start_client_internal._pull_and_store_message(
        receive=lambda: came, state=state or State(), pull_object=lambda *_: b""
    )
    return found


def test_flower_calls_the_function_that_is_replaced_by_name_and_with_names() -> None:
    source = inspect.getsource(start_client_internal.start_client_internal)
    assert "run_id = _pull_and_store_message(\n                state=state," in source
    assert "receive=receive," in source
    assert "pull_object=pull_object," in source

    assert "_push_messages(\n                state=state," in source
    assert "send=send," in source
    assert "push_object=push_object," in source


class Node:
    """A SuperNode's own state with one message of a run, which Flower's own functions work on."""

    def __init__(self) -> None:
        self.store = InMemoryObjectStore()
        self.state = InMemoryNodeState(self.store)
        self.state.set_node_id(5)
        run = empty_run(7)
        run.fab_hash = "0" * 64
        self.state.store_run(run)
        with identity(1, 7, SUPERLINK_NODE_ID):
            self.message = Message(RecordDict({"c": ConfigRecord({"x": 1})}), 5, "train")
        set_message_id(self.message, self.message.object_id)

    def take(self, pull_object: Any) -> int | None:
        """Let Flower take the message, whose parts are asked for with a function."""
        run: int | None = start_client_internal._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (self.message, get_object_tree(self.message)),
            get_run=None,
            get_fab=None,
            pull_object=pull_object,
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )
        return run

    def answer(self) -> None:
        """Answer as a ClientApp does."""
        with identity(2, 7, 5):
            answer = Message(RecordDict(), reply_to=self.message)
        set_message_id(answer, answer.object_id)
        tree = get_object_tree(answer)
        self.state.record_message_processing_start(self.message.metadata.message_id)
        self.state.record_message_processing_end(self.message.metadata.message_id)
        stored, missing = self.state.store_message_and_object_tree(
            answer, tree, session := self.state.start_session(7)
        )
        assert stored
        parts = get_all_nested_objects(answer)
        for part in missing:
            assert self.state.store_object(7, session, part, parts[part].deflate())

    def parts(self, _: int, part: str) -> bytes:
        """A part of the message, as the SuperLink has it."""
        return get_all_nested_objects(self.message)[part].deflate()

    @property
    def messages(self) -> list[Any]:
        """That a ClientApp would get."""
        legacy = list(self.state.get_messages_legacy(run_ids=[7], is_reply=False))
        return legacy or list(self.state.get_messages(dst_node_id=5, run_id=7))


def send(message: Any, tree: Any, seconds: float) -> tuple[set[str], str]:
    """Send as a SuperNode's connection does: all parts are missing."""
    return {part.object_id for part in iterate_object_tree(tree)}, "session"


def push(node: Node, **calls: Any) -> None:
    start_client_internal._push_messages(state=node.state, object_store=node.store, **calls)


class TestFlower:
    """What the patches are for: with a Flower that does it itself, a patch can go."""

    def test_it_leaves_a_message_of_a_stopped_run_in_its_state(self):
        def stopped(*_: Any) -> bytes:
            raise RunNotRunningException

        node = Node()
        assert node.take(stopped) is None
        assert [m.metadata.run_id for m in node.messages] == [7]
        assert not issubclass(RunNotRunningException, Exception)

    def test_its_answers_are_seen_until_they_are_sent(self):
        node = Node()
        assert node.take(node.parts) == 7
        assert not flower_processes.has_answers(node.state)
        node.answer()
        # 1.42 returns an answer once, which it is about to send
        assert flower_processes.has_answers(node.state)
        node = Node()
        node.take(node.parts)
        node.answer()
        sent: list[str] = []
        push(node, send=send, push_object=lambda run, session, part, content: sent.append(part))
        assert len(sent) >= 1
        assert not flower_processes.has_answers(node.state)

    def test_it_drops_an_answer_that_could_not_be_sent_and_goes_on(self):
        node, failing = answered(), lambda *_: raise_(OSError("no space"))
        push(node, send=send, push_object=failing)
        assert not flower_processes.has_answers(node.state)


def answered() -> Node:
    node = Node()
    node.take(node.parts)
    node.answer()
    return node


def raise_(error: BaseException) -> Any:
    raise error


class TestLosingAnAnswer:
    @pytest.fixture(autouse=True)
    def patched(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """The patch around Flower's own function; returns the file of the node's trouble."""
        monkeypatch.setenv(TROUBLE, str(tmp_path / "trouble"))
        own = start_client_internal._push_messages
        monkeypatch.setattr(start_client_internal, "_push_messages", own)
        flower_patches.leave_with_lost_answer()
        return tmp_path / "trouble"

    def test_an_answer_that_is_sent_changes_nothing(self, patched):
        sent: list[str] = []
        push(answered(), send=send, push_object=lambda *given: sent.append(given[2]))
        assert sent
        assert not patched.exists()

    @pytest.mark.parametrize("part", ["send", "push_object"])
    def test_one_that_is_not_ends_the_node_and_the_next_one_says_why(self, patched, capsys, part):
        calls = {"send": send, "push_object": lambda *_: None}
        calls[part] = lambda *_: raise_(OSError("no\nspace"))
        with pytest.raises(SystemExit) as end:
            push(answered(), **calls)
        assert end.value.code == LEFT
        assert "flsim: a reply could not be sent" in capsys.readouterr().out
        assert patched.read_text() == "its reply could not be sent: no space"

    def test_the_end_of_a_run_is_no_such_failure(self, patched):
        push(answered(), send=send, push_object=lambda *_: raise_(RunNotRunningException()))
        assert not patched.exists()


class TestLeaving:
    def test_a_message_that_was_received_whole_is_worked_on_and_watched(self, patched):
        assert pull((message("evaluate"), None)) == 7
        assert patched["watched"] == [(7, "evaluate")]

    def test_without_a_message_nothing_happens(self, patched):
        patched["gives"] = None
        assert pull(None) is None
        assert patched["watched"] == []

    def test_a_message_of_which_only_a_part_came_ends_the_node(self, patched, capsys):
        patched["gives"] = None
        with pytest.raises(SystemExit) as end:
            pull((message(), None))
        assert end.value.code == LEFT
        assert "a message could not be received completely" in capsys.readouterr().out

    def test_an_answer_that_is_left_over_ends_the_node_before_it_is_sent(self, patched, capsys):
        with pytest.raises(SystemExit) as end:
            pull((message(), None), State("an answer of the stopped run"))
        assert end.value.code == LEFT
        assert "a reply was left over" in capsys.readouterr().out


class TestWatching:
    def watch(
        self,
        kind: str = "train",
        over: bool = False,
        fails: bool = False,
        works: Any = lambda: True,
    ) -> Any:
        clock, asked = Clock(), []

        def ask(run: int, number: str) -> bytes:
            asked.append((clock.now, run))
            if over:
                raise RunNotRunningException
            raise (ConnectionError("no network") if fails else KeyError(number))

        watch = flower_patches.RunWatch(clock)
        watch.begin(5, kind, ask, works)
        return watch, clock, asked

    def test_it_asks_after_two_seconds_then_less_and_less_often(self):
        watch, clock, asked = self.watch()
        for tenth in range(1, 3000):
            clock.now = 100 + tenth / 10
            watch.look()
        times = [time - 100 for time, run in asked if run == 5]
        gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert times[0] == pytest.approx(2.0)
        assert gaps[0] == pytest.approx(2.0, abs=0.11)
        assert max(gaps) == pytest.approx(10.0, abs=0.11)

    def test_a_run_that_is_over_ends_the_node(self, capsys):
        watch, clock, _ = self.watch(over=True)
        watch.look()  # too soon to ask
        clock.now += 2
        with pytest.raises(SystemExit) as end:
            watch.look()
        assert end.value.code == LEFT
        assert "flsim: the run is over" in capsys.readouterr().out

    def test_a_superlink_that_cannot_be_asked_is_no_end_of_the_run(self):
        watch, clock, asked = self.watch(fails=True)
        clock.now += 2
        watch.look()
        assert len(asked) == 1

    def test_a_question_is_answered_within_a_minute_or_the_node_ends(self):
        watch, clock, _ = self.watch("query")
        clock.now += 59
        watch.look()
        clock.now += 10
        with pytest.raises(SystemExit):
            watch.look()

    def test_a_training_may_take_as_long_as_it_takes(self):
        watch, clock, _ = self.watch("train")
        clock.now += 100_000
        watch.look()

    def test_a_process_that_ended_without_a_reply_ends_the_node(
        self, monkeypatch, tmp_path, capsys
    ):
        monkeypatch.setenv(TROUBLE, str(tmp_path / "trouble"))
        works = iter(
            [True, False, True, False, False]
        )  # in between its reply was seen, and another came
        watch, clock, _ = self.watch(works=lambda: next(works))
        for _ in range(4):
            clock.now += 10
            watch.look()
        clock.now += 10
        with pytest.raises(SystemExit) as left:
            watch.look()
        assert left.value.code == LEFT
        assert "the process of a message ended without a reply" in capsys.readouterr().out
        assert "ended without a reply" in (tmp_path / "trouble").read_text()

    def test_a_new_message_has_not_ended_with_the_one_before(self):
        watch, clock, _ = self.watch(works=lambda: False)
        clock.now += 10
        watch.look()
        watch.begin(5, "train", lambda *_: b"", lambda: False)
        clock.now += 10
        watch.look()

    def test_flowers_state_says_whether_a_task_has_ended(self):
        state = InMemoryNodeState(InMemoryObjectStore())
        assert not flower_processes.has_work(state)
        task = state.create_task(task_type="flwr-clientapp", run_id=7)
        assert flower_processes.has_work(state)
        assert state.claim_task(task)
        assert state.activate_task(task)
        assert flower_processes.has_work(state)
        assert state.finish_task(task, "failed", "out of memory")
        assert not flower_processes.has_work(state)

    def test_before_the_first_message_it_asks_nothing(self):
        flower_patches.RunWatch(Clock()).look()


class TestHeartbeats:
    def test_flower_waits_about_twenty_seconds_between_two(self):
        assert heartbeat.HEARTBEAT_DEFAULT_INTERVAL == 30
        source = inspect.getsource(heartbeat.HeartbeatSender._run)
        assert "HEARTBEAT_DEFAULT_INTERVAL - HEARTBEAT_CALL_TIMEOUT" in source
        assert "*= HEARTBEAT_BASE_MULTIPLIER + rd" in source

    def test_ours_are_about_two_seconds_apart(self, monkeypatch):
        monkeypatch.setattr(heartbeat, "HEARTBEAT_DEFAULT_INTERVAL", 30)
        flower_patches.send_heartbeats_often()
        waited: list[float] = []
        sender = heartbeat.HeartbeatSender(lambda: True)

        def wait(seconds: float) -> bool:
            waited.append(seconds)
            if len(waited) == 50:
                sender._stop_event.set()
            return False

        sender._stop_event.wait = wait  # type: ignore[method-assign, assignment]
        random.seed(0)
        sender._run()
        assert 1.7 < min(waited) <= max(waited) < 2.3


class TestHeartbeatsThatEnd:
    """An error reply to a heartbeat ends Flower's thread of them; the SuperNode leaves then."""

    @pytest.fixture
    def replies(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Replies of a SuperLink to heartbeats, as HTTP status, the last one again and again."""
        monkeypatch.setattr(heartbeat, "HEARTBEAT_DEFAULT_INTERVAL", 5.001)  # 1 ms between two
        for module, name in (
            (fleet_http_connection, "HeartbeatSender"),
            (start_client_internal, "_pull_and_store_message"),
        ):
            monkeypatch.setattr(module, name, getattr(module, name))
        return [200]

    @pytest.fixture
    def url(self, replies: list[int]) -> Iterator[str]:
        class SuperLink(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                path, status = self.path, 200
                if path.endswith("send-node-heartbeat"):
                    status = replies.pop(0) if len(replies) > 1 else replies[0]
                    body = SendNodeHeartbeatResponse(success=True)
                elif path.endswith("activate-node"):
                    body = ActivateNodeResponse(node_id=5)
                else:
                    body = PullMessagesResponse()
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.SerializeToString())

            def log_message(self, *_: Any) -> None: ...

        with HTTPServer(("127.0.0.1", 0), SuperLink) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()

    def pull(self, receive: Any) -> int | None:
        run: int | None = start_client_internal._pull_and_store_message(
            state=State(),
            object_store=None,
            node_config={},
            receive=receive,
            get_run=None,
            get_fab=None,
            pull_object=None,
            confirm_message_received=None,
            trusted_entities=None,
        )
        return run

    def connected(self, url: str) -> Any:
        return fleet_http_connection.http_request_response(
            url, insecure=True, authentication_keys=generate_key_pairs()
        )

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("status", [500, 400])
    def test_a_node_whose_heartbeats_have_ended_leaves(self, replies, url, status, capsys):
        look = flower_patches.leave_without_heartbeats()
        replies[:] = [200, 503, 200, status, 200]
        with self.connected(url) as (_, receive, *_):
            wait_for("the end of the heartbeats", lambda: len(replies) == 1)
            wait_for("its thread's end", lambda: not _heartbeats())
            for check in (look, lambda: self.pull(receive)):  # in training, and idle
                with pytest.raises(SystemExit) as left:
                    check()
                assert left.value.code == LEFT
        assert "flsim: its heartbeats have ended: " in capsys.readouterr().out

    def test_a_node_with_heartbeats_stays(self, replies, url):
        look = flower_patches.leave_without_heartbeats()
        look()  # before it is connected
        replies[:] = [200, 503, 200]
        with self.connected(url) as (_, receive, *_):
            wait_for("heartbeats", lambda: len(replies) == 1)
            look()
            assert self.pull(receive) is None


def _heartbeats() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if "_run)" in t.name]


class TestNodes:
    """Which nodes a SuperLink lists, and which it accepts."""

    @pytest.fixture
    def state(self, monkeypatch: pytest.MonkeyPatch) -> InMemoryLinkState:
        """A SuperLink's own state with one run."""
        for name in ("get_nodes", "activate_node", "get_message_ins"):
            monkeypatch.setattr(InMemoryLinkState, name, getattr(InMemoryLinkState, name))
        state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
        run = SimpleNamespace(federation_id=NOOP_FEDERATION_ID)
        state.run_ids[1] = SimpleNamespace(run=run)  # type: ignore[assignment]
        return state

    def node(self, state: InMemoryLinkState, name: str, ago: float) -> int:
        """A node that was last heard so many seconds ago."""
        number = state.create_node("", "", name.encode(), 30)
        assert state.activate_node(number, 30)
        state.nodes[number].online_until -= ago
        return number

    def messages(self, state: InMemoryLinkState, *nodes: int) -> list[Message]:
        """Messages to these nodes, with the numbers from 0 as ids."""
        with identity(1, 1, SUPERLINK_NODE_ID):
            sent = [Message(RecordDict(), node, "train") for node in nodes]
        for number, message in enumerate(sent):
            set_message_id(message, str(number))
            state.message_ins_store[str(number)] = message
        return sent

    def test_flower_lists_a_node_for_a_minute_without_a_heartbeat(self, state):
        late, gone = self.node(state, "late", 59), self.node(state, "gone", 61)
        assert state.get_nodes(1) == {late}
        assert gone not in state.get_nodes(1)

    def test_ours_lists_it_for_nine_seconds(self, state):
        flower_patches.list_nodes_heard_lately()
        one_lost = HEARTBEAT_CALL_TIMEOUT + 2.25 + 1  # until the next one, by `exponential`
        here, late = self.node(state, "here", one_lost), self.node(state, "late", 9.5)
        assert state.get_nodes(1) == {here}
        assert state.acknowledge_node_heartbeat(late, 30)
        assert state.get_nodes(1) == {here, late}

    def test_a_run_that_is_not_there_has_no_nodes(self, state):
        flower_patches.list_nodes_heard_lately()
        self.node(state, "here", 0)
        assert state.get_nodes(2) == set()

    def test_flower_rejects_a_killed_node_for_a_minute(self, state):
        late, gone = self.node(state, "late", 59), self.node(state, "gone", 61)
        assert [state.activate_node(node, 30) for node in (late, gone)] == [False, True]

    def test_ours_accepts_it_after_eleven_seconds(self, state):
        flower_patches.let_killed_nodes_return()
        here, late = self.node(state, "here", 10), self.node(state, "late", 12)
        assert [state.activate_node(node, 30) for node in (here, late)] == [False, True]
        assert not state.activate_node(late + here, 30)

    def test_messages_that_a_killed_node_took_are_unavailable_to_the_run(self, state):
        flower_patches.let_killed_nodes_return()
        here, late = self.node(state, "here", 0), self.node(state, "late", 12)
        for message in self.messages(state, here, late, late)[:2]:
            message.metadata.delivered_at = "lately"
        assert state.activate_node(late, 30)
        replies = state.get_message_res({"0", "1", "2"}, 1)
        assert [(r.metadata.reply_to_message_id, r.error.code) for r in replies] == [("1", DELETED)]

    @pytest.mark.parametrize("again", [False, True])
    def test_a_message_whose_answer_was_lost_is_given_again(self, state, again):
        if again:
            flower_patches.give_lost_messages_again()
        node, other = self.node(state, "here", 0), self.node(state, "other", 0)
        sent = self.messages(state, node, node, other)

        def taken() -> list[str]:
            return [m.metadata.message_id for m in state.get_message_ins(node_id=node, limit=1)]

        assert taken() == ["0"]
        if not again:  # by Flower
            assert (taken(), taken()) == (["1"], [])
            return
        assert taken() == ["0"]  # it asked again, without a reply
        state.message_ins_id_to_message_res_id["0"] = "its reply"
        assert (taken(), taken()) == (["1"], ["1"])
        assert sent[2].metadata.delivered_at == ""


class Uploaded:
    """What a SuperLink has of a run's log; the first upload is lost, the second one takes long."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.calls = 0
        self.taken, self.goes_on = threading.Event(), threading.Event()

    def PushLogs(self, request: Any) -> None:  # noqa: N802 - Flower's name
        self.calls += 1
        if self.calls == 1:
            raise httpx.ConnectError("the SuperLink is busy")
        self.taken.set()
        assert self.goes_on.wait(PATIENCE)
        self.lines += request.logs


def test_a_run_waits_until_the_last_lines_of_its_log_have_been_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By Flower's own uploader, which takes lines from the queue before it has sent them."""
    module = import_module("flwr.superlink.runtime.run_serverapp")
    monkeypatch.setattr(module, "start_log_uploader", module.start_log_uploader)
    watch, there, written = flower_patches.LogWatch(), Uploaded(), queue.Queue[str | None]()
    watch.follow()
    written.put("the result")
    uploader = module.start_log_uploader(log_queue=written, node_id=0, run_id=1, client=there)
    assert there.taken.wait(PATIENCE)
    assert (written.empty(), there.lines) == (True, [])
    looks = iter(range(10))

    def sleep(_: float) -> None:
        if next(looks, None) is None:
            there.goes_on.set()
        threading.Event().wait(0.001)

    monkeypatch.setattr(flower_patches.time, "sleep", sleep)
    watch.wait(PATIENCE)
    monkeypatch.undo()
    assert there.lines == ["the result"]
    written.put(None)
    uploader.join(PATIENCE)


def test_a_process_without_a_log_does_not_wait() -> None:
    flower_patches.LogWatch().wait(PATIENCE)
