"""The alerts, once for Prometheus and for Grafana.

Every expression gives a number above 0 for each series that is wrong and nothing for the others:
Grafana's condition is just "above 0". ``{{ VALUE }}`` in a text stands for that number, which the
two call by different names.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Literal

from monitoring import recording as r
from monitoring.promql import one_line, promql


@dataclass(frozen=True)
class Alert:
    """One alert: when it fires and what it says."""

    name: str
    severity: Literal["critical", "warning", "info"]
    lasts: str
    """How long the expression must hold before the alert fires."""
    expression: str
    summary: str
    description: str
    """What is wrong, with the values, and what to do."""
    panel: str
    """Title of the panel that shows it; Grafana links the two."""
    dashboard: str = "federation"
    """The dashboard with that panel, by its name in ``queries.DASHBOARDS``."""


def _text(text: str) -> str:
    return one_line(inspect.cleandoc(text))


_RUNNING = r.WHILE_RUNNING
_LATELY = f"on() max_over_time({r.RUNNING}[5m]) == 1"  # what ended a run is shown for a while

# Without a test set, as sites have none, only the clients' held-out parts say how the loss is.
_TIMES_LOWEST = " or on() ".join(
    f'''max by (source) (fl_global_loss{{source="{source}"}})
          / max by (source) (fl_global_loss_lowest{{source="{source}"}})'''
    for source in ("central", "federated")
)

ALERTS = (
    Alert(
        name="ClientDown",
        severity="warning",
        panel="Clients over time",
        lasts="10s",
        # Those that were there are named; those that never came have no partition yet, and at a
        # run's beginning they may be on their way.
        expression=promql(f"""
            (
              {r.IS_DOWN}
              or on()
              max(fl_clients_expected) - max(fl_clients_connected) > 0
                and on() time() - {r.STARTED} > 15
            )
            and {_RUNNING}
        """),
        summary=_text("""
            {{ if $labels.partition }}Client of partition {{ $labels.partition }} is down
            {{- else }}{{ VALUE }} of the expected clients are missing{{ end }}
        """),
        description=_text("""
            {{ if $labels.partition }}The server or Prometheus cannot reach the client that
            holds partition {{ $labels.partition }}.
            {{- else }}{{ VALUE }} fewer clients are connected than the experiment asks for.
            {{- end }} The run goes on without them or waits for them, as the experiment says. See
            `docker compose ps client` and `docker compose logs client`; `flsim up --no-run`
            starts containers that are gone.
        """),
    ),
    Alert(
        name="RoundStalled",
        severity="critical",
        panel="Seconds a round",
        lasts="10s",
        expression=promql(f"""
            time() - (max(fl_round_started_timestamp_seconds) > 0)
              > clamp_min(5 * max(fl_run_round_mean_seconds), 120)
            and {_RUNNING}
        """),
        summary="The current round does not end",
        description=_text("""
            The current round began {{ VALUE | humanizeDuration }} ago: more than two minutes, and
            more than five times as long as a round takes on average. Look for clients that are
            down or slow; `round.deadline` in the experiment makes the server go on without them.
        """),
    ),
    Alert(
        name="Straggler",
        severity="warning",
        panel="Clients by partition",
        lasts="1m",
        expression=promql(f"""
            {r.FIT_RATIO} > 2
            and on() count({r.FIT_RATIO}) >= 3
            and {_RUNNING}
        """),
        summary="Client of partition {{ $labels.partition }} is slow",
        description=_text("""
            In its last five trainings of this run the client of partition {{ $labels.partition }}
            took {{ printf "%.1f" VALUE }} times as long as the median client, and every round waits
            for it. Compare its CPU with its limit and its number of examples with the others';
            `round.deadline` makes rounds independent of slow clients.
        """),
    ),
    Alert(
        name="ModelDiverged",
        severity="critical",
        panel="Loss by round",
        lasts="30s",
        # Not finite: neither NaN nor infinity is below infinity.
        expression=promql(f"""
            (
              label_replace(
                1 - max by (source) (fl_global_loss < bool Inf) > 0,
                "cause", "not finite", "", ""
              )
              or
              label_replace(
                ({_TIMES_LOWEST}) > 1.5
                  and on() max(fl_run_round) >= 3,
                "cause", "rising", "", ""
              )
              or
              label_replace(
                {r.lately('fl_run_failures{reason="diverged"}')} > 0,
                "cause", "clients", "", ""
              )
            )
            and {_LATELY}
        """),
        summary="Training diverges: {{ $labels.cause }}",
        description=_text("""
            {{ if eq $labels.cause "rising" }}The {{ $labels.source }} loss is
            {{ printf "%.1f" VALUE }} times its lowest value of this run.
            {{- else if eq $labels.cause "clients" }}Clients answered {{ printf "%.0f" VALUE }}
            times in 5 minutes with a loss or weights that are not finite.
            {{- else }}The {{ $labels.source }} loss of the global model is not a finite number.
            {{- end }} Lower the learning rate of the model or of the strategy, train fewer local
            epochs, or start again from an earlier checkpoint.
        """),
    ),
    Alert(
        name="ClientMemoryNearLimit",
        severity="warning",
        panel="Memory, share of the limit",
        dashboard="resources",
        lasts="1m",
        expression=promql(f'{r.MEMORY_SHARE}{{container!="server"}} > 0.9'),
        summary="Container of {{ $labels.container }} is nearly out of memory",
        description=_text("""
            The container of {{ $labels.container }} has used {{ VALUE | humanizePercentage }} of the
            memory it may use for a minute. Past the limit its process is killed and its answer is lost. Raise the limit, or lower
            `train.batch-size` or the examples a client holds.
        """),
    ),
    Alert(
        name="FailuresHigh",
        severity="warning",
        panel="Failures",
        lasts="1m",
        # A single failure among the first few answers says nothing yet.
        expression=promql(f"""
            {r.FAILED_SHARE} > 0.2
            and on() {r.ANSWERED} >= 5
            and {_LATELY}
        """),
        summary="Many clients fail",
        description=_text("""
            {{ VALUE | humanizePercentage }} of the clients' answers in this run's last 5 minutes
            failed or did not come. The dashboard shows the reasons; `docker compose logs client` and the
            run's `clients.jsonl` hold each client's own error.
        """),
    ),
    Alert(
        name="PrivacyBudget",
        severity="warning",
        panel="Privacy",
        lasts="10s",
        expression=promql(f"""
            max(fl_privacy_epsilon) / max(fl_privacy_budget_epsilon) > 0.9
            and {_RUNNING}
        """),
        summary="The privacy budget is nearly spent",
        description=_text("""
            The run has spent {{ VALUE | humanizePercentage }} of `privacy.budget-epsilon`. It ends by
            itself before the round that would exceed it, with the last permitted model. A larger
            budget is a weaker promise to the clients: decide on it before a run, not in it.
        """),
    ),
    Alert(
        name="CertificateExpires",
        severity="warning",
        panel="Certificates",
        dashboard="resources",
        lasts="1m",
        expression=promql("14 * 86400 - fl_certificate_remaining_seconds > 0"),
        summary="The certificate of the {{ $labels.certificate }} expires in less than 14 days",
        description=_text("""
            The certificate of the {{ $labels.certificate }} has less than 14 days left, or none: after
            it has expired, no client connects. `flsim certs` shows it.
            {{ if eq $labels.certificate "ca" }}Make another CA, or bring one, and give its certificate
            to every client.
            {{- else }}`flsim certs --renew` renews it while runs go on.{{ end }}
        """),
    ),
    Alert(
        name="NoRun",
        severity="info",
        panel="State",
        lasts="15m",
        expression=promql(f"1 - ({r.RUNNING} or vector(0)) > 0"),
        summary="No run is in progress",
        description=_text("""
            No run has been in progress for 15 minutes. If one should, see `docker compose logs run`; if
            not, `docker compose down` frees the machine.
        """),
    ),
    Alert(
        name="TargetDown",
        severity="critical",
        panel="Firing alerts",
        lasts="30s",
        expression=promql("1 - up > 0"),
        summary="Prometheus cannot reach {{ $labels.job }}",
        description=_text("""
            The {{ $labels.job }} at {{ $labels.instance }} has not answered Prometheus for 30
            seconds, so its panels stand still. See `docker compose ps {{ $labels.job }}` and
            `docker compose logs {{ $labels.job }}`.
        """),
    ),
)
