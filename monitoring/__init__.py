"""Prometheus and Grafana of the network, made from the one table of metrics."""

import warnings

# The SDK warns on import that the next schema of dashboards is to be preferred. Grafana 12 has
# that one behind a feature toggle only.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import grafana_foundation_sdk.models.dashboard  # noqa: F401  # imported here, quietly, first
