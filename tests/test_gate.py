"""What the SuperLink's clients reach, on Flower's own app: their own requests, under their own names."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from fastapi.routing import iter_route_contexts
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto import fleet_pb2 as fleet
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet import node_auth

from flsimulation.internals.flower_superlink import Nodes, check_senders
from flsimulation.internals.flower_words import CLIENT_PATHS
from flsimulation.node import gate
from flsimulation.node.admission import Admission, make_writable_like
from flsimulation.node.gate import ClientsOnly, Renewal
from flsimulation.security.certificates import make_ca, make_server, names_of
from flsimulation.security.home import home
from flsimulation.security.keys import ensure_key, fingerprint
from flsimulation.security.register import Register, wait_for_admission


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(node_auth, "authenticate_node", node_auth.authenticate_node)  # restored
    check_senders()
    app = create_app()
    app.state.enable_supernode_auth = True
    return app


class Http:
    """Requests to an ASGI app."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, path: str, method: str = "POST", **options: Any) -> httpx.Response:
        async def requested() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport) as client:
                return await client.request(method, f"http://superlink{path}", **options)

        return asyncio.run(requested())


@pytest.fixture
def clients(app: Any) -> Http:
    return Http(ClientsOnly(app))


def passed(sent: list[dict[str, Any]], limit: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the SuperLink's app receives of what a client sends, then hangs up."""
    monkeypatch.setattr(gate, "_LARGEST_BODY", limit)
    read: list[Any] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        while not read or read[-1] != "http.disconnect":
            message = await receive()
            read.append(message.get("body", message["type"]))

    async def receive() -> dict[str, Any]:
        return sent.pop(0) if sent else {"type": "http.disconnect"}

    async def send(_: Any) -> None: ...

    scope = {"type": "http", "path": min(CLIENT_PATHS)}
    asyncio.run(ClientsOnly(app)(scope, receive, send))
    return read


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_up_to_the_limit_is_passed_and_a_larger_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Flower, which reads all of it before it looks who sent it, has more in memory."""
    parts = [part(bytes(600), more=True), part(bytes(400), more=False)]
    assert passed([*parts], 1000, monkeypatch) == [bytes(1000), "http.disconnect"]
    assert passed([*parts], 999, monkeypatch) == []
    assert passed([part(b"", more=False)], 0, monkeypatch) == [b"", "http.disconnect"]


def test_what_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [part(bytes(400), more=True) for _ in range(5)]
    assert passed(sent, 1000, monkeypatch) == []
    assert len(sent) == 2


def test_a_client_that_hangs_up_within_its_request_is_no_error_of_the_superlink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert passed([part(b"half", more=True)], 1000, monkeypatch) == []


class Client:
    """Signs requests as Flower's SuperNode does."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.text = ensure_key(folder / name)
        self._key: Any = serialization.load_ssh_private_key((folder / name).read_bytes(), None)
        self.public = public_key_to_bytes(self._key.public_key())

    def post(self, http: Http, path: str, content: Any) -> Any:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        headers = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self._key, now.encode())).decode(),
            TIMESTAMP_HEADER: now,
            "content-type": "application/protobuf",
        }
        return http(f"/v1/fleet/{path}", content=content.SerializeToString(), headers=headers)

    def activate(self, http: Http) -> int:
        request = fleet.ActivateNodeRequest(public_key=self.public, heartbeat_interval=30)
        return int(self.post(http, "activate-node", request).status_code)


def test_clients_reach_the_fleet_api_and_nothing_else(app: Any, clients: Http) -> None:
    routes = [context.route for context in iter_route_contexts(app.routes)]
    paths = {str(getattr(route, "path", "")) for route in routes}
    assert {path for path in paths if path.startswith("/v1/fleet/")} == CLIENT_PATHS
    others = sorted(paths - CLIENT_PATHS - {"/health"})
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"} <= set(others)
    tricks = ["/v1/fleet/../control/start-run", "//v1/control/start-run", "/V1/control/start-run"]
    for path in [*others, *tricks]:
        answer = clients(path)
        assert (answer.status_code, answer.text) == (404, "not for clients\n"), path
    assert clients("/health", "GET").status_code == 200
    for path in CLIENT_PATHS:  # it is there, and wants a signature
        assert clients(path).status_code in (400, 401, 415, 422), path


class TestAdmission:
    @pytest.fixture
    def register(self, tmp_path: Path) -> Register:
        return Register(tmp_path / "runs" / ".clients.json")

    @pytest.fixture
    def waiting(self, tmp_path: Path) -> Path:
        (tmp_path / "waiting").mkdir()
        return tmp_path / "waiting"

    def test_a_client_joins_from_its_admission_to_its_end(
        self, app: Any, clients: Http, register: Register, waiting: Path, tmp_path: Path
    ) -> None:
        admission, berlin = Admission(register, waiting, Nodes(app)), Client(tmp_path, "berlin")
        assert berlin.activate(clients) == 412  # nobody knows it
        wait_for_admission(waiting, "berlin", berlin.text)
        admission.look()
        assert list(waiting.iterdir()) == []
        assert berlin.activate(clients) == 200
        ((node, name),) = register.names().items()
        assert name == "berlin"
        pull = fleet.PullMessagesRequest(node=Node(node_id=node))
        assert berlin.post(clients, "pull-messages", pull).status_code == 200
        register.revoke("berlin")
        admission.look()
        assert berlin.post(clients, "pull-messages", pull).status_code == 401
        assert berlin.activate(clients) == 412
        assert register.names() == {}

    def test_one_that_never_came_can_be_revoked(
        self, app: Any, clients: Http, register: Register, waiting: Path, tmp_path: Path
    ) -> None:
        admission, berlin = Admission(register, waiting, Nodes(app)), Client(tmp_path, "berlin")
        register.admit("berlin", berlin.text)
        admission.look()
        register.revoke("berlin")
        admission.look()
        assert berlin.activate(clients) == 412

    def test_a_superlink_that_starts_again_knows_who_is_admitted(
        self, app: Any, clients: Http, register: Register, waiting: Path, tmp_path: Path
    ) -> None:
        berlin = Client(tmp_path, "berlin")
        Admission(register, waiting, Nodes(create_app())).look()
        register.admit("berlin", berlin.text)
        Admission(register, waiting, Nodes(app)).look()
        assert berlin.activate(clients) == 200

    def test_a_second_claimant_is_refused_named_and_counted(
        self,
        app: Any,
        register: Register,
        waiting: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        admission = Admission(register, waiting, Nodes(app))
        first, second = Client(tmp_path, "first"), Client(tmp_path, "second")
        wait_for_admission(waiting, "berlin", first.text)
        admission.look()
        for _ in range(2):
            wait_for_admission(waiting, "berlin", second.text)
            admission.look()
        assert [one.key for one in register.clients()] == [first.text]
        assert register.refused() == {f"berlin {fingerprint(second.text)}": 2}
        said = [line for line in capsys.readouterr().out.splitlines() if "refused" in line]
        assert len(said) == 1
        assert said[0].startswith(f"flsim: a client with {fingerprint(second.text)} is refused: ")
        assert list(waiting.iterdir()) == []

    def test_a_name_with_a_folder_of_its_own_is_claimed_nowhere_else(
        self, app: Any, register: Register, waiting: Path, tmp_path: Path
    ) -> None:
        apart = {name: tmp_path / "apart" / name for name in ("berlin", "lodz")}
        for folder in apart.values():
            folder.mkdir(parents=True)
        admission = Admission(register, waiting, Nodes(app), apart)
        thief, berlin, lodz = (Client(tmp_path, name) for name in ("thief", "berlin", "lodz"))
        wait_for_admission(waiting, "berlin", thief.text)  # before berlin is there
        wait_for_admission(apart["lodz"], "berlin", thief.text)
        admission.look()
        assert register.clients() == []
        assert register.refused() == {f"berlin {fingerprint(thief.text)}": 2}
        for one in (berlin, lodz):
            wait_for_admission(apart[one.name], one.name, one.text)
        admission.look()
        assert {one.name: one.key for one in register.clients()} == {
            "berlin": berlin.text,
            "lodz": lodz.text,
        }
        assert [list(folder.iterdir()) for folder in (waiting, *apart.values())] == [[], [], []]

    def test_a_folder_that_is_a_link_to_another_clients_is_not_read(
        self, app: Any, register: Register, waiting: Path, tmp_path: Path
    ) -> None:
        berlin, link = Client(tmp_path, "berlin"), tmp_path / "lodz"
        file = wait_for_admission(waiting, "berlin", berlin.text)
        link.symlink_to(waiting)
        Admission(register, tmp_path / "none", Nodes(app), {"lodz": link}).look()
        assert (file.exists(), register.clients(), register.refused()) == (True, [], {})

    def test_only_names_that_clients_may_take_are_admitted_by_themselves(
        self,
        app: Any,
        register: Register,
        waiting: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        admission = Admission(register, waiting, Nodes(app), names="[0-9a-f]{12}")
        container, berlin = Client(tmp_path, "0123456789ab"), Client(tmp_path, "berlin")
        for one in (container, berlin):
            wait_for_admission(waiting, one.name, one.text)
        admission.look()
        assert [one.name for one in register.clients()] == ["0123456789ab"]
        assert register.refused() == {f"berlin {fingerprint(berlin.text)}": 1}
        said = "berlin: not a name of --admit-names; compare the fingerprint and flsim admit berlin"
        assert said in capsys.readouterr().out
        register.admit("berlin", berlin.text)  # by a person
        wait_for_admission(waiting, "berlin", berlin.text)
        admission.look()
        assert {one.name for one in register.clients()} == {"0123456789ab", "berlin"}
        assert list(register.refused().values()) == [1]

    def test_nobody_gets_or_answers_the_messages_of_another(
        self, app: Any, clients: Http, register: Register, waiting: Path, tmp_path: Path
    ) -> None:
        berlin, paris = Client(tmp_path, "berlin"), Client(tmp_path, "paris")
        for one in (berlin, paris):
            register.admit(one.name, one.text)
        Admission(register, waiting, Nodes(app)).look()
        nodes = {name: node for node, name in register.names().items()}
        assert [one.activate(clients) for one in (berlin, paris)] == [200, 200]

        def pull(one: Client, name: str) -> int:
            request = fleet.PullMessagesRequest(node=Node(node_id=nodes[name]))
            return int(one.post(clients, "pull-messages", request).status_code)

        assert [pull(paris, "paris"), pull(paris, "berlin")] == [200, 401]

        def push(sender: str) -> Any:
            message = MessageProto()
            message.metadata.src_node_id = nodes[sender]
            request = fleet.PushMessagesRequest(
                node=Node(node_id=nodes["paris"]), messages_list=[message]
            )
            return paris.post(clients, "push-messages", request)

        assert push("berlin").status_code == 401
        assert "Invalid sender" in push("berlin").text
        assert push("paris").status_code != 401  # it fails later: there is no run


def test_a_folder_that_was_replaced_by_a_link_is_not_made_writable(tmp_path: Path) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "8081").symlink_to(private)
    with pytest.raises(OSError, match="8081"):
        make_writable_like(shared / "8081", shared)
    assert private.stat().st_mode & 0o777 == 0o700
    make_writable_like(shared / "8082", shared)
    assert (shared / "8082").stat().st_mode & 0o777 == 0o777


def served_names(server: ssl.SSLContext) -> list[str]:
    """Names in the certificate that a new connection gets."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    ends = [
        server.wrap_bio(incoming, outgoing, server_side=True),
        trusting.wrap_bio(outgoing, incoming),
    ]
    for _ in range(3):
        for end in reversed(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    der = ends[1].getpeercert(binary_form=True)
    assert der is not None
    return names_of(x509.load_der_x509_certificate(der))


def test_a_half_written_renewal_is_used_when_its_second_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the two files, a client that connects gets the old certificate, and nothing fails."""
    monkeypatch.setenv("FLSIM_HOME", str(tmp_path))
    place, now = home(), datetime.datetime.now(datetime.UTC)
    ca = make_ca(now)
    make_server(ca, ["before"], now).write(place.server, place.server_key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(place.server, place.server_key)
    config = SimpleNamespace(ssl=server)
    renewal = Renewal([cast("Any", SimpleNamespace(config=config))])
    renewed = make_server(ca, ["after"], now)
    renewed.write(tmp_path / "renewed.pem", tmp_path / "renewed.key")
    (tmp_path / "renewed.key").replace(place.server_key)
    renewal.look()
    assert (served_names(server), capsys.readouterr().out) == (["before"], "")
    (tmp_path / "renewed.pem").replace(place.server)
    renewal.look()
    assert served_names(server) == ["after"]
    assert "was renewed" in capsys.readouterr().out
