"""What a process that was killed would have told the SuperLink: the end of its task.

Flower misses the process only after a minute without a heartbeat; until then the run is in progress.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

from flwr.common.constant import SubStatus
from flwr.proto.log_pb2 import PushLogsRequest
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient

_ADDRESS, _TOKEN = "--runtime-api-address", "--token"


def fail(arguments: Sequence[str], log: Sequence[str], details: str) -> None:
    """End the task of a ``flwr-serverapp`` as failed; nothing happens where nobody answers.

    Parameters
    ----------
    arguments : sequence of str
        Those that the command was started with.
    log : sequence of str
        The last lines of the run's log.
    details : str
        Why, in one line.
    """
    given = dict(itertools.pairwise(arguments))
    if _ADDRESS not in given or _TOKEN not in given:
        return
    retry = make_simple_http_retry_invoker()
    retry.max_tries = 1
    client = RuntimeHttpClient.from_server_address(
        server_address=given[_ADDRESS],
        insecure="--insecure" in arguments,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=given[_TOKEN]),
        ],
        retry_invoker=retry,
    )
    output = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=details)
    with contextlib.suppress(Exception, RunNotRunningException), contextlib.closing(client):
        client.PushLogs(PushLogsRequest(logs=log))
        client.PushTaskOutput(output)
