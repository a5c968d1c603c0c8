"""Dashboard "One client"."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import recording as r
from monitoring.layout import CLIENT_UID, build, row
from monitoring.panels import (
    BLUE,
    DATASOURCE,
    GREEN,
    GREY,
    RED,
    YELLOW,
    Query,
    Says,
    graph,
    numbers,
)
from monitoring.promql import promql

_ONE = '{partition="$partition"}'
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

_NOW = row(
    4,
    numbers(
        Says("Reached", "Whether the server can reach this client.", "none", "no client yet"),
        Query(f"max(fl_client_connected{_ONE})"),
        steps=((None, RED), (1, GREEN)),
        mappings={"1": ("connected", GREEN), "0": ("down", RED)},
    ),
    numbers(
        Says(
            "Accuracy",
            "Of the global model on this client's held-out part.",
            "percentunit",
            "not evaluated yet",
            decimals=1,
        ),
        Query(f"max(fl_client_accuracy{_ONE})"),
        steps=((None, GREEN),),
    ),
    numbers(
        Says(
            "Loss",
            "Of the global model on this client's held-out part.",
            "none",
            "not evaluated yet",
            decimals=3,
        ),
        Query(f"max(fl_client_loss{_ONE})"),
        steps=((None, BLUE),),
    ),
    numbers(
        Says(
            "Last training",
            "Mean loss over the last local epoch.",
            "none",
            _NO_FIT,
            decimals=3,
        ),
        Query(f"max(fl_client_train_loss{_ONE})"),
        steps=((None, BLUE),),
    ),
    numbers(
        Says("Work done", "Local trainings, and epochs in them.", "short", _NO_FIT),
        Query(f"sum(fl_client_fits_total{_ONE})", "trainings"),
        Query(f"sum(fl_client_epochs_total{_ONE})", "epochs"),
    ),
    numbers(
        Says(
            "Examples",
            "Examples trained on, each epoch anew.",
            "short",
            _NO_FIT,
        ),
        Query(f"sum(fl_client_examples_total{_ONE})"),
    ),
    numbers(
        Says(
            "Crashes",
            "Processes of this client that were killed before they answered.",
            "none",
            "none yet",
        ),
        # A client that never crashed has no such series.
        Query(f"sum(fl_client_crashes_total{_ONE}) or 0 * sum(fl_client_fits_total{_ONE})"),
        steps=((None, GREEN), (1, RED)),
    ),
    widths=(3, 3, 3, 3, 6, 3, 3),
)

_LEARNING = row(
    8,
    graph(
        Says(
            "Loss",
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
            "Accuracy",
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
            "Training time",
            "Mean seconds of a local training over 10 minutes: this client's, and that of "
            "the median client.",
            "s",
            "no training in the last 10 minutes",
        ),
        Query(f"{r.FIT_SECONDS}{_ONE}", "this client"),
        Query(r.FIT_MEDIAN, "median"),
    ),
)

_RESOURCES = row(
    8,
    graph(
        Says(
            "CPU",
            "Cores in use over 30 seconds, and the cores that the container may use.",
            "suffix: cores",
            "no container yet",
        ),
        Query(f"{r.CPU_CORES}{_ONE}", "in use"),
        Query(f"{r.CPU_LIMIT}{_ONE}", "limit"),
    ),
    graph(
        Says(
            "Memory",
            "Memory in use, and the memory that the container may use.",
            "bytes",
            "no container yet",
        ),
        Query(f"{r.MEMORY}{_ONE}", "in use"),
        Query(f"{r.MEMORY_LIMIT}{_ONE}", "limit"),
    ),
    graph(
        Says(
            "Messages",
            "Payload of this client's messages, bytes a second: down to it, up from it.",
            "binBps",
            "no message yet",
        ),
        Query(
            f"""
            sum by (direction)
              (rate(fl_client_message_bytes_total{_ONE}[$__rate_interval]))
            """,
            "{{direction}}",
        ),
    ),
)

_SHARES = row(
    4,
    numbers(
        Says(
            "Memory used",
            "Share of the memory that the container may use; past 1 it is killed.",
            "percentunit",
            "no container yet",
        ),
        Query(f"{r.MEMORY_SHARE}{_ONE}"),
        steps=((None, GREEN), (0.75, YELLOW), (0.9, RED)),
    ),
    numbers(
        Says(
            "CPU used",
            "Share of the cores that the container may use.",
            "percentunit",
            "no container yet",
        ),
        Query(f"{r.CPU_SHARE}{_ONE}"),
        steps=((None, GREEN),),
    ),
    numbers(
        Says(
            "Training time against the median",
            "Over 10 minutes. From 2 on the client counts as slow.",
            "suffix: times",
            "no training in the last 10 minutes",
            decimals=1,
        ),
        Query(f"{r.FIT_RATIO}{_ONE}"),
        steps=((None, GREEN), (1.5, YELLOW), (2, RED)),
    ),
    numbers(
        Says(
            "Messages so far",
            "Payload since the client's container started: down to it, up from it.",
            "bytes",
            "no message yet",
        ),
        Query(f"sum by (direction) (fl_client_message_bytes_total{_ONE})", "{{direction}}"),
        steps=((None, GREY),),
        names=True,
    ),
)


def client() -> Dashboard:
    """The dashboard of the client that holds one partition."""
    return build(
        CLIENT_UID,
        "One client",
        "What one client learns, how long it takes, and what it takes of the machine.",
        [_NOW, _LEARNING, _RESOURCES, _SHARES],
        variables=[_PARTITION],
    )
