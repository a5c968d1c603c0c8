"""Dashboard "Federation at a glance"."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import recording as r
from monitoring.layout import FEDERATION_UID, TO_CLIENT, build, row
from monitoring.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    YELLOW,
    Query,
    Says,
    bars,
    graph,
    numbers,
    rows,
    states,
    words,
)

STATES = {"running": BLUE, "completed": GREEN, "failed": RED, "interrupted": ORANGE}
"""States of a run and their colours; in the panel the n-th state is the number n."""

_STATE = " + ".join(
    f'{number} * max(fl_run_state{{state="{state}"}})' for number, state in enumerate(STATES, 1)
)
# The server has all its series from the start, at 0; only a run makes these more than that.
_ASKED = "and on() max(fl_run_rounds) > 0"
_EXPECTED = "and on() max(fl_clients_expected) > 0"
_SLOW = ((None, GREEN), (1.5, YELLOW), (2, RED))  # times the median

_NOW = row(
    4,
    numbers(
        Says(
            "State",
            "Whether a run goes on, and how the last one ended.",
            "none",
        ),
        Query(_STATE, "state"),
        mappings={
            "0": ("no run yet", GREY),
            **{str(n): (name, STATES[name]) for n, name in enumerate(STATES, 1)},
        },
    ),
    numbers(
        Says("Round", "Rounds completed in this run, and rounds asked for.", "none"),
        Query(f"max(fl_run_round) {_ASKED}", "done"),
        Query("max(fl_run_rounds) > 0", "of"),
        steps=((None, BLUE),),
    ),
    numbers(
        Says(
            "Accuracy now",
            "Of the global model: on the test set (central), or, without a central test, "
            "on the clients' held-out parts.",
            "percentunit",
            decimals=1,
        ),
        Query(
            'max(fl_global_accuracy{source="central"}) or max(fl_global_accuracy)',
            "accuracy",
        ),
        steps=((None, GREEN),),
        sparkline=True,
    ),
    numbers(
        Says(
            "Loss now",
            "Of the global model: on the test set (central), or, without a central test, "
            "on the clients' held-out parts.",
            "none",
            decimals=3,
        ),
        Query('max(fl_global_loss{source="central"}) or max(fl_global_loss)', "loss"),
        steps=((None, BLUE),),
        sparkline=True,
    ),
    numbers(
        Says(
            "Clients",
            "Clients that the server can reach, clients that the experiment asks for, and clients "
            "that were asked in the current phase of the round.",
            "none",
        ),
        Query(f"max(fl_clients_connected) {_EXPECTED}", "connected"),
        Query("max(fl_clients_expected) > 0", "expected"),
        Query(f"max(fl_clients_selected) {_EXPECTED}", "asked"),
        steps=((None, BLUE),),
    ),
    numbers(
        Says(
            "Clients missing",
            "Clients that the experiment asks for and the server cannot reach.",
            "none",
        ),
        Query("clamp_min(max(fl_clients_expected) - max(fl_clients_connected), 0) " + _EXPECTED),
        steps=((None, GREEN), (1, RED)),
    ),
    widths=(3, 4, 4, 4, 6, 3),
)

_WHAT = row(
    3,
    words(
        Says("Run", "Name of the experiment, strategy, dataset and model.", "none"),
        Query('max by (name, strategy, dataset, model) (fl_run_info{name!=""})'),
        "name",
        "strategy",
        "dataset",
        "model",
    ),
    numbers(
        Says("Seconds a round", "Mean of the rounds of the last 15 minutes.", "s"),
        Query(r.ROUND_SECONDS),
        steps=((None, BLUE),),
    ),
    words(
        Says(
            "Who is down",
            "Partitions whose client was there and cannot be reached now.",
            "none",
            empty="nobody",
        ),
        Query("max by (partition) (fl_client_connected) == 0"),
        "partition",
        rows=8,
    ),
    words(
        Says(
            "Who is slow",
            "Partitions whose client trains more than twice as long as the median client.",
            "none",
            empty="nobody",
        ),
        Query(f"{r.FIT_RATIO} > 2"),
        "partition",
        rows=8,
    ),
    widths=(12, 4, 4, 4),
)

_LEARNING = row(
    8,
    graph(
        Says(
            "Accuracy",
            "Of the global model after each round: central on the test set, federated on "
            "the clients' held-out parts.",
            "percentunit",
            max=1,
        ),
        Query("max by (source) (fl_global_accuracy)", "{{source}}"),
        stepped=True,
    ),
    graph(
        Says(
            "Loss",
            "Of the global model after each round: central on the test set, federated on "
            "the clients' held-out parts.",
            "none",
            decimals=3,
        ),
        Query("max by (source) (fl_global_loss)", "{{source}}"),
        stepped=True,
    ),
    graph(
        Says(
            "Where a round's time goes",
            "Mean seconds of each phase, over the rounds of the last minute, else over all.",
            "s",
            empty="no round in this time",
        ),
        Query(
            """
            sum by (phase) (rate(fl_round_phase_duration_seconds_sum[1m]))
              / sum by (phase) (rate(fl_round_phase_duration_seconds_count[1m])) >= 0
            or
            sum by (phase) (fl_round_phase_duration_seconds_sum)
              / sum by (phase) (fl_round_phase_duration_seconds_count) >= 0
            """,
            "{{phase}}",
        ),
        bars=True,
        stacked=True,
    ),
)

_CLIENTS = row(
    8,
    rows(
        Says(
            "Firing alerts",
            "Alerts of Prometheus that fire now. What to do stands in each alert's text "
            "under Alerting.",
            "none",
            empty="nothing is wrong",
        ),
        Query('max by (alertname, severity, partition, job, cause) (ALERTS{alertstate="firing"})'),
        {
            "alertname": "Alert",
            "severity": "Severity",
            "partition": "Partition",
            "job": "Service",
            "cause": "Cause",
        },
    ),
    states(
        Says(
            "Clients reached",
            "By partition: green while the server can reach the client, red while it "
            "cannot. A click leads to the client.",
            "none",
            empty="no client yet",
        ),
        Query("max by (partition) (fl_client_connected)", "client {{partition}}"),
        {"1": ("connected", GREEN), "0": ("down", RED)},
        links=[TO_CLIENT],
    ),
    bars(
        Says(
            "Slowest clients",
            "Training time of a client, times that of the median client: the ten highest "
            "by partition, over 10 minutes. Red from 2 on.",
            "suffix: times",
            empty="no training in the last 10 minutes",
            decimals=1,
        ),
        Query(f"sort_desc(topk(10, {r.FIT_RATIO}))", "client {{partition}}"),
        steps=_SLOW,
        links=[TO_CLIENT],
    ),
)

_TRAFFIC = row(
    8,
    graph(
        Says(
            "Training time of the clients",
            "Mean seconds of a local training by partition, over 10 minutes.",
            "s",
            empty="no training in the last 10 minutes",
        ),
        Query(r.FIT_SECONDS, "client {{partition}}"),
        links=[TO_CLIENT],
    ),
    graph(
        Says(
            "Failures",
            "Answers of clients that failed or did not come, counted since the server "
            "started, by reason.",
            "none",
            decimals=0,
        ),
        Query("sum by (reason) (fl_client_failures_total)", "{{reason}}"),
        stepped=True,
        stacked=True,
    ),
    graph(
        Says(
            "Messages",
            "Payload of the messages, bytes a second: down to the clients, up from them.",
            "binBps",
        ),
        Query(
            "sum by (direction) (rate(fl_message_bytes_total[$__rate_interval]))",
            "{{direction}}",
        ),
    ),
)


def federation() -> Dashboard:
    """The dashboard that one opens first."""
    return build(
        FEDERATION_UID,
        "Federation at a glance",
        "The run, what it learns, and which clients are down, slow or failing.",
        [_NOW, _WHAT, _LEARNING, _CLIENTS, _TRAFFIC],
    )
