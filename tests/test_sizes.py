"""How large a part may be, so that it can be read at a sitting: held for every module, class and function.

Lines are those of code: without docstrings, comments and blank lines. A state machine is not split to meet a number:
one that does no I/O, and has the table of its inputs and states in its docstring, may be larger. It stands in
:data:`STATE_MACHINES` with the reason. No call is added to the hot path for a number, either: raise the number then.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent / "kraftek"

MODULE = 350
CLASS = 220
STATE_MACHINE = 330
FUNCTION = 50
POSITIONAL = 7
"""Arguments that a constructor takes without their names."""

STATE_MACHINES = {
    "kraftek.client.conversation.Conversation": "every input means something else in each of the four states",
}
"""Classes that may have :data:`STATE_MACHINE` lines."""

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Part:
    """A module, class, function or constructor; ``size``, and what it may be at most."""

    name: str
    what: str
    size: int
    most: int


def lines_of_code(source: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines on which there is code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def parts(source: str, module: str) -> Iterator[Part]:
    """Everything in a module that has a size, itself first; and each construction, by the class that is called."""
    tree = ast.parse(source)
    code = lines_of_code(source, tree)
    yield Part(module, "lines", len(code), MODULE)

    def visit(node: ast.AST, name: str) -> Iterator[Part]:
        for child in ast.iter_child_nodes(node):
            its_name = name
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                its_name = f"{name}.{child.name}"
                size = len(code.intersection(range(child.lineno, (child.end_lineno or 0) + 1)))
                if isinstance(child, ast.ClassDef):
                    yield Part(its_name, "lines", size, STATE_MACHINE if its_name in STATE_MACHINES else CLASS)
                else:
                    yield Part(its_name, "lines", size, FUNCTION)
                    if child.name == "__init__":
                        taken = [*child.args.posonlyargs, *child.args.args]
                        yield Part(its_name, "positional arguments", len(taken) - 1, POSITIONAL)
            elif isinstance(child, ast.Call) and _called(child)[:1].isupper():
                yield Part(f"{name}: {_called(child)}(...)", "positional arguments", len(child.args), POSITIONAL)
            yield from visit(child, its_name)

    yield from visit(tree, module)


def _called(node: ast.Call) -> str:
    """The last name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def too_large(source: str, module: str) -> list[str]:
    """What in the module is larger than it may be."""
    return [
        f"{part.name}: {part.size} {part.what}, and at most {part.most} are allowed"
        for part in parts(source, module)
        if part.size > part.most
    ]


SOURCES = {
    ".".join(("kraftek", *path.relative_to(CHECKOUT).with_suffix("").parts)): path.read_text("utf-8")
    for path in sorted(CHECKOUT.rglob("*.py"))
}


@pytest.mark.parametrize("module", SOURCES)
def test_parts_can_be_read_at_a_sitting(module: str) -> None:
    assert too_large(SOURCES[module], module) == []


def test_exceptions_are_needed() -> None:
    found = {part.name: part for module, source in SOURCES.items() for part in parts(source, module)}
    assert [name for name in STATE_MACHINES if found[name].size <= CLASS] == []


@pytest.mark.parametrize("name", sorted(STATE_MACHINES))
def test_a_state_machine_has_its_table(name: str) -> None:
    module, _, its_name = name.rpartition(".")
    classes = {node.name: node for node in ast.parse(SOURCES[module]).body if isinstance(node, ast.ClassDef)}
    documentation = ast.get_docstring(classes[its_name]) or ""
    rules = re.findall(r"^=+(?: +=+){2,}$", documentation, re.MULTILINE)
    assert len(rules) == 3  # above the head of the table, below it, and below the rows


HUNDRED = "\n".join(f"    x = {number}" for number in range(100))


def test_what_counts_as_code() -> None:
    source = '''"""Not this,

nor this."""

# nor this
value = (
    1,  # but this
)
"""Nor what a value is for."""


def function() -> str:
    """Nor this."""
    return """but
    this"""
'''
    assert lines_of_code(source, ast.parse(source)) == {6, 7, 8, 12, 14, 15}


def test_what_is_too_large_is_caught() -> None:
    function = f"def f():\n{HUNDRED}"
    assert too_large(function, "m") == ["m.f: 101 lines, and at most 50 are allowed"]
    assert too_large("async " + function, "m") == ["m.f: 101 lines, and at most 50 are allowed"]
    methods = "\n".join(f"    def f{number}(self): pass" for number in range(220))
    assert too_large(f"class C:\n{methods}", "m") == ["m.C: 221 lines, and at most 220 are allowed"]
    assert too_large("x = 1\n" * 351, "m") == ["m: 351 lines, and at most 350 are allowed"]
    assert too_large("x = 1\n" * 350, "m") == []


def test_who_needs_names_for_arguments_is_caught() -> None:
    eight = "a, b, c, d, e, f, g, h"
    complaint = "8 positional arguments, and at most 7 are allowed"
    assert too_large(f"class C:\n    def __init__(self, {eight}): pass", "m") == [f"m.C.__init__: {complaint}"]
    assert too_large(f"class C:\n    def __init__(self, *, {eight}): pass", "m") == []
    assert too_large(f"def f():\n    return m.Event({eight})", "m") == [f"m.f: Event(...): {complaint}"]
    assert too_large(f"call({eight})", "m") == []
