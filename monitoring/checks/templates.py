"""Go templates in the texts of Grafana's alerts, as far as they can be checked without Go."""

from __future__ import annotations

import re
from collections.abc import Iterator

RULE = "pkg/services/ngalert/state/template/template.go: Expand"
_FUNCTIONS_RULE = (
    "pkg/services/ngalert/state/template/funcs.go: defaultFuncs; "
    "Prometheus's template/template.go: NewTemplateExpander"
)
_SYNTAX_RULE = "Go's text/template: Actions"

# Grafana's own, then Prometheus's. `query` is among Prometheus's too, but finds nothing here.
_GRAFANAS = "filterLabels filterLabelsRe graphLink mergeLabelValues removeLabels removeLabelsRe"
_PROMETHEUS = """
    args externalURL first humanize humanize1024 humanizeDuration humanizePercentage
    humanizeTimestamp label match parseDuration pathPrefix reReplaceAll safeHtml sortByLabel
    stripDomain stripPort strvalue tableLink title toLower toTime toUpper value
"""
_GOS = "and call eq ge gt html index js le len lt ne not or print printf println slice urlquery"
FUNCTIONS = frozenset(f"{_GRAFANAS} {_PROMETHEUS} {_GOS}".split())

_OPENING = {"if", "range", "with", "block", "define"}
_KEYWORDS = _OPENING | {"else", "end", "template", "break", "continue", "nil", "true", "false"}
_GIVEN = {"labels", "values"}  # what Grafana sets before each text, and $value

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`')
_TOKEN = re.compile(
    r"""
    (?P<string> "(?:[^"\\\n]|\\.)*" | `[^`]*` | '(?:[^'\\]|\\.)' )
  | (?P<variable> \$\w*(?:\.\w+)* )
  | (?P<field> \.(?:\w+(?:\.\w+)*)? )
  | (?P<number> [+-]?\d[\w.]* )
  | (?P<word> [A-Za-z_]\w* )
  | (?P<sign> :=|[|(),=] )
  | (?P<space> \s+ )
  | (?P<strange> . )
    """,
    re.VERBOSE,
)

Complaint = tuple[str, str]  # what is wrong, the rule


def check(text: str, ref_ids: set[str]) -> Iterator[Complaint]:
    """Yield what Grafana's expansion of ``text`` would stumble over.

    Parameters
    ----------
    text : str
        An annotation or a label.
    ref_ids : set[str]
        The queries and expressions of the rule: the keys of ``$values``.
    """
    open_actions: list[str] = []
    bare = _ACTION.sub("", text)
    if "{{" in bare or "}}" in bare:
        yield "has {{ or }} without its partner", _SYNTAX_RULE
    declared = set(_GIVEN)
    for action in _ACTION.findall(text):
        inner = re.sub(r"^-\s|\s-$", " ", action).strip()
        if re.fullmatch(r"/\*.*\*/", inner, re.DOTALL):
            continue
        if not inner:
            yield "has an empty action {{ }}", _SYNTAX_RULE
            continue
        first = inner.split()[0]
        if first in {"else", "end"} and not open_actions:
            yield f"has {first} without if, range or with", _SYNTAX_RULE
        elif first == "end":
            open_actions.pop()
        dot_is_ours = not set(open_actions) - {"if"}
        yield from _check_action(inner, declared, ref_ids, dot_is_ours)
        if first in _OPENING:
            open_actions.append(first)
    if open_actions:
        yield f"has {open_actions[-1]} without end", _SYNTAX_RULE


def _check_action(
    action: str, declared: set[str], ref_ids: set[str], dot_is_ours: bool
) -> Iterator[Complaint]:
    bare = _STRING.sub('""', action)
    if bare.count("(") != bare.count(")"):
        yield f"has unequal brackets in {{{{ {action} }}}}", _SYNTAX_RULE
    if re.search(r"\|\s*(\||$)|^\|", bare):
        yield f"has a pipe without a command in {{{{ {action} }}}}", _SYNTAX_RULE
    declared.update(re.findall(r"\$(\w+)\s*(?:,\s*\$\w+\s*)?:=", action))
    declared.update(re.findall(r",\s*\$(\w+)\s*:=", action))
    for found in _TOKEN.finditer(action):
        word = found[0]
        match found.lastgroup:
            case "strange":
                yield f"has {word!r} in {{{{ {action} }}}}", _SYNTAX_RULE
            case "word" if word == "query":
                yield "calls query, which finds nothing in Grafana", RULE
            case "word" if word not in FUNCTIONS | _KEYWORDS:
                yield f"calls {word}, which Grafana's templates do not have", _FUNCTIONS_RULE
            case "variable":
                yield from _check_variable(word, declared, ref_ids)
            case "field" if dot_is_ours:
                yield from _check_field(word, ref_ids)


def _check_variable(word: str, declared: set[str], ref_ids: set[str]) -> Iterator[Complaint]:
    name, *path = word[1:].split(".")
    if name == "value" and name not in declared:
        yield "uses $value, which is a text about all values in Grafana; take $values", RULE
    elif name and name not in declared:
        yield f"uses ${name}, which nothing sets", RULE
    elif name == "values" and path:
        yield from _check_value(path, ref_ids)


def _check_field(word: str, ref_ids: set[str]) -> Iterator[Complaint]:
    name, *path = word[1:].split(".")
    if name and name not in {"Labels", "Values", "Value"}:
        yield f"uses .{name}; there are .Labels, .Values and .Value", RULE
    elif name == "Values" and path:
        yield from _check_value(path, ref_ids)


def _check_value(path: list[str], ref_ids: set[str]) -> Iterator[Complaint]:
    if path[0] not in ref_ids:
        known = ", ".join(sorted(ref_ids))
        yield f"uses $values.{path[0]}, but the refIds are {known}", RULE
    elif path[1:] and path[1] not in {"Value", "Labels"}:
        yield f"uses .{path[1]} of $values.{path[0]}; there are Value and Labels", RULE
