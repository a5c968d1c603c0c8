"""Changes to the module of Flower's SuperLink: who serves its app, and who its nodes are.

Why, and what Flower offers by itself, is in docs/decisions/0034.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

Serve: TypeAlias = Callable[[Any, dict[str, Any]], None]
"""Serves an ASGI app with the options of ``uvicorn.run``, until the program is ended."""


def serve_by(serve: Serve) -> None:
    """Replace ``uvicorn.run`` in the SuperLink of this process: one address would serve all APIs."""

    class Server:
        @staticmethod
        def run(app: Any, **options: Any) -> None:
            serve(app, options)

    vars(import_module("flwr.superlink.cli.flower_superlink"))["uvicorn"] = Server


def check_senders() -> None:
    """Reject a reply in the name of another node.

    Flower compares the signature with the node that a request names, but not with the node that the
    message in it names as its sender.
    """
    from fastapi import HTTPException
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.superlink.routers.fleet import node_auth

    authenticate = node_auth.authenticate_node

    def authenticate_sender(request: Any) -> None:
        authenticate(request)
        content = request.state.protobuf_request
        if isinstance(content, PushMessagesRequest) and any(
            message.metadata.src_node_id != content.node.node_id
            for message in content.messages_list
        ):
            raise HTTPException(status_code=401, detail="Invalid sender")

    vars(node_auth)["authenticate_node"] = authenticate_sender


class Nodes:
    """Flower's own registration of nodes, of a SuperLink in this process.

    Parameters
    ----------
    app : FastAPI
        The SuperLink's app.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def register(self, key: str, name: str) -> int:
        """Register a node, as ``flwr supernode register`` does; returns its id.

        Parameters
        ----------
        key : str
            Public key, in OpenSSH's form.
        name : str
            Name of the node.
        """
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes
        from flwr.superlink.servicer.control import control_handlers

        found: Any = load_ssh_public_key(key.encode())
        public = public_key_to_bytes(found)
        if (known := self._state().get_node_id_by_public_key(public)) is not None:
            return int(known)
        request = RegisterNodeRequest(public_key=public, name=name)
        answer = control_handlers.register_node(request, _account(), self._state())
        return int(answer.node_id)

    def unregister(self, node: int) -> None:
        """Unregister a node, as ``flwr supernode unregister`` does: its next request is rejected."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest
        from flwr.superlink.servicer.control import control_handlers

        request = UnregisterNodeRequest(node_id=node)
        with contextlib.suppress(TypeError):  # one that never connected: it is unregistered
            control_handlers.unregister_node(request, _account(), self._state())

    def _state(self) -> Any:
        return self._app.state.linkstate_factory.state()


def _account() -> Any:
    from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
    from flwr.supercore.auth.typing import AccountInfo

    return AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)
