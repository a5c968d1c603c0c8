"""``python -m flsimulation.node.healthy [ADDRESS]``: the health check of a container.

Healthy is a container whose programs run and whose messages' processes are not killed, and, with an address,
whose SuperLink answers there with a certificate that its clients accept.
"""

from __future__ import annotations

import ssl
import sys
import urllib.request

from flsimulation.host.proxies import spare_local_names
from flsimulation.security.home import is_insecure, trusted_ca

_METRICS = "http://127.0.0.1:8000/metrics"
_WELL = b"fl_container_failing 0"
_SECONDS = 6.0  # for each of two requests; compose.yaml gives 15 s in total


def main() -> None:
    """Exit with status 1, and the reason, if the container is not healthy."""
    spare_local_names()
    for address in sys.argv[1:]:
        _answers(address)
    with urllib.request.urlopen(_METRICS, timeout=_SECONDS) as answer:
        if _WELL not in answer.read():
            sys.exit("its programs do not run, or its messages' processes are killed")


def _answers(address: str) -> None:
    if is_insecure():
        url, context = f"http://{address}/health", None
    else:
        url, context = f"https://{address}/health", ssl.create_default_context(cafile=trusted_ca())
    with urllib.request.urlopen(url, timeout=_SECONDS, context=context):  # noqa: S310 - both are HTTP
        return


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"no answer: {error}")
