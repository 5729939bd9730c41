"""Laws of the pages: links lead somewhere, commands are such, and references say what is declared."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer

from tests.docs_pages import ROOT, Line, parts
from velocity.io.measures import MEASURES, Undeclared, measure
from velocity.io.metrics import counter, gauge, histogram
from velocity.pipelines.metrics_reference import REGENERATE as REGENERATE_METRICS
from velocity.pipelines.metrics_reference import metrics_reference
from velocity.runners.cli import app
from velocity.runners.cli_reference import REGENERATE, cli_reference

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(```+)([^\n`]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- links ----------------------------------------------------------------------------------------


@cache
def anchors(path: Path) -> frozenset[str]:
    """Of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", path.read_text("utf-8"))
    found: dict[str, int] = {}
    made = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        made.add(f"{slug}-{count}" if count else slug)
    return frozenset(made)


def broken(page: Path, text: str) -> Iterator[str]:
    """The links of a page that lead nowhere; those to other hosts are not followed."""
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / unquote(place)).resolve() if place else page
        if not target.exists() or not target.is_relative_to(ROOT):
            yield f"{link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert list(broken(page, page.read_text("utf-8"))) == []


def test_a_link_to_nowhere_would_be_found() -> None:
    page = ROOT / "README.md"
    text = "[a](docs/none.md) [b](#two-commands) [c](docs/jobs.md#none) [d](https://none.example)"
    assert [wrong.partition(":")[0] for wrong in broken(page, text)] == [
        "docs/none.md",
        "docs/jobs.md#none",
    ]


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text("utf-8")))
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in linked, page.name


# -- commands -------------------------------------------------------------------------------------


COMMAND = re.compile(r"^(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?(velocity|make)((?: .*)?)$")
COMMANDS = [
    (line, found)
    for page in PAGES
    if page.name != "cli.md"
    for line in parts(page)
    if isinstance(line, Line)
    # An output may begin with the command's name and a colon.
    if (found := COMMAND.match(line.text)) and not re.match(r"^velocity( [\w-]+)*:", line.text)
]


def parse(text: str) -> None:
    """Raises what the command line would say of it; nothing is run."""
    words = shlex.split(re.sub(r" (>|&&|\|) .*", "", text), comments=True)
    command: Any = typer.main.get_command(app)
    context = command.make_context("velocity", words, resilient_parsing=False)
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, words, parent=context)


@pytest.mark.parametrize(("line", "found"), COMMANDS, ids=lambda given: str(given)[:60])
def test_each_command_of_a_page_is_one(line: Line, found: re.Match[str]) -> None:
    if found[1] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        words = [w for w in shlex.split(found[2], comments=True) if "=" not in w]
        assert set(words) <= set(targets), line
        return
    parse(found[2])


SPOKEN = [
    (page, found)
    for page in PAGES
    if page.name != "cli.md"
    for found in re.findall(
        r"`(velocity (?!\d)[^`:]+)`", FENCE.sub("", page.read_text("utf-8")).replace("\n", " ")
    )
]
"""Commands that a page speaks of, without all that they need."""


def unknown(text: str) -> list[str]:
    """What of a command that is spoken of is no command, or no option of it."""
    name, *words = re.sub(r" -- .*", "", text).replace("=", " ").split()
    command: Any = typer.main.get_command(app)
    options: set[str] = set()
    while True:
        options |= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        if not (words and getattr(command, "commands", {})):
            break
        if words[0].startswith("-"):  # of all commands
            break
        for name in words.pop(0).split("|"):
            if name not in command.commands:
                return [name]
        command = command.commands[name]
    return [word for word in words if word.startswith("--") and word not in options]


def test_each_command_that_is_spoken_of_is_one() -> None:
    wrong = {f"{named(page)}: {text}": unknown(text) for page, text in SPOKEN}
    assert {text: words for text, words in wrong.items() if words} == {}
    assert unknown("velocity jobs --wach") == ["--wach"]
    assert unknown("velocity stack upp") == ["upp"]
    assert len(SPOKEN) > 50


def test_a_command_that_is_none_would_be_found() -> None:
    parse("run job.yaml --until now")
    for wrong in ("rn job.yaml", "run job.yaml --untill now", "run", "alias swap job.yaml"):
        with pytest.raises(typer.TyperException):
            parse(wrong)
    assert len(COMMANDS) > 50


def test_the_reference_of_the_commands_says_what_they_say() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert page == cli_reference(), f"regenerate it: {REGENERATE}"


# -- metrics --------------------------------------------------------------------------------------

ASKED = re.compile(r"\"((?:rest|cache|enrich|breaker)_[a-z_]+)\"")
"""What lookups count, in a mapping."""


def test_the_reference_of_the_metrics_says_how_they_are_declared() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert page == metrics_reference(), f"regenerate it: {REGENERATE_METRICS}"


def test_every_metric_that_is_declared_is_made_and_told_of() -> None:
    """One that is made and not declared is an error as it is made, but for those that lookups count."""
    layers = ("io", "transforms", "pipelines", "runners")
    sources = [path for layer in layers for path in sorted((ROOT / layer).glob("*.py"))]
    text = " ".join(path.read_text("utf-8") for path in sources if path.name != "measures.py")
    asked = set(ASKED.findall(text))
    assert "rest_held" in asked
    assert sorted(name for name in asked if measure(name) is None) == []
    declared = [one for group in MEASURES.values() for one in group]
    assert len({one.name for one in declared}) == len(declared) > 40
    # Of the rows that a replay leaves out the verdict ends the name.
    text += "".join(f'"documents_{verdict}"' for verdict in ("elsewhere", "cut", "open"))
    assert [
        one.name for one in declared if f'"{one.name}"' not in text and one.name != "breaker"
    ] == []
    for one in declared:
        assert one.about.endswith(".") and one.unit, one.name


def test_a_metric_that_is_not_declared_or_declared_otherwise_is_refused() -> None:
    assert counter("dead_letters", cause="late")
    for make in (
        lambda: counter("nosuch"),
        lambda: counter("dead_letters"),
        lambda: gauge("read_messages"),
        lambda: histogram("read_messages"),
    ):
        with pytest.raises(Undeclared, match=r"velocity\.io\.measures"):
            make()
