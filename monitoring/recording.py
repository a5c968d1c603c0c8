"""Recording rules: what several panels and alerts ask for, worked out once.

Names are ``level:what`` or ``level:what:how``. The level is what one series stands for: the run,
a partition, a container, or the answers of all clients.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.promql import promql


@dataclass(frozen=True)
class Recording:
    """An expression that Prometheus keeps as a series of its own."""

    name: str
    expression: str


RUNNING = "run:running"
LOSS_MIN = "run:central_loss:min"
ROUND_SECONDS = "run:round_seconds:mean"

FIT_SECONDS = "partition:fit_seconds:mean10m"
FIT_MEDIAN = "run:fit_seconds:median"
FIT_RATIO = "partition:fit_seconds:times_median"

FAILED = "answers:failed:5m"
TRAINED = "answers:trained:5m"
ANSWERED = "answers:all:5m"
FAILED_SHARE = "answers:failed:share5m"

CPU_CORES = "container:cpu_cores:rate30s"
CPU_LIMIT = "container:cpu_limit_cores"
CPU_SHARE = "container:cpu:share"
CPU_SECONDS = "container:cpu_seconds"
MEMORY = "container:memory_bytes"
MEMORY_LIMIT = "container:memory_limit_bytes"
MEMORY_SHARE = "container:memory:share"


def _grown(series: str) -> str:
    """What the counters grew by in 5 minutes, exactly.

    ``increase()`` misses the value that a new series begins with, and a client's first fit is
    one: failures would seem to be all that happened. A counter that began anew counts from 0.
    """
    return f"""
        sum(
          ({series} - ({series} offset 5m <= {series}))
          or
          {series}
        )
    """


def _by_container(series: str, rate: bool = False) -> str:
    """Sum by container. ``container`` is ``server`` or ``client 3``, never an address or an id.

    A client's container learns its partition late, so that label comes from fl_client_info.
    """
    chosen = "rate({}[30s])" if rate else "{}"
    server = chosen.format(f'{series}{{job="superlink"}}')
    client = chosen.format(f'{series}{{job="client"}}')
    return promql(f"""
        label_replace(sum({server}), "container", "server", "", "")
        or
        label_replace(
          sum by (partition) ({client} * on(instance) group_left(partition) fl_client_info),
          "container", "client $1", "partition", "(.*)"
        )
    """)


_LOSS = '(max(fl_global_loss{source="central"}) < Inf)'
_BEST = f"({LOSS_MIN} unless on() max(fl_run_round) < max(fl_run_round offset 5s))"

RUN_RULES = (
    Recording(RUNNING, promql('max(fl_run_state{state="running"})')),
    # The lowest loss so far, of this run only: it is forgotten when the round number falls.
    Recording(
        LOSS_MIN,
        promql(f"""
            {_LOSS} < {_BEST}
            or
            {_BEST} and on() {_LOSS}
            or
            {_LOSS}
        """),
    ),
    # Without a round in the last 15 minutes: the mean of all rounds since the server started.
    Recording(
        ROUND_SECONDS,
        promql("""
            sum(rate(fl_round_duration_seconds_sum[15m]))
              / sum(rate(fl_round_duration_seconds_count[15m])) > 0
            or
            sum(fl_round_duration_seconds_sum) / sum(fl_round_duration_seconds_count) > 0
        """),
    ),
)

CLIENT_RULES = (
    # A client's series begin with its first answer, so a quick run has no rate: the mean of all then.
    Recording(
        FIT_SECONDS,
        promql("""
            sum by (partition) (rate(fl_client_fit_duration_seconds_sum[10m]))
              / sum by (partition) (rate(fl_client_fit_duration_seconds_count[10m])) > 0
            or
            sum by (partition) (fl_client_fit_duration_seconds_sum)
              / sum by (partition) (fl_client_fit_duration_seconds_count) > 0
        """),
    ),
    Recording(FIT_MEDIAN, promql(f"quantile(0.5, {FIT_SECONDS})")),
    Recording(FIT_RATIO, promql(f"{FIT_SECONDS} / on() group_left() {FIT_MEDIAN}")),
    # Answers to evaluations are not counted where they succeed, so the share is at most too high.
    Recording(FAILED, promql(_grown("fl_client_failures_total"))),
    Recording(TRAINED, promql(_grown("fl_client_fits_total"))),
    Recording(ANSWERED, promql(f"{FAILED} + ({TRAINED} or vector(0))")),
    Recording(FAILED_SHARE, promql(f"{FAILED} / ({ANSWERED} > 0)")),
)

CONTAINER_RULES = (
    Recording(CPU_CORES, _by_container("fl_container_cpu_seconds_total", rate=True)),
    Recording(CPU_LIMIT, _by_container("fl_container_cpu_limit_cores")),
    Recording(CPU_SHARE, promql(f"{CPU_CORES} / ({CPU_LIMIT} > 0)")),
    Recording(CPU_SECONDS, _by_container("fl_container_cpu_seconds_total")),
    Recording(MEMORY, _by_container("fl_container_memory_bytes")),
    Recording(MEMORY_LIMIT, _by_container("fl_container_memory_limit_bytes")),
    Recording(MEMORY_SHARE, promql(f"{MEMORY} / ({MEMORY_LIMIT} > 0)")),
)

GROUPS = {"run": RUN_RULES, "clients": CLIENT_RULES, "containers": CONTAINER_RULES}
"""Groups of alerts.yml, in this order; the rules of a group are evaluated one after another."""

RECORDINGS = tuple(rule for rules in GROUPS.values() for rule in rules)
