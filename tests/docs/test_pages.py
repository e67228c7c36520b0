"""Every page is valid reStructuredText, and what it links to in this repository is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from docutils import nodes

from tests.docs.pages import CHECKOUT, PAGES, page

FAR = {"http", "https", "mailto"}
OURS = re.compile(r"(?:kraftek|tests|docs|etc|bench)/[\w./@-]*")
TO_BE_WRITTEN = {"tests/core/test_first.py"}

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))


def test_the_pages_that_the_project_promises_are_here() -> None:
    names = {str(path.relative_to(CHECKOUT)) for path in PAGES}
    pages = {"index", "client-protocol", "services", "operations"}
    assert {"README.rst", "README.ru.rst", "CHANGELOG.rst", *(f"docs/{each}.rst" for each in pages)} <= names


@each_page
def test_docutils_does_not_complain(path: Path) -> None:
    assert page(path)[1] == ""


@each_page
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    broken = []
    for link in page(path)[0].findall(nodes.reference):
        target = urlsplit(link.get("refuri", ""))
        if target.scheme in FAR or not target.path:
            continue
        file = path.parent / unquote(target.path)
        if not file.exists() or (target.fragment and target.fragment not in page(file)[0].ids):
            broken.append(link["refuri"])
    assert broken == []


@each_page
def test_files_that_a_page_names_are_there(path: Path) -> None:
    named = {literal.astext() for literal in page(path)[0].findall(nodes.literal)}
    files = {name for name in named if OURS.fullmatch(name)} - TO_BE_WRITTEN
    assert {name for name in files if not (CHECKOUT / name).exists()} == set()


def test_every_page_of_the_docs_is_in_their_table_of_contents() -> None:
    index = CHECKOUT / "docs/index.rst"
    links = {link.get("refuri") for link in page(index)[0].findall(nodes.reference)}
    files = {file.name for file in index.parent.iterdir() if file.is_file() and file != index}
    files |= {str(file.relative_to(index.parent)) for file in index.parent.glob("tutorial/*.rst")}
    assert files <= links


STARTS = [*PAGES, CHECKOUT / "Makefile", *sorted(path for path in CHECKOUT.glob("etc/**/*") if path.is_file())]


@pytest.mark.parametrize("path", STARTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_commands_work_twice_side_by_side(path: Path) -> None:
    """twistd has a pid file unless told, and the second gateway in a directory would not start for it."""
    starts = [line for line in path.read_text("utf-8").splitlines() if "twistd --nodaemon" in line]
    assert [line for line in starts if "--pidfile= " not in line] == []
