"""Recording rules: what several panels and alerts ask for, worked out once.

Names are ``level:what`` or ``level:what:how``. The level is what one series stands for: the run,
a partition, a container, or the answers of all clients.

No rule looks back over a window that may hold two runs: what is said of a run comes from gauges
that begin anew with it.
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
LEFT_SECONDS = "run:left_seconds"

FIT_MEDIAN = "run:fit_seconds:median"
FIT_RATIO = "partition:fit_seconds:times_median"
DOWN = "partition:down"
STATE = "partition:state"

FAILED = "answers:failed:5m"
ANSWERED = "answers:all:5m"
FAILED_SHARE = "answers:failed:share5m"

CPU_CORES = "container:cpu_cores:rate30s"
CPU_LIMIT = "container:cpu_limit_cores"
CPU_SHARE = "container:cpu:share"
CPU_SECONDS = "container:cpu_seconds"
MEMORY = "container:memory_bytes"
MEMORY_LIMIT = "container:memory_limit_bytes"
MEMORY_SHARE = "container:memory:share"
CRASHES = "container:crashes"

STARTED = "max(fl_run_started_timestamp_seconds)"
WHILE_RUNNING = f"on() {RUNNING} == 1"


# The server cannot reach it once a round has begun, or Prometheus has lost the client that held it
# in this run, and neither that client nor another with its partition is back. Prometheus learns of
# a client that was killed within seconds, whatever it was killed by.
IS_DOWN = f"""
    (
      max by (partition) (1 - fl_client_connected > 0)
        and on() max(fl_run_current_round) > 0
      or
      count by (partition) (
        max_over_time(timestamp(fl_client_info{{partition!="none"}})[5m:5s])
          > on() group_left() {STARTED}
        unless on(name) fl_client_info
        unless on(partition) fl_client_info
      ) > bool 0
    )
    and {WHILE_RUNNING}
"""
"""1 for each partition whose client is down during a run; the alert does not wait for `DOWN`."""

IS_STATE = f"""
    0 * {DOWN}
    or
    max by (partition) (fl_client_connected > 0)
      * on(partition) (2 - max by (partition) (fl_client_awaited))
      and {WHILE_RUNNING}
    or
    2 * (count by (partition) (fl_client_info{{partition!="none"}}) > bool 0)
"""
"""0 down, 1 at work, 2 connected, by partition. With more than 100 clients, and after a run, those
that Prometheus reaches are connected."""


def lately(gauge: str) -> str:
    """What a gauge that begins each run at 0 grew by in 5 minutes, of this run only."""
    return f"""
        sum({gauge})
          - ((sum({gauge} offset 5m) and on() time() - {STARTED} > 300) or vector(0))
    """


def _by_container(series: str, rate: bool = False) -> str:
    """By container: ``server``, ``client 3`` or a client's name, never an address or an id.

    A client's container learns its partition late, so that label comes from fl_client_info.
    """
    chosen = "rate({}[30s])" if rate else "{}"
    server = chosen.format(f'{series}{{job="superlink"}}')
    client = chosen.format(f'{series}{{job="client"}}')
    return promql(f"""
        label_replace(sum({server}), "container", "server", "", "")
        or
        {_named(client)}
    """)


def _named(client: str) -> str:
    """A client's series with its container; without a partition it is shown by its name."""
    joined = "sum by (name, partition) ({} * on(instance) group_left(name, partition) {})"
    held = joined.format(client, 'fl_client_info{partition!="none"}')
    free = joined.format(client, 'fl_client_info{partition="none"}')
    return f"""
        label_replace({held}, "container", "client $1", "partition", "(.*)")
        or
        label_replace(
          label_replace({free}, "container", "$1 (no partition)", "name", "(.*)"),
          "partition", "", "", ""
        )
    """


RUN_RULES = (
    Recording(RUNNING, promql('max(fl_run_state{state="running"})')),
    # The rounds to come, and what is left of this one; none before a round has told how long.
    Recording(
        LEFT_SECONDS,
        promql(f"""
            (
              (max(fl_run_rounds) - max(fl_run_current_round))
                * (max(fl_run_round_mean_seconds) > 0)
              + (
                clamp_min(
                  max(fl_run_round_mean_seconds)
                    - (time() - (max(fl_round_started_timestamp_seconds) > 0)),
                  0
                )
                or vector(0)
              )
            )
            and {WHILE_RUNNING}
        """),
    ),
)

CLIENT_RULES = (
    Recording(FIT_MEDIAN, promql("quantile(0.5, max by (partition) (fl_client_fit_mean_seconds))")),
    Recording(
        FIT_RATIO,
        promql(f"""
            max by (partition) (fl_client_fit_mean_seconds)
              / on() group_left() ({FIT_MEDIAN} > 0)
        """),
    ),
    Recording(DOWN, promql(IS_DOWN)),
    Recording(STATE, promql(IS_STATE)),
    Recording(FAILED, promql(lately("fl_run_failures"))),
    Recording(ANSWERED, promql(lately("fl_run_answers"))),
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
    Recording(CRASHES, promql(_named("fl_client_crashes_total"))),
)

GROUPS = {"run": RUN_RULES, "clients": CLIENT_RULES, "containers": CONTAINER_RULES}
"""Groups of alerts.yml, in this order; the rules of a group are evaluated one after another."""

RECORDINGS = tuple(rule for rules in GROUPS.values() for rule in rules)
