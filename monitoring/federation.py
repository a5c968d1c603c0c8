"""Dashboard "Federation at a glance"."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import recording as r
from monitoring.columns import Column, rows
from monitoring.layout import FEDERATION_UID, ROW_TO_CLIENT, TO_CLIENT, build, row
from monitoring.panels import (
    BLUE,
    EXPECTED,
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
    states,
    threshold_steps,
    words,
)

STATES = {
    "running": BLUE,
    "completed": GREEN,
    "degraded": ORANGE,
    "failed": RED,
    "interrupted": YELLOW,
}
"""States of a run and their colours; in the panel the n-th state is the number n."""
CLIENT_STATES = {"0": ("down", RED), "1": ("at work", BLUE), "2": ("connected", GREEN)}
"""Values of `recording.STATE`."""
SEVERITIES = {
    name: (name, colour)
    for name, colour in (("critical", RED), ("warning", ORANGE), ("info", BLUE))
}
"""Of alerts, with their colours."""
SLOW = ((None, GREEN), (1.5, YELLOW), (2, RED))  # times the median

_STATE = " + ".join(
    f'{number} * max(fl_run_state{{state="{state}"}})' for number, state in enumerate(STATES, 1)
)
# The server has all its series from the start, at 0; only a run makes these more than that.
_ASKED = "and on() max(fl_run_rounds) > 0"
_EXPECTED = "and on() max(fl_clients_expected) > 0"
_RUNNING = f"and {r.WHILE_RUNNING}"
# The server may not know yet what Prometheus sees.
_MISSING = f"""
    clamp_min(
      max(fl_clients_expected) - max(fl_clients_connected),
      scalar(count({r.DOWN}) or vector(0))
    )
"""
_NO_ROUND = "no round yet"


def _score(metric: str) -> str:
    return f'max({metric}{{source="central"}}) or max({metric})'


def _file(label: str) -> str:
    """Expression that leaves the folders of a path out of a label."""
    return f'"{label}", "$1$2", "{label}", "([a-z]+:)?/(?:.*/)?([^/]+)"'


_NOW = row(
    4,
    numbers(
        Says("State", "Whether a run is in progress, and how the last one ended.", "none"),
        Query(_STATE, "state"),
        mappings={
            "0": ("no run yet", GREY),
            **{str(n): (name, STATES[name]) for n, name in enumerate(STATES, 1)},
        },
    ),
    numbers(
        Says("Round", "Rounds completed in this run, and rounds that it is to have.", "none"),
        Query(f"max(fl_run_round) {_ASKED}", "done"),
        Query("max(fl_run_rounds) > 0", "of"),
        steps=((None, BLUE),),
    ),
    numbers(
        Says(
            "Time left",
            "The rounds to come, as long as this run's took on average. A run whose target "
            "accuracy is reached, or whose privacy budget is spent, ends sooner.",
            "dthms",
            empty="not known yet",
        ),
        Query(f"{r.LEFT_SECONDS} or on() (vector(-1) unless on() {r.RUNNING} == 1)"),
        steps=((None, BLUE),),
        mappings={"-1": ("no run in progress", GREY)},
    ),
    numbers(
        Says(
            "Seconds a round",
            "How long the current round has taken so far, and the mean of this run's rounds, or "
            "of the last run's.",
            "s",
            empty=_NO_ROUND,
            decimals=1,
        ),
        Query(f"time() - (max(fl_round_started_timestamp_seconds) > 0) {_RUNNING}", "so far"),
        Query("max(fl_run_round_mean_seconds) > 0", "mean"),
        steps=((None, BLUE),),
    ),
    numbers(
        Says(
            "Accuracy",
            "Of the global model, now and at its best in this run: on the test set (central), or, "
            "without a central test, on the clients' held-out parts.",
            "percentunit",
            empty="not evaluated yet",
            decimals=1,
        ),
        Query(_score("fl_global_accuracy"), "now"),
        Query(_score("fl_global_accuracy_highest"), "best"),
        steps=((None, GREEN),),
    ),
    numbers(
        Says(
            "Loss",
            "Of the global model, now and at its lowest in this run: on the test set (central), "
            "or, without a central test, on the clients' held-out parts.",
            "none",
            empty="not evaluated yet",
            decimals=3,
        ),
        Query(_score("fl_global_loss"), "now"),
        Query(_score("fl_global_loss_lowest"), "lowest"),
        steps=((None, BLUE),),
    ),
    widths=(3, 4, 3, 5, 5, 4),
)

_WHO = row(
    4,
    rows(
        Says(
            "Run",
            "The experiment, its strategy, data set, model, seed and privacy: of this run, or of the "
            "last.",
            "none",
        ),
        [
            Query(
                f"""
                label_replace(
                  label_replace(
                    max by (name, strategy, dataset, model, seed, privacy) (fl_run_info{{name!=""}}),
                    {_file("model")}
                  ),
                  {_file("dataset")}
                )
                """
            )
        ],
        [
            Column("Experiment", "name", width=110),
            Column("Strategy", "strategy", width=80),
            Column("Data set", "dataset", width=80),
            Column("Model", "model"),
            Column("Seed", "seed", width=50),
            Column("Privacy", "privacy"),
        ],
    ),
    numbers(
        Says(
            "Clients",
            "Clients that the experiment asks for, those of them that can be reached, and those "
            "that the server or Prometheus cannot reach; after a run, as its end left them.",
            "none",
        ),
        Query("max(fl_clients_expected) > 0", "expected"),
        Query(f"max(fl_clients_expected) - {_MISSING} {_EXPECTED}", "connected"),
        Query(f"{_MISSING} {_EXPECTED}", "missing"),
        steps=((None, BLUE),),
        own={"missing": {"thresholds": threshold_steps(((None, GREEN), (1, RED)))}},
    ),
    numbers(
        Says(
            "Waiting for",
            "Clients whose answer the server waits for, of those that it asked in the current "
            "phase, and how long it has waited.",
            "none",
            empty="no run in progress",
        ),
        Query(f"max(fl_clients_awaited) {_RUNNING}", "clients"),
        Query(f"max(fl_clients_selected) {_RUNNING}", "of"),
        Query(
            f"""
            time() - (max(fl_phase_started_timestamp_seconds) > 0)
              and on() max(fl_clients_awaited) > 0 {_RUNNING}
            """,
            "for",
        ),
        steps=((None, BLUE),),
        own={"for": {"unit": "s", "decimals": 0}},
    ),
    words(
        Says(
            "Who is down",
            "Clients, by partition, that the server or Prometheus cannot reach during a run: the "
            "first six.",
            "none",
            empty="nobody",
        ),
        Query(
            f"""
            label_replace({r.DOWN}, "container", "client $1", "partition", "(.*)")
            or on()
            label_replace(
              vector(1) unless on() {r.RUNNING} == 1,
              "container", "no run in progress", "", ""
            )
            """
        ),
        "container",
        rows=6,
    ),
    widths=(11, 4, 5, 4),
)

_LEARNING = row(
    9,
    graph(
        Says(
            "Accuracy by round",
            "Of the global model after each round: central on the test set, federated on "
            "the clients' held-out parts.",
            "percentunit",
            empty="not evaluated yet",
            max=1,
        ),
        Query("max by (source) (fl_global_accuracy)", "{{source}}"),
        stepped=True,
    ),
    graph(
        Says(
            "Loss by round",
            "Of the global model after each round: central on the test set, federated on "
            "the clients' held-out parts.",
            "none",
            empty="not evaluated yet",
            decimals=3,
        ),
        Query("max by (source) (fl_global_loss)", "{{source}}"),
        stepped=True,
    ),
    graph(
        Says(
            "Accuracy of the clients",
            "Of the global model on the held-out parts of single clients: the lowest, the median "
            "and the highest.",
            "percentunit",
            empty="not evaluated yet",
            max=1,
        ),
        Query("max(fl_client_accuracy)", "highest"),
        Query("quantile(0.5, fl_client_accuracy)", "median"),
        Query("min(fl_client_accuracy)", "lowest"),
        stepped=True,
    ),
)

_TABLE = row(
    12,
    rows(
        Says(
            "Clients by partition",
            "Each client of this run or of the last: state, scores of the global model on its "
            "held-out part, mean of its last five trainings and times the median client's, "
            "memory and CPU. Those that are down come first, then those at work, the slowest "
            "first. A click on a partition leads to the client.",
            "none",
            empty="no client yet",
        ),
        [
            Query(r.IS_STATE),  # of now, as the numbers above are
            Query("max by (partition) (fl_client_accuracy)"),
            Query("max by (partition) (fl_client_loss)"),
            Query("max by (partition) (fl_client_fit_mean_seconds)"),
            Query(r.FIT_RATIO),
            Query(f'max by (partition) ({r.MEMORY}{{partition!=""}})'),
            Query(f'max by (partition) ({r.CPU_CORES}{{partition!=""}})'),
            Query('max by (name, partition) (fl_client_info{partition!="none"})'),
        ],
        [
            Column("Client", "partition", width=70, links=[ROW_TO_CLIENT]),
            Column("State", "Value #A", width=100, mappings=CLIENT_STATES),
            Column("Accuracy", "Value #B", "percentunit", 1, width=90),
            Column("Loss", "Value #C", "none", 3, width=80),
            Column("Training", "Value #D", "s", 2, width=90),
            Column("Times median", "Value #E", "none", 1, width=120, steps=SLOW),
            Column("Memory", "Value #F", "bytes", width=90),
            Column("Cores", "Value #G", "none", 2, width=80),
            Column("Name", "name"),
        ],
        sort=(("State", False), ("Times median", True)),
    ),
    rows(
        Says(
            "Firing alerts",
            "Alerts of Prometheus that fire now. What to do stands in each alert's text "
            "under Alerting.",
            "none",
            empty="nothing is wrong",
        ),
        [
            Query(
                'max by (alertname, severity, partition, job, cause) (ALERTS{alertstate="firing"})'
            )
        ],
        [
            Column("Alert", "alertname"),
            Column("Severity", "severity", width=75, mappings=SEVERITIES),
            Column("Client", "partition", width=60, links=[ROW_TO_CLIENT]),
            Column("Service", "job", width=85),
            Column("Cause", "cause", width=85),
        ],
    ),
    widths=(16, 8),
)

_CLIENTS = row(
    9,
    graph(
        Says(
            "Clients by state",
            "How many clients are down, connected, and at work on an answer that the server "
            "waits for.",
            "none",
            empty="no client yet",
            decimals=0,
            soft_max=1,
        ),
        Query(f"count({r.STATE} == 0) or 0 * count({r.STATE})", "clients down"),
        Query(f"count({r.STATE} == 2) or 0 * count({r.STATE})", "connected"),
        Query(f"count({r.STATE} == 1) or 0 * count({r.STATE})", "at work"),
        stepped=True,
        stacked=True,
    ),
    states(
        Says(
            "Clients over time",
            f"By partition: down, connected or at work. Of more than {FEW_CLIENTS} clients those "
            "that were down in this time. A click leads to the client.",
            "none",
            empty=f"no client yet; of more than {FEW_CLIENTS}, none was down",
        ),
        Query(
            f"""
            {r.STATE} and on() {EXPECTED} <= {FEW_CLIENTS}
            or
            {r.STATE} and on(partition) min_over_time({r.STATE}[$__range] @ end()) == 0
            """,
            "client {{partition}}",
        ),
        mappings=CLIENT_STATES,
        links=[TO_CLIENT],
    ),
    graph(
        Says(
            "Training time of the clients",
            "Mean of a client's last five local trainings in this run: by partition, or of more "
            f"than {FEW_CLIENTS} clients the fastest, the median and the slowest.",
            "s",
            empty="no training yet",
        ),
        *by_client(
            "max by (partition) (fl_client_fit_mean_seconds)", low="fastest", high="slowest"
        ),
        legend_right=True,
        links=[TO_CLIENT],
    ),
    widths=(6, 9, 9),
)

_ROUNDS = row(
    9,
    graph(
        Says(
            "Where a round's time goes",
            "Seconds of each phase of the last completed round, while a run is in progress.",
            "s",
            empty="no round in this time",
        ),
        Query(f"max by (phase) (fl_last_round_seconds) {_RUNNING}", "{{phase}}"),
        stepped=True,
        stacked=True,
    ),
    graph(
        Says(
            "Failures",
            "Answers of clients that failed or did not come, since this run began, by reason.",
            "none",
            decimals=0,
            soft_max=1,
        ),
        Query(f"max by (reason) (fl_run_failures) {_ASKED}", "{{reason}}"),
        stepped=True,
        legend_right=True,
    ),
    graph(
        Says(
            "Bytes a round",
            "Payload of the messages of the last completed round, while a run is in progress: "
            "down to the clients, up from them.",
            "bytes",
            empty="no round in this time",
        ),
        Query(f"max by (direction) (fl_last_round_bytes) {_RUNNING}", "{{direction}}"),
        stepped=True,
    ),
    widths=(7, 10, 7),  # the legend of failures has five lines, beside the graph
)


_PRIVACY = row(
    7,
    graph(
        Says(
            "Privacy",
            "Epsilon that this run has spent after each round, at the experiment's delta, and the "
            "budget at which it ends, if it has one.",
            "none",
            empty="no differential privacy in this run",
            decimals=2,
        ),
        Query("max by (mode, delta) (fl_privacy_epsilon)", "epsilon, {{mode}}, at delta {{delta}}"),
        Query("max(fl_privacy_budget_epsilon)", "budget"),
        stepped=True,
    ),
    graph(
        Says(
            "Clipping norm",
            "Largest norm that a client's update, or an example's gradient, had after it was clipped in "
            "the last round.",
            "none",
            empty="no differential privacy in this run",
            decimals=3,
        ),
        Query("max by (mode) (fl_privacy_clip_norm)", "norm, {{mode}}"),
        stepped=True,
    ),
)


def federation() -> Dashboard:
    """The dashboard that one opens first."""
    return build(
        FEDERATION_UID,
        "Federation at a glance",
        "The run, what it learns, and which clients are down, slow or failing.",
        [_NOW, _WHO, _LEARNING, _TABLE, _CLIENTS, _ROUNDS, _PRIVACY],
    )
