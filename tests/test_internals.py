"""Every name of Flower that is not public: that it is there, and is what this package takes it for.

A test that fails here says which name changed and what rests on it; docs/decisions/0020 lists them.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg

import flsimulation
from flsimulation.internals import flower_messages, flower_processes, flower_words
from flsimulation.internals.flower_messages import identifiers_of, requested

NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    # name: parameters, what rests on it
    "flwr.common.constant.ErrorCode": ((), "which errors are the client's, which the SuperLink's"),
    "flwr.common.constant.SType": ((), "arrays that are not serialised in one process"),
    "flwr.common.constant.SUPERLINK_NODE_ID": ((), "answers that a SuperNode did not send"),
    "flwr.common.constant.TIMESTAMP_TOLERANCE": ((), "which clocks are refused"),
    "flwr.common.constant.SYSTEM_TIME_TOLERANCE": ((), "which clocks are refused"),
    "flwr.common.constant.HEARTBEAT_PATIENCE": ((), "when a node was last heard"),
    "flwr.common.constant.Status.PENDING": ((), "a client whose message's process left no reply"),
    "flwr.common.constant.Status.STARTING": ((), "the same"),
    "flwr.common.constant.Status.RUNNING": ((), "the same"),
    "flwr.common.constant.SubStatus.FAILED": ((), "the end of a run whose process was killed"),
    "flwr.serverapp.strategy.strategy_utils.aggregate_metricrecords": (
        ("records", "weighting_metric_name"),
        "strategies that only average",
    ),
    "flwr.supercore.run.Run.create_empty": (("run_id",), "the run of a grid in one process"),
    "flwr.supercore.run.RunNotRunningException": ((), "a client that leaves a run which is over"),
    "flwr.supercore.task_identity.TaskIdentity": ((), "messages outside Flower's own runtimes"),
    "flwr.supercore.date.now": ((), "when a node was last heard"),
    "flwr.supercore.heartbeat.HEARTBEAT_DEFAULT_INTERVAL": ((), "heartbeats every two seconds"),
    "flwr.supernode.fleet_http_connection.HeartbeatSender": (
        ("heartbeat_fn",),
        "a client that leaves when its heartbeats have ended",
    ),
    "flwr.supernode.fleet_http_connection.HeartbeatSender.is_running": ((), "the same"),
    "flwr.supercore.inflatable.inflatable_utils.pull_objects": (
        ("object_ids", "pull_object_fn", "initial_backoff", "backoff_cap"),
        "shorter waits for a message's parts",
    ),
    "flwr.supercore.inflatable.inflatable_utils.pull_and_inflate_object_from_tree": (
        ("object_tree", "initial_backoff", "backoff_cap"),
        "shorter waits for a message's parts",
    ),
    "flwr.supernode.start_client_internal.time": ((), "shorter waits of a SuperNode"),
    "flwr.supernode.start_client_internal._pull_and_store_message": (
        ("state", "receive", "pull_object"),
        "a client that leaves a run which is over",
    ),
    "flwr.supernode.start_client_internal._push_messages": (
        ("send", "push_object"),
        "a client that leaves when its reply could not be sent",
    ),
    "flwr.supercore.superexec.run_superexec.time": ((), "a SuperExec that sleeps until the bell"),
    "flwr.server.superlink.linkstate.InMemoryLinkState.get_nodes": (
        ("self", "run_id"),
        "a client that is missed within ten seconds",
    ),
    "flwr.server.superlink.linkstate.InMemoryLinkState.activate_node": (
        ("self", "node_id", "heartbeat_interval"),
        "a killed client that returns with its key",
    ),
    "flwr.server.superlink.linkstate.InMemoryLinkState.get_message_ins": (
        ("self", "node_id", "limit"),
        "a message that was lost on its way to a client",
    ),
    "flwr.superlink.cli.flower_superlink.uvicorn.run": (
        ("app", "host", "port", "ssl_certfile", "ssl_keyfile", "log_config"),
        "clients that do not reach what submits runs",
    ),
    "flwr.superlink.routers.fleet.node_auth.authenticate_node": (
        ("request",),
        "replies in the name of another client are rejected",
    ),
    "flwr.proto.fleet_pb2.PushMessagesRequest": ((), "the same"),
    "flwr.supernode.runtime.run_clientapp.install_from_fab": (
        (),
        "a client that unpacks nothing that arrives",
    ),
    "flwr.supernode.runtime.run_clientapp.get_load_client_app_fn": (
        ("default_app_ref", "app_path", "multi_app"),
        "a client that runs no code that arrives",
    ),
    "flwr.superlink.servicer.control.control_handlers.register_node": (
        ("request", "account", "state"),
        "admitted clients",
    ),
    "flwr.superlink.servicer.control.control_handlers.unregister_node": (
        ("request", "account", "state"),
        "revoked clients",
    ),
    "flwr.proto.control_pb2.RegisterNodeRequest": ((), "admitted clients"),
    "flwr.proto.control_pb2.UnregisterNodeRequest": ((), "revoked clients"),
    "flwr.supercore.primitives.asymmetric.public_key_to_bytes": ((), "admitted clients"),
    "flwr.supercore.auth.typing.AccountInfo": (("flwr_aid", "account_name"), "admitted clients"),
    "flwr.common.constant.NOOP_ACCOUNT_NAME": ((), "admitted clients"),
    "flwr.common.constant.NOOP_FLWR_AID": ((), "admitted clients"),
    "flwr.proto.log_pb2.PushLogsRequest": ((), "the log of a run whose process was killed"),
    "flwr.proto.runtime_pb2.PushTaskOutputRequest": ((), "the end of such a run"),
    "flwr.supercore.interceptors.RuntimeTokenHttpInterceptor": (
        ("token",),
        "the end of such a run",
    ),
    "flwr.supercore.interceptors.RuntimeVersionHttpInterceptor": (
        ("component_name",),
        "the end of such a run",
    ),
    "flwr.supercore.retry.make_simple_http_retry_invoker": ((), "the end of such a run"),
    "flwr.supercore.runtime.RuntimeHttpClient.from_server_address": (
        ("server_address", "insecure", "root_certificates", "interceptors", "retry_invoker"),
        "the end of such a run",
    ),
    "flwr.app.message.make_message": (
        ("metadata", "error"),
        "replies that are read only if they are sound",
    ),
    "flwr.common.constant.ErrorCode.MESSAGE_UNAVAILABLE": (
        (),
        "replies that are read only if they are sound",
    ),
    "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": (
        (),
        "replies that are read only if they are sound",
    ),
    "flwr.proto.runtime_pb2.PullAppMessagesRequest": (
        (),
        "replies that are read only if they are sound",
    ),
    "flwr.supercore.constant.SYSTEM_MESSAGE_TYPE": (
        (),
        "replies that are read only if they are sound",
    ),
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": (
        ("tree",),
        "replies that are read only if they are sound",
    ),
    "flwr.supercore.inflatable.inflatable_protobuf_utils.make_pull_object_fn_protobuf": (
        ("pull_object_protobuf", "node", "run_id"),
        "replies that are read only if they are sound",
    ),
    "flwr.supercore.inflatable.inflatable_utils.ObjectPullError": (
        ("object_id", "reason"),
        "replies that are read only if they are sound",
    ),
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": (
        ("object_id", "object_contents"),
        "replies that are read only if they are sound",
    ),
    "flwr.superlink.grid.http_grid.HttpGrid._runtime_client": (
        (),
        "replies that are read only if they are sound",
    ),
    "flwr.supercore.runtime.RuntimeHttpClient.PullMessages": (
        ("request",),
        "replies that are read only if they are sound",
    ),
}


@contextlib.contextmanager
def rests_on(name: str, purpose: str) -> Iterator[None]:
    """Let whatever fails in the block say which name it is, and what for."""
    try:
        yield
    except Exception as error:
        pytest.fail(f"Flower changed {name}; on it rests: {purpose} ({error!r})")


def found(name: str) -> Any:
    """The object of a dotted name, whichever part of it is the module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            thing = import_module(".".join(parts[:length]))
            for part in parts[length:]:
                thing = getattr(thing, part)
            return thing
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there_with_its_parameters(name: str) -> None:
    parameters, purpose = NAMES[name]
    with rests_on(name, purpose):
        thing = found(name)
        if parameters:
            taken = inspect.signature(thing).parameters
            assert set(parameters) <= set(taken), f"takes {list(taken)}"


def test_no_private_name_is_used_without_a_test_of_it() -> None:
    folder = Path(flsimulation.__file__).parent / "internals"
    used = {
        f"{node.module}.{alias.name}"
        for path in folder.glob("flower_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr.")
        for alias in node.names
        if node.module not in ("flwr.app", "flwr.serverapp")
    }
    assert len(used) > 15
    without = {name for name in used if not any(f"{n}.".startswith(f"{name}.") for n in NAMES)}
    assert not without


class TestMessages:
    def test_a_message_needs_an_identity_which_is_restored(self) -> None:
        with rests_on("TaskIdentity", "messages outside Flower's own runtimes"):
            with pytest.raises(RuntimeError, match="TaskIdentity.*is not set"):
                Message(RecordDict(), 2, MessageType.TRAIN)
            with flower_messages.identity(1, 7, 3):
                told = Message(RecordDict(), 2, MessageType.TRAIN).metadata
                assert (told.run_id, told.src_node_id) == (7, 3)
            with pytest.raises(RuntimeError, match="TaskIdentity.*is not set"):
                Message(RecordDict(), 2, MessageType.TRAIN)

    def test_a_reply_names_the_id_that_a_message_was_given(self) -> None:
        with rests_on("Metadata's _message_id", "which answer belongs to which message"):
            with flower_messages.identity(1, 7, 3):
                message = Message(RecordDict(), 2, MessageType.TRAIN)
                flower_messages.set_message_id(message, "mine")
                answer = Message(RecordDict(), reply_to=message)
            assert message.metadata.message_id == answer.metadata.reply_to_message_id == "mine"

    def test_an_empty_run_has_its_id(self) -> None:
        with rests_on("Run.create_empty", "the run of a grid in one process"):
            assert flower_messages.empty_run(7).run_id == 7

    def test_clocks_may_differ_by_what_flower_accepts(self) -> None:
        from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

        assert flower_words.AHEAD_SECONDS == SYSTEM_TIME_TOLERANCE
        assert flower_words.BEHIND_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE

    def test_the_codes_of_errors_are_those_that_are_known(self) -> None:
        """A new code would be unknown, and its client lost: it belongs to one of the two."""
        with rests_on("ErrorCode", "which errors are the client's, which the SuperLink's"):
            codes = found("flwr.common.constant.ErrorCode")
            values = {n: v for n, v in vars(codes).items() if isinstance(v, int)}
            known = flower_messages.OF_CLIENT_APP | flower_messages.OF_SUPERLINK
            assert {n for n, v in values.items() if v not in known} == {
                "UNKNOWN",
                "MOD_FAILED_PRECONDITION",
            }
            assert known == {1, 2, 7, 8, 3, 4, 5}

    def test_arrays_name_their_bytes_as_ours_do(self) -> None:
        with rests_on("SType.NUMPY", "arrays that are not serialised in one process"):
            array = Array.from_numpy_ndarray(np.arange(3.0))
            assert array.stype == flower_messages.NUMPY == "numpy.ndarray"
            assert {"dtype", "shape", "stype", "data"} <= set(vars(array))

    def test_flower_averages_metrics_with_the_function_that_tells_a_plain_mean(self) -> None:
        with rests_on("aggregate_metricrecords", "strategies that only average"):
            own = FedAvg()
            assert own.train_metrics_aggr_fn is flower_messages.aggregate_metricrecords
            assert own.weighted_by_key == "num-examples"


class TestPushAndPull:
    @pytest.mark.parametrize(
        ("returned", "ids"),
        [
            (["a", "b"], ["a", "b"]),
            (["a", ""], ["a", None]),  # Flower 1.42 and 1.43
            ([None, "b"], [None, "b"]),  # as 1.42 documents it
            ([], [None, None]),  # too large together
        ],
    )
    def test_a_rejected_message_has_no_id(self, returned: list[Any], ids: list[Any]) -> None:
        assert identifiers_of(returned, 2) == ids

    def test_both_names_of_the_ids_mean_the_same_and_none_means_all(self) -> None:
        assert list(requested(["a"], None, ["b"])) == ["a"]
        assert list(requested(None, iter(["a"]), ["b"])) == ["a"]
        assert list(requested(None, None, ["b"])) == ["b"]
        assert list(requested([], None, ["b"])) == []
        with pytest.raises(TypeError, match="either message_ids or reply_to_message_ids"):
            requested(["a"], ["a"], [])

    def test_flowers_own_grid_takes_the_ids_first(self) -> None:
        from flwr.serverapp import Grid

        with rests_on("Grid.pull_messages", "answers, in every runtime"):
            taken = list(inspect.signature(Grid.pull_messages).parameters.values())
            assert taken[1].name in ("message_ids", "reply_to_message_ids")
            assert taken[1].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            needed = [p.name for p in taken[2:] if p.default is inspect.Parameter.empty]
            assert needed == []


class TestCommands:
    @pytest.mark.parametrize("role", ["client", "superlink"])
    def test_the_modules_that_are_imported_early_hold_the_commands(self, role: str) -> None:
        names = {
            "client": (flower_words.CLIENT_APP, flower_words.SUPERNODE),
            "superlink": (flower_words.SERVER_APP, flower_words.SUPERLINK),
        }
        with rests_on("the commands' modules", "processes that start warm"):
            for name in (*names[role], flower_words.SUPEREXEC):
                (entry,) = entry_points(group="console_scripts", name=name)
                assert entry.module in flower_words.COMMANDS[role]
                assert callable(entry.load())

    def test_a_superexec_starts_our_commands_with_the_options_that_we_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flwr.supercore.constant import TaskType
        from flwr.supercore.superexec.executor import subprocess_executor
        from flwr.supercore.superexec.executor.types import ExecutionSpec

        started: list[list[str]] = []
        monkeypatch.setattr(
            subprocess_executor.subprocess, "Popen", lambda args, **_: started.append(args)
        )
        for kind in (TaskType.CLIENT_APP, TaskType.SERVER_APP):
            subprocess_executor.SubprocessExecutor().launch(
                ExecutionSpec(
                    task_type=kind,
                    runtime_api_address="host:1",
                    token="t",
                    insecure=True,
                    root_certificates_path=None,
                    runtime_dependency_install=False,
                    parent_pid=7,
                    suppress_output=False,
                    task_id=1,
                )
            )
        with rests_on(
            "SubprocessExecutor", "processes that start warm, and the end of a killed one"
        ):
            options = [
                *(flower_words.ADDRESS, "host:1", flower_words.TOKEN, "t", flower_words.INSECURE),
                *(flower_words.PARENT, "7"),
            ]
            assert started == [
                [flower_words.CLIENT_APP, *options],
                [flower_words.SERVER_APP, *options],
            ]

    def test_a_runs_status_is_written_in_the_words_that_we_read(self) -> None:
        from flwr.cli import run_utils
        from flwr.cli.ls import _to_json
        from flwr.common.constant import Status, SubStatus

        run = found("flwr.supercore.run.Run").create_empty(5)
        run.pending_at = "2026-01-31T12:00:00+00:00"
        words = {}
        with rests_on("flwr list --format json", "flsim runs, attach and stop"):
            for status, sub in [
                *((Status.FINISHED, s) for s in ("completed", "failed", "stopped")),
                *((s, "") for s in (Status.PENDING, Status.STARTING, Status.RUNNING)),
            ]:
                run.status.status, run.status.sub_status = status, sub
                text = _to_json(run_utils.format_runs([run], run.pending_at))
                (row,) = json.loads(text)["runs"]
                assert (row["run-id"], row["pending-at"]) == ("5", "2026-01-31 12:00:00Z")
                words[status, sub] = row["status"]
            assert words == {
                (Status.FINISHED, SubStatus.COMPLETED): flower_words.COMPLETED,
                (Status.FINISHED, SubStatus.FAILED): flower_words.FAILED,
                (Status.FINISHED, SubStatus.STOPPED): flower_words.STOPPED,
                (Status.PENDING, ""): flower_words.PENDING,
                (Status.STARTING, ""): flower_words.STARTING,
                (Status.RUNNING, ""): flower_words.RUNNING,
            }
            ends = (flower_words.COMPLETED, flower_words.FAILED, flower_words.STOPPED)
            assert all(word.startswith(f"{flower_words.FINISHED}:") for word in ends)

    @pytest.mark.filterwarnings("ignore:The 'is_flag' and 'flag_value':DeprecationWarning")
    def test_the_command_line_is_a_module_whose_app_prints_logs(self) -> None:
        import click
        import typer

        with rests_on(flower_words.COMMAND_LINE, "flsim run and flsim runs on a network"):
            app = found(f"{flower_words.COMMAND_LINE}.app")
            assert f"from {flower_words.COMMAND_LINE} import app" in flower_words.LOGS
            command = typer.main.get_command(app)
            assert isinstance(command, click.Group)
            assert {"run", "log", "list", "stop"} <= set(command.commands)
            options = [
                o for p in command.commands["log"].params for o in (*p.opts, *p.secondary_opts)
            ]
            assert {"--show", "--stream"} <= set(options)


@pytest.fixture
def runtime_api() -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """Takes any request as a SuperLink's Runtime API would: address, and what was requested."""
    came: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.path, dict(self.headers), body))
            self.send_response(200)
            self.send_header("Content-Type", "application/protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestFailingATask:
    def test_the_log_and_the_end_are_sent_with_the_tasks_token(self, runtime_api: Any) -> None:
        from flwr.proto.log_pb2 import PushLogsRequest
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest

        address, came = runtime_api
        with rests_on("RuntimeHttpClient", "the end of a run whose process was killed"):
            flower_processes.fail_task(address, "secret", ["a", "b"], "killed", roots=None)
            (logs, headers, log), (end, _, output) = came
            assert (logs, end) == ("/v1/runtime/push-logs", "/v1/runtime/push-task-output")
            assert any("secret" in value for value in headers.values())
            assert list(PushLogsRequest.FromString(log).logs) == ["a", "b"]
            told = PushTaskOutputRequest.FromString(output)
            assert (told.sub_status, told.details) == ("failed", "killed")

    def test_nothing_happens_where_nobody_answers(self, free_port: int) -> None:
        flower_processes.fail_task(f"127.0.0.1:{free_port}", "t", [], "killed", roots=None)


def test_strings_need_no_import_of_flower() -> None:
    """A container's process that stays keeps its memory small."""
    code = "import sys, flsimulation.internals.flower_words; assert 'flwr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
