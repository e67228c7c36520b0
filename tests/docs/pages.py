"""The project's pages in reStructuredText, read as docutils reads them."""

from __future__ import annotations

from functools import cache
from io import StringIO
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

__all__ = ["CHECKOUT", "PAGES", "PARTS", "code", "page"]

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = sorted(CHECKOUT.glob("docs/tutorial/*.rst"))
"""Of the tutorial, in their order."""
PAGES = (*sorted(CHECKOUT.glob("*.rst")), *sorted(CHECKOUT.glob("docs/**/*.rst")))


@cache
def page(path: Path) -> tuple[nodes.document, str]:
    """The page, and what docutils has to say against it."""
    complaints = StringIO()
    settings = {"warning_stream": complaints, "report_level": 2, "halt_level": 5, "syntax_highlight": "none"}
    document = publish_doctree(path.read_text("utf-8"), str(path), settings_overrides=settings)
    return document, complaints.getvalue()


def code(name: str) -> str:
    """The one code block of that ``:name:`` in docs/, as it stands there."""
    blocks = [
        block.astext()
        for path in PAGES
        for block in page(path)[0].findall(nodes.literal_block)
        if name in block["names"]
    ]
    assert len(blocks) == 1, f"{len(blocks)} code blocks have the name {name}"
    return blocks[0]
