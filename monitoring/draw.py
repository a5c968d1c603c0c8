"""Draw a dashboard as Grafana would, without Grafana: for whoever changes the dashboards.

``python monitoring/draw.py --prometheus http://localhost:9090 --dashboard federation -o f.png``
asks Prometheus for all of the dashboard's panels, hands the answers to Grafana's own components in
a headless Chromium, and writes a picture of the whole dashboard, or of some panels (``--panel``). It needs Node.js with npm, and
Chromium; the components are installed below monitoring/draw at the first call.

What Grafana's packages do not export is close, but not the same: the state timeline is drawn by
hand, and the frames' preparation, the options' defaults and the marks of runs follow Grafana's
source.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MONITORING = Path(__file__).parent
sys.path.insert(0, str(MONITORING.parent))  # run as a script, the folder above is not searched

from monitoring.queries import filled  # noqa: E402

DRAW = MONITORING / "draw"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_CELL, _GAP, _TOP = 30, 8, 48  # pixels, as in draw/src/main.tsx
_INSTALLED = "node_modules/.package-lock.json"  # npm writes it last
_FONTS = {"Inter-Regular": 400, "Inter-Medium": 500}  # Grafana's names, weights
_POINTS = 200  # at most, for each line
_SCRAPE_SECONDS = 5
_PAGE = """<!doctype html><meta charset="utf-8"><title>dashboard</title>
<link rel="stylesheet" href="main.css">
<style>body {{ margin: 0; position: relative; overflow: hidden; }}</style>
<div id="page"></div>
<script>window.__grafana_public_path__ = 'public/'; window.DASHBOARD = {content};</script>
<script src="main.js"></script>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one dashboard; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--prometheus", default="http://localhost:9090", help="its address")
    parser.add_argument("--dashboard", default="federation", help="federation, client or resources")
    parser.add_argument("--at", type=float, help="Unix time that the picture ends at; default: now")
    parser.add_argument("--minutes", type=float, default=15, help="that it looks back")
    parser.add_argument("--partition", default="0", help="that the dashboard client shows")
    parser.add_argument("--width", type=int, default=1600, help="in pixels")
    parser.add_argument(
        "--panel",
        action="append",
        default=[],
        metavar="TITLE",
        help="draw only this panel; again for others, side by side in this order",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("dashboard.png"))
    asked = parser.parse_args(arguments)
    try:
        draw(asked)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"draw: {error}", file=sys.stderr)
        return 1
    return 0


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def draw(asked: argparse.Namespace) -> None:
    """Ask Prometheus, fill the page, and have the browser draw it.

    Raises
    ------
    RuntimeError
        If a program is missing or fails.
    """
    path = MONITORING / "grafana" / "dashboards" / f"{asked.dashboard}.json"
    if not path.is_file():
        raise RuntimeError(f"--dashboard {asked.dashboard}: use federation, client or resources")
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    if asked.panel:
        dashboard["panels"] = side_by_side(dashboard["panels"], asked.panel)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"no browser; install one of {', '.join(_BROWSERS)}")
    content = _content(dashboard, asked)
    build()
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    _screenshot(browser, content, asked.out, asked.width, _TOP + rows * (_CELL + _GAP))


def side_by_side(panels: Sequence[dict[str, Any]], titles: Sequence[str]) -> list[dict[str, Any]]:
    """The panels with these titles, in a row that is as high as the highest.

    Raises
    ------
    RuntimeError
        If no panel has one of the titles.
    """
    known = {panel["title"]: panel for panel in panels}
    if missing := [title for title in titles if title not in known]:
        raise RuntimeError(f"--panel {missing[0]}: use one of {', '.join(known)}")
    width = 24 // len(titles)
    height = max(known[title]["gridPos"]["h"] for title in titles)
    return [
        known[title] | {"gridPos": {"x": place * width, "y": 0, "w": width, "h": height}}
        for place, title in enumerate(titles)
    ]


def build() -> None:
    """Install Grafana's components and bundle the page, where that is not done."""
    if shutil.which("npm") is None:
        raise RuntimeError("npm is missing; install Node.js with npm")
    wanted, installed = (DRAW / name for name in ("package-lock.json", _INSTALLED))
    if not installed.is_file() or installed.stat().st_mtime < wanted.stat().st_mtime:
        _call("npm", "ci", "--no-audit", "--no-fund")
    bundle = DRAW / "dist" / "main.js"
    changed = max(path.stat().st_mtime for path in (DRAW / "src").iterdir())
    if not bundle.is_file() or bundle.stat().st_mtime < changed:
        _call("npm", "run", "--silent", "build")


def _call(*command: str) -> None:
    done = subprocess.run(command, cwd=DRAW, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-2000:]}")


def _content(dashboard: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """All that the page needs, ready for JSON."""
    to = asked.at or time.time()
    seconds = asked.minutes * 60
    step = max(_SCRAPE_SECONDS, seconds // _POINTS)
    to -= to % step  # as Grafana aligns it
    prometheus = _Prometheus(asked.prometheus, to - seconds, to, step)
    values = {
        "partition": asked.partition,
        "__range": f"{int(seconds)}s",
    }
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(to))
    return {
        "dashboard": dashboard,
        "answers": {
            panel["id"]: [prometheus.answer(target, values) for target in panel["targets"]]
            for panel in dashboard["panels"]
        },
        "marks": _marks(dashboard, prometheus),
        "from": (to - seconds) * 1000,
        "to": to * 1000,
        "width": asked.width,
        "note": f"{asked.minutes:g} minutes to {moment} UTC",
    }


def _marks(dashboard: dict[str, Any], prometheus: _Prometheus) -> list[float]:
    """When runs began, in milliseconds: the annotations whose value is their time."""
    return sorted(
        {
            value
            for annotation in dashboard["annotations"]["list"]
            for series in prometheus.series(annotation["expr"], instant=False)
            for value in series["values"]
        }
    )


class _Prometheus:
    """Asks one Prometheus about one time range."""

    def __init__(self, address: str, start: float, end: float, step: float) -> None:
        self._address = address.rstrip("/")
        self._start, self._end, self._step = start, end, step

    def answer(self, target: Mapping[str, Any], values: dict[str, str]) -> dict[str, Any]:
        """A panel's query with its series."""
        series = self.series(filled(target["expr"], values), target["instant"])
        return {"target": target, "step": self._step, "series": series}

    def series(self, expression: str, instant: bool) -> list[dict[str, Any]]:
        """Labels, times in milliseconds and values of an expression's series."""
        if instant:
            found = self._ask("query", query=expression, time=self._end)
        else:
            found = self._ask(
                "query_range",
                query=expression,
                start=self._start,
                end=self._end,
                step=self._step,
            )
        result = []
        for one in found:
            points = one["values"] if "values" in one else [one["value"]]
            labels = {name: text for name, text in one["metric"].items() if name != "__name__"}
            times = [at * 1000 for at, _ in points]
            result.append(
                {"labels": labels, "times": times, "values": [_number(v) for _, v in points]}
            )
        return result

    def _ask(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        address = f"{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return result
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise RuntimeError(f"Prometheus refuses {parameters['query']}: {text}") from None


def _number(text: str) -> float | None:
    value = float(text)
    return value if abs(value) < float("inf") else None  # JSON knows no NaN


def _screenshot(browser: str, content: dict[str, Any], out: Path, width: int, height: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = _PAGE.format(content=json.dumps(content).replace("</", "<\\/"))
        (folder / "index.html").write_text(page, encoding="utf-8")
        for built in (DRAW / "dist").iterdir():
            (folder / built.name).symlink_to(built)
        public = DRAW / "node_modules" / "@grafana" / "ui" / "dist" / "public"
        (folder / "public").mkdir()
        (folder / "public" / "build").symlink_to(public)
        fonts = folder / "public" / "fonts" / "inter"
        fonts.mkdir(parents=True)
        for font, weight in _FONTS.items():
            file = f"inter-latin-{weight}-normal.woff2"
            (fonts / f"{font}.woff2").symlink_to(
                DRAW / "node_modules" / "@fontsource" / "inter" / "files" / file
            )
        serve = functools.partial(_Quiet, directory=name)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            command = (
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={folder / 'profile'}",
                f"--window-size={width},{height}",
                "--virtual-time-budget=20000",
                "--run-all-compositor-stages-before-draw",  # else a busy machine leaves graphs out
                f"--screenshot={out.resolve()}",
                f"http://127.0.0.1:{server.server_address[1]}/index.html",
            )
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)  # noqa: S603
            server.shutdown()
    if done.returncode or not out.is_file():
        raise RuntimeError(f"the browser drew nothing: {done.stderr[-2000:]}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def kinds() -> set[str]:
    """Panel types that the page can draw."""
    text = (DRAW / "src" / "panels.tsx").read_text(encoding="utf-8")
    table = text[text.index("export const KINDS") :]
    return set(re.findall(r"^  '?([a-z-]+)'?: \w+,$", table, re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
