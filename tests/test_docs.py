"""The documentation: generated pages are current, links lead somewhere, examples can be used."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from flsimulation.cli.main import app
from flsimulation.experiment import load_experiment

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("**/*.md")])

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def blocks(*languages: str) -> list[object]:
    """Fenced blocks of these languages in all pages, each as a pytest parameter (page, text)."""
    found = []
    for page in PAGES:
        for number, (_, language, text) in enumerate(_FENCE.findall(page.read_text()), start=1):
            if language in languages:
                found.append(pytest.param(page, text, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


_MODULE = re.compile(r"`([a-z_]+(?:/[a-z_]+)+\.py)`")


def test_modules_that_the_pages_name_are_there() -> None:
    places = (ROOT, ROOT / "src" / "flsimulation")
    named = [(page, name) for page in PAGES for name in _MODULE.findall(page.read_text())]
    assert len(named) > 40
    for page, name in named:
        assert any((place / name).is_file() for place in places), f"{page}: {name}"


def commands(text: str, language_is_shell: bool) -> Iterator[str]:
    """Command lines of a block: all of a script, those after a prompt of a console's text."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if language_is_shell or line.startswith("$ "):
            yield line.removeprefix("$ ").strip()


def command_lines(verb: str) -> list[object]:
    """Every command line of the pages that begins with ``verb``, as (page, words)."""
    found = []
    for language in ("console", "sh"):
        for parameter in blocks(language):
            page, text = parameter.values  # type: ignore[attr-defined]
            for line in commands(text, language == "sh"):
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == verb:
                    label = f"{page.relative_to(ROOT)}: {line}"
                    found.append(pytest.param(page, words[1:], id=label))
    return found


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as they stand in links."""
    text = _FENCE.sub("", page.read_text())
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(text))
    return {word.replace(" ", "-") for word in words}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)  # as `python docs/generate.py` does
        spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(
    generate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["--check"]) == 0, "run make docs"
    assert capsys.readouterr() == ("", "")


def test_check_names_the_page_that_is_not_current(
    generate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    (tmp_path / "metrics.md").write_text("old")
    assert generate.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err == "docs: not current: metrics.md; run make docs\n"


def test_experiment_page_gives_a_keys_type_default_and_meaning(generate: ModuleType) -> None:
    page = generate.experiment_page()
    assert "| `epochs` | integer ≥ 1 | `1` | Passes over the client's training part" in page
    assert "| `fraction-train` | number > 0 and ≤ 1 | `1.0` |" in page
    assert "| `proximal-mu` | number ≥ 0 | `0.0` | The weight of the proximal term" in page
    assert "| `client-learning-rate` | number ≥ 0 | required |" in page


@pytest.mark.skipif(sys.platform != "linux", reason="the collector reads /proc")
def test_process_metrics_are_those_of_the_collector(generate: ModuleType) -> None:
    families = ProcessCollector(registry=CollectorRegistry()).collect()
    names = {sample.name for family in families for sample in family.samples}
    assert {name for name, *_ in generate.PROCESS_METRICS} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue  # another site, or mail
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(("page", "text"), blocks("toml"))
def test_toml_blocks_are_experiments(page: Path, text: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    load_experiment(path)


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_blocks_compile(page: Path, text: str) -> None:
    compile(text, str(page), "exec")


@pytest.mark.parametrize(("page", "words"), command_lines("flsim"))
def test_flsim_commands_parse(page: Path, words: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    if words[0] in ("--help", "--version"):
        return
    parsed = group.commands[words[0]].make_context(words[0], words[1:]).params
    file = parsed.get("file")
    if file is None or (ROOT / file).is_file():
        load_experiment(ROOT / file if file else None, parsed.get("overrides") or ())
    else:
        assert Path(file).parts[0] != "experiments", f"there is no {file}"


@pytest.mark.parametrize(("page", "words"), command_lines("make"))
def test_make_targets_exist(page: Path, words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []
