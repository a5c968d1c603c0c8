"""Dashboard "One client"."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import recording as r
from monitoring.federation import CLIENT_STATES, SLOW
from monitoring.layout import CLIENT_UID, build, row
from monitoring.panels import (
    BLUE,
    DATASOURCE,
    GREEN,
    RED,
    VALUES,
    YELLOW,
    Query,
    Says,
    Steps,
    graph,
    numbers,
)
from monitoring.promql import promql

_ONE = '{partition="$partition"}'
# The server's container has no partition, as little as an empty choice.
_CONTAINER = '{container="client $partition"}'
_PARTITION = dashboard.VariableModel(
    type_val=dashboard.VariableType.QUERY,
    name="partition",
    label="Partition",
    description="The partition of data that the client trains on.",
    query=promql("label_values(fl_client_fits_total, partition)"),
    definition=promql("label_values(fl_client_fits_total, partition)"),
    datasource=DATASOURCE,
    refresh=dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED,
    sort=dashboard.VariableSort.NUMERICAL_ASC,
)
_NO_FIT = "no training yet"
_NO_CONTAINER = "no container yet"
_NO_MESSAGE = "no message yet"
_DOWN = {"-1": ("down", RED)}


def _or_down(expression: str) -> str:
    """A value of the client, or -1 where the client is down: then it has none."""
    return f"{expression} or on() -1 * max({r.DOWN}{_ONE})"


def _number(says: Says, expression: str, steps: Steps = ((None, BLUE),)) -> dashboard.Panel:
    return numbers(says, Query(_or_down(expression)), steps=steps, mappings=_DOWN)


_NOW = row(
    4,
    numbers(
        Says("State", "Whether the client is down, connected or at work.", "none", "no client yet"),
        Query(f"max({r.STATE}{_ONE})"),
        mappings=CLIENT_STATES,
    ),
    _number(
        Says(
            "Accuracy",
            "Of the global model on this client's held-out part.",
            "percentunit",
            "not evaluated yet",
            decimals=1,
        ),
        f"max(fl_client_accuracy{_ONE})",
        ((None, GREEN),),
    ),
    _number(
        Says(
            "Loss",
            "Of the global model on this client's held-out part.",
            "none",
            "not evaluated yet",
            decimals=3,
        ),
        f"max(fl_client_loss{_ONE})",
    ),
    _number(
        Says(
            "Training loss",
            "Mean loss over the last local epoch.",
            "none",
            _NO_FIT,
            decimals=3,
        ),
        f"max(fl_client_train_loss{_ONE})",
    ),
    _number(
        Says("Training time", "Mean of its last five trainings in this run.", "s", _NO_FIT),
        f"max(fl_client_fit_mean_seconds{_ONE})",
    ),
    _number(
        Says(
            "Times the median",
            "Its training time, times that of the median client. From 2 on it counts as slow.",
            "none",
            _NO_FIT,
            decimals=1,
        ),
        f"max({r.FIT_RATIO}{_ONE})",
        SLOW,
    ),
    _number(
        Says(
            "Memory used",
            "Share of the memory that the container may use; past 1 it is killed.",
            "percentunit",
            _NO_CONTAINER,
        ),
        f"max({r.MEMORY_SHARE}{_CONTAINER})",
        ((None, GREEN), (0.75, YELLOW), (0.9, RED)),
    ),
    _number(
        Says(
            "CPU used",
            "Share of the cores that the container may use.",
            "percentunit",
            _NO_CONTAINER,
        ),
        f"max({r.CPU_SHARE}{_CONTAINER})",
        ((None, GREEN),),
    ),
)

_LEARNING = row(
    9,
    graph(
        Says(
            "Loss by round",
            "Of the global model on this client's held-out part, of its own last training, "
            "and of the global model on all clients' held-out parts.",
            "none",
            "not evaluated yet",
            decimals=3,
        ),
        Query(f"max(fl_client_loss{_ONE})", "this client"),
        Query(f"max(fl_client_train_loss{_ONE})", "its training"),
        Query('max(fl_global_loss{source="federated"})', "all clients"),
        stepped=True,
    ),
    graph(
        Says(
            "Accuracy by round",
            "Of the global model on this client's held-out part, and on those of all.",
            "percentunit",
            "not evaluated yet",
            max=1,
        ),
        Query(f"max(fl_client_accuracy{_ONE})", "this client"),
        Query('max(fl_global_accuracy{source="federated"})', "all clients"),
        stepped=True,
    ),
    graph(
        Says(
            "Training time by round",
            "Mean of the last five local trainings in this run: this client's, and that of "
            "the median client.",
            "s",
            _NO_FIT,
        ),
        Query(f"max(fl_client_fit_mean_seconds{_ONE})", "this client"),
        Query(r.FIT_MEDIAN, "median"),
        stepped=True,
    ),
)

_RESOURCES = row(
    9,
    graph(
        Says(
            "CPU",
            "Cores in use over 30 seconds, and the cores that the container may use.",
            "suffix:cores",
            _NO_CONTAINER,
        ),
        Query(f"max({r.CPU_CORES}{_CONTAINER})", "in use"),
        Query(f"max({r.CPU_LIMIT}{_CONTAINER})", "limit"),
    ),
    graph(
        Says(
            "Memory",
            "Memory in use, and the memory that the container may use.",
            "bytes",
            _NO_CONTAINER,
        ),
        Query(f"max({r.MEMORY}{_CONTAINER})", "in use"),
        Query(f"max({r.MEMORY_LIMIT}{_CONTAINER})", "limit"),
    ),
    graph(
        Says(
            "Bytes a message",
            "Payload of the last message in this run: down to the client, up from it.",
            "bytes",
            _NO_MESSAGE,
            soft_max=1,
        ),
        Query(
            f"max by (direction) (fl_client_last_message_bytes{_ONE})",
            "{{direction}}",
        ),
        stepped=True,
    ),
)

_TOTALS = row(
    4,
    numbers(
        Says(
            "Work done",
            "Local trainings, epochs in them, and examples trained on, each epoch anew, since "
            "the client's container started.",
            "short",
            _NO_FIT,
        ),
        Query(_or_down(f"sum(fl_client_fits_total{_ONE})"), "trainings"),
        Query(_or_down(f"sum(fl_client_epochs_total{_ONE})"), "epochs"),
        Query(_or_down(f"sum(fl_client_examples_total{_ONE})"), "examples"),
        mappings=_DOWN,
    ),
    numbers(
        Says("Time in training", "Seconds since the client's container started.", "s", _NO_FIT),
        Query(_or_down(f"sum(fl_client_fit_duration_seconds_sum{_ONE})")),
        mappings=_DOWN,
    ),
    numbers(
        Says(
            "Messages so far",
            "Payload since the client's container started: down to it, up from it.",
            "bytes",
            _NO_MESSAGE,
        ),
        *(
            Query(
                _or_down(
                    f'sum(fl_client_message_bytes_total{{partition="$partition", direction="{way}"}})'
                ),
                way,
            )
            for way in VALUES["direction"]
        ),
        mappings=_DOWN,
    ),
    numbers(
        Says(
            "Crashes",
            "Processes of this client that were killed before they answered.",
            "none",
            "no client yet",
        ),
        Query(_or_down(f"max({r.CRASHES}{_CONTAINER})")),
        steps=((None, GREEN), (1, RED)),
        mappings=_DOWN,
    ),
    widths=(9, 4, 7, 4),
)


def client() -> Dashboard:
    """The dashboard of the client that holds one partition."""
    return build(
        CLIENT_UID,
        "One client",
        "What one client learns, how long it takes, and what it takes of the machine.",
        [_NOW, _LEARNING, _RESOURCES, _TOTALS],
        variables=[_PARTITION],
    )
