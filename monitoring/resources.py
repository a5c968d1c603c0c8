"""Dashboard "Resources"."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import recording as r
from monitoring.columns import Column, rows
from monitoring.layout import RESOURCES_UID, ROW_TO_CLIENT, build, row
from monitoring.panels import (
    FEW_CLIENTS,
    GREEN,
    GREY,
    ORANGE,
    RED,
    YELLOW,
    Query,
    Says,
    by_client,
    graph,
    numbers,
)

_NO_CONTAINER = "no container yet"
_FULL = ((None, GREEN), (0.75, YELLOW), (0.9, RED))  # share of a limit
_MANY = (
    f"of more than {FEW_CLIENTS} clients the lowest, the median and the highest, and the highest of "
    "those without a partition"
)


def _containers(name: str) -> tuple[Query, ...]:
    """The server's line, and those of the clients."""
    return (
        Query(f'{name}{{container="server"}}', "server"),
        *_clients(name),
    )


def _clients(name: str) -> tuple[Query, ...]:
    """The lines of the clients; one for those that no run has given a partition."""
    free = f'max({name}{{container!="server", partition=""}})'
    return (
        *by_client(f'{name}{{partition!=""}}', "{{container}}"),
        Query(free, "no partition, highest"),
    )


_NOW = row(
    4,
    numbers(
        Says(
            "CPU now",
            "Cores that the server and all clients use, over 30 seconds.",
            "suffix:cores",
            _NO_CONTAINER,
            decimals=2,
        ),
        Query(f"sum({r.CPU_CORES})"),
    ),
    numbers(
        Says(
            "Memory now",
            "Memory that the server and all clients have in use.",
            "bytes",
            _NO_CONTAINER,
        ),
        Query(f"sum({r.MEMORY})"),
    ),
    numbers(
        Says(
            "CPU time a round",
            "Seconds of one core that a round takes of all containers now: the cores in use, "
            "times the mean seconds of this run's rounds.",
            "s",
            "no round in progress",
        ),
        Query(
            f"""
            sum({r.CPU_CORES}) * (max(fl_run_round_mean_seconds) > 0)
              and {r.WHILE_RUNNING}
            """
        ),
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
            "Messages in total",
            "Payload since the server started: down to the clients, up from them.",
            "bytes",
        ),
        Query("sum by (direction) (fl_message_bytes_total)", "{{direction}}"),
        names=True,
    ),
    numbers(
        Says(
            "Trouble",
            "Processes of clients that were killed before they answered, since their containers "
            "started, containers that cannot do their work now, and claims of another client's name.",
            "none",
            _NO_CONTAINER,
        ),
        Query("sum(fl_client_crashes_total)", "crashes"),
        Query("sum(fl_container_failing)", "failing"),
        Query("sum(fl_clients_refused)", "refused"),
        steps=((None, GREEN), (1, RED)),
    ),
)

_CPU = row(
    9,
    graph(
        Says(
            "CPU",
            f"Cores in use by container, over 30 seconds; {_MANY}.",
            "suffix:cores",
            _NO_CONTAINER,
            decimals=2,
        ),
        *_containers(r.CPU_CORES),
        legend_right=True,
    ),
    graph(
        Says(
            "CPU, share of the limit",
            f"Cores in use, of those that the container may use; {_MANY}. At 1 it is held back.",
            "percentunit",
            _NO_CONTAINER,
            soft_max=1,
        ),
        *_containers(r.CPU_SHARE),
        steps=((None, GREEN), (1, ORANGE)),
        legend_right=True,
    ),
)

_MEMORY = row(
    9,
    graph(
        Says(
            "Memory",
            f"Memory in use by container, without file cache that can be dropped; {_MANY}.",
            "bytes",
            _NO_CONTAINER,
        ),
        *_containers(r.MEMORY),
        legend_right=True,
    ),
    graph(
        Says(
            "Memory, share of the limit",
            f"Memory in use, of what the container may use; {_MANY}. Past 1 it is killed; the "
            "dashed lines are at 0.75 and 0.9.",
            "percentunit",
            _NO_CONTAINER,
            soft_max=1,
        ),
        *_containers(r.MEMORY_SHARE),
        steps=_FULL,
        legend_right=True,
    ),
)

_CONTAINERS = row(
    10,
    rows(
        Says(
            "CPU time by container",
            "Seconds of one core since the container started, the highest first.",
            "none",
            _NO_CONTAINER,
        ),
        [Query(r.CPU_SECONDS)],
        [
            Column("Container", "container", width=150),
            Column("CPU time", "Value", "s", gauge=True),
        ],
        sort=(("CPU time", True),),
    ),
    rows(
        Says(
            "Messages by client",
            "Payload of each client's messages in both directions since its container started, "
            "the highest first.",
            "none",
            "no message yet",
        ),
        [Query("sum by (partition) (fl_client_message_bytes_total)")],
        [
            Column("Client", "partition", width=70, links=[ROW_TO_CLIENT]),
            Column("Payload", "Value", "bytes", gauge=True),
        ],
        sort=(("Payload", True),),
    ),
    graph(
        Says(
            "Crashes by client",
            "Processes that were killed before they answered, since the client's container "
            f"started; {_MANY}.",
            "none",
            "no client yet",
            decimals=0,
            soft_max=1,
        ),
        *_clients(r.CRASHES),
        stepped=True,
        legend_right=True,
    ),
)

_SINCE_START = row(
    4,
    numbers(
        Says(
            "Rounds in total",
            "Rounds of all runs since the server started.",
            "none",
        ),
        Query("sum(fl_rounds_total)"),
    ),
    numbers(
        Says(
            "Time in rounds",
            "Seconds that the rounds of all runs took since the server started: in all, and by "
            "phase.",
            "s",
        ),
        Query("sum(fl_round_duration_seconds_sum)", "all"),
        Query("sum by (phase) (fl_round_phase_duration_seconds_sum)", "{{phase}}"),
    ),
    numbers(
        Says(
            "Failures in total",
            "Answers of clients that failed or did not come, in all runs since the server "
            "started, by reason.",
            "none",
        ),
        Query("sum by (reason) (fl_client_failures_total)", "{{reason}}"),
        names=True,
        steps=((None, GREY), (1, RED)),
    ),
    numbers(
        Says(
            "Clients that joined or left",
            "Clients that joined or left runs in progress, came back, or were refused, in all runs since "
            "the server started; only of runs with round.late = join.",
            "none",
        ),
        Query("sum by (move) (fl_client_moves_total)", "{{move}}"),
        names=True,
    ),
    numbers(
        Says(
            "Certificates",
            "Time until the certificates of the CA and of the SuperLink expire.",
            "s",
            "no certificates",
        ),
        Query("min by (certificate) (fl_certificate_remaining_seconds)", "{{certificate}}"),
        names=True,
        steps=((None, RED), (14 * 86400, ORANGE), (30 * 86400, GREEN)),
    ),
    widths=(4, 6, 6, 4, 4),
)


def resources() -> Dashboard:
    """The dashboard of what the containers take of the machine."""
    return build(
        RESOURCES_UID,
        "Resources",
        "What the server and the clients take of the machine, and what runs cost.",
        [_NOW, _CPU, _MEMORY, _CONTAINERS, _SINCE_START],
    )
