"""Dashboard "Resources"."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import recording as r
from monitoring.layout import RESOURCES_UID, build, row
from monitoring.panels import GREEN, GREY, ORANGE, RED, YELLOW, Query, Says, bars, graph, numbers

_NO_CONTAINER = "no container yet"
_FULL = ((None, GREEN), (0.75, YELLOW), (0.9, RED))  # share of a limit

_NOW = row(
    4,
    numbers(
        Says(
            "CPU now",
            "Cores that the server and all clients use, over 30 seconds.",
            "suffix: cores",
            _NO_CONTAINER,
            decimals=2,
        ),
        Query(f"sum({r.CPU_CORES})"),
        sparkline=True,
    ),
    numbers(
        Says(
            "Memory now",
            "Memory that the server and all clients have in use.",
            "bytes",
            _NO_CONTAINER,
        ),
        Query(f"sum({r.MEMORY})"),
        sparkline=True,
    ),
    numbers(
        Says(
            "CPU time in total",
            "What the running containers have cost since they started: seconds of one "
            "core, server and clients together.",
            "s",
            _NO_CONTAINER,
        ),
        Query(f"sum({r.CPU_SECONDS})"),
    ),
    numbers(
        Says(
            "CPU time a round",
            "CPU time of all containers for one round, over 10 minutes.",
            "s",
            "no round in the last 10 minutes",
        ),
        Query(
            """
            sum(rate(fl_container_cpu_seconds_total[10m]))
              / (sum(rate(fl_rounds_total[10m])) > 0)
            or
            sum(fl_container_cpu_seconds_total) / (sum(fl_rounds_total) > 0)
            """
        ),
    ),
    numbers(
        Says(
            "Messages in total",
            "Payload since the server started: down to the clients, up from them.",
            "bytes",
        ),
        Query("sum by (direction) (fl_message_bytes_total)", "{{direction}}"),
        names=True,
    ),
    numbers(
        Says(
            "Crashes",
            "Processes of clients that were killed before they answered.",
            "none",
            "none yet",
        ),
        # Clients that never crashed have no such series.
        Query("sum(fl_client_crashes_total) or 0 * sum(fl_client_info)"),
        steps=((None, GREEN), (1, RED)),
    ),
)

_CPU = row(
    8,
    graph(
        Says(
            "CPU",
            "Cores in use by container, over 30 seconds.",
            "suffix: cores",
            _NO_CONTAINER,
        ),
        Query(r.CPU_CORES, "{{container}}"),
    ),
    graph(
        Says(
            "CPU, share of the limit",
            "Cores in use, of those that the container may use. At 1 it is held back.",
            "percentunit",
            _NO_CONTAINER,
        ),
        Query(r.CPU_SHARE, "{{container}}"),
        steps=((None, GREEN), (1, ORANGE)),
    ),
)

_MEMORY = row(
    8,
    graph(
        Says(
            "Memory",
            "Memory in use by container, without file cache that can be dropped.",
            "bytes",
            _NO_CONTAINER,
        ),
        Query(r.MEMORY, "{{container}}"),
    ),
    graph(
        Says(
            "Memory, share of the limit",
            "Memory in use, of what the container may use. Past 1 it is killed; the "
            "dashed lines are at 0.75 and 0.9.",
            "percentunit",
            _NO_CONTAINER,
        ),
        Query(r.MEMORY_SHARE, "{{container}}"),
        steps=_FULL,
    ),
)

_TOTALS = row(
    8,
    graph(
        Says(
            "Messages by client",
            "Payload of each client's messages in both directions, bytes a second, by partition.",
            "binBps",
            "no message yet",
        ),
        Query(
            """
            sum by (partition) (rate(fl_client_message_bytes_total[$__rate_interval]))
            """,
            "client {{partition}}",
        ),
    ),
    bars(
        Says(
            "CPU time by container",
            "Seconds of one core since the container started: the ten highest.",
            "s",
            _NO_CONTAINER,
        ),
        Query(f"sort_desc(topk(10, {r.CPU_SECONDS}))", "{{container}}"),
        steps=((None, GREY),),
    ),
    graph(
        Says(
            "Crashes by client",
            "Processes that were killed before they answered, by partition.",
            "none",
            "none yet",
            decimals=0,
        ),
        Query(
            """
            sum by (partition) (fl_client_crashes_total)
            or
            0 * sum by (partition) (fl_client_info)
            """,
            "client {{partition}}",
        ),
        stepped=True,
        stacked=True,
    ),
)


def resources() -> Dashboard:
    """The dashboard of what the containers take of the machine."""
    return build(
        RESOURCES_UID,
        "Resources",
        "What the server and the clients take of the machine, and what a run costs.",
        [_NOW, _CPU, _MEMORY, _TOTALS],
    )
