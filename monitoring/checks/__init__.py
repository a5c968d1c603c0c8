"""What Grafana 12 demands of the files it starts with, as rules that need no Grafana.

Each rule names the file and function of Grafana's source, or the page of its documentation, from
which it was written. ``monitoring/check.py`` is the door.
"""
