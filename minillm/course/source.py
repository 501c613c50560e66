"""Python text taken apart and put together again, always so that joining the pieces gives the text back."""

import ast
import json
import re
from dataclasses import dataclass


BETWEEN = "\n\n\n"  # what stands between two cells of a module: two blank lines
YOUR_TURN = "Your turn"
DEFINITION = re.compile(r"^(?:(?:async )?def|class) +(\w+)|^(\w+) *[:=](?!=)", re.MULTILINE)


@dataclass(frozen=True)
class Segment:
    """One top-level statement with the comments right above it; `start` counts lines from 0."""

    names: tuple[str, ...]
    text: str
    start: int
    kind: type[ast.stmt]


def first_line(node: ast.stmt) -> int:
    """The line of a statement's first decorator or, if it has none, of the statement itself, from 1."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def names_of(node: ast.stmt) -> tuple[str, ...]:
    """What a statement defines: a function, a class, or variables."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return tuple(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def names_in(text: str) -> tuple[str, ...]:
    """What a text defines at its top level; of a text that does not parse, what looks like it.

    >>> names_in("a: int = 1"), names_in("def f(x):"), names_in("x = 1 +")
    (('a',), ('f',), ('x',))
    """
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return tuple(function or variable for function, variable in DEFINITION.findall(text))
    return tuple(name for node in body for name in names_of(node))


def is_head(text: str) -> bool:
    """True for text that begins like a module: with a docstring or an import."""
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return text.startswith(('"""', "import ", "from "))
    if not body:
        return False
    first = body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return docstring or isinstance(first, ast.Import | ast.ImportFrom)


def split_chunks(text: str) -> list[str]:
    r"""Cut a text wherever two blank lines stand between top-level statements; SyntaxError if it is not Python.

    >>> split_chunks("import math\n\n\ndef f():\n    return 1\n\n\nX = '''a\n\n\nb'''")
    ['import math', 'def f():\n    return 1', "X = '''a\n\n\nb'''"]
    """
    spans = [(first_line(node), node.end_lineno or node.lineno) for node in ast.parse(text).body]
    chunks, begin, at = [], 0, text.find(BETWEEN)
    while at >= 0:
        blank = text.count("\n", 0, at) + 2  # number of the first blank line
        if any(start <= blank <= end for start, end in spans):
            at = text.find(BETWEEN, at + 1)
            continue
        chunks.append(text[begin:at])
        begin = at + len(BETWEEN)
        at = text.find(BETWEEN, begin)
    return [*chunks, text[begin:]]


def segments(text: str) -> list[Segment]:
    """The top-level statements of a text, each with the comments right above it; SyntaxError if it is not Python."""
    lines, found, free = text.split("\n"), [], 0
    for node in ast.parse(text).body:
        start, end = first_line(node) - 1, node.end_lineno or node.lineno
        while start > free and lines[start - 1].startswith("#"):
            start -= 1
        found.append(Segment(names_of(node), "\n".join(lines[start:end]), start, type(node)))
        free = end
    return found


def docstring_line(node: ast.AST, otherwise: str) -> str:
    """The first line of a definition's docstring."""
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return (ast.get_docstring(node) or otherwise).split("\n")[0]


def is_blank(body: list[ast.stmt]) -> bool:
    """True for a body in which nothing is to be written: only `...` or `pass`, as protocols have it."""
    return all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...)
        for node in body
    )


def hollow(text: str, keep: tuple[str, ...] = ()) -> str:
    r"""Replace the bodies of functions, and of the methods of classes, by a stub; signatures and docstrings stay.

    Functions named in `keep`, or as Class.method, are left whole.

    >>> print(hollow('def double(x):\n    "Twice x."\n    # add\n    return x + x'))
    def double(x):
        "Twice x."
        raise NotImplementedError("Your turn: Twice x.")
    """
    lines = text.split("\n")
    for function, name in reversed(_functions(ast.parse(text))):
        body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
        if is_blank(body) or name in keep or function.name in keep:
            continue
        words = json.dumps(f"{YOUR_TURN}: {docstring_line(function, name)}", ensure_ascii=False)
        stub = f"raise NotImplementedError({words})"
        top, last, column = first_line(body[0]) - 1, body[-1].end_lineno or body[-1].lineno, body[0].col_offset
        before, indent = lines[top].encode()[:column].decode(), " " * column
        if before.strip():  # the body shares a line with the signature or the docstring
            indent = " " * (function.col_offset + 4)
            lines[top:last] = [before.rstrip().removesuffix(";"), indent + stub]
            continue
        start = top
        while not lines[start - 1].strip() or lines[start - 1].startswith(indent + "#"):
            start -= 1
        while last < len(lines) and lines[last].startswith(indent + "#"):
            last += 1
        lines[start:last] = [indent + stub]
    return "\n".join(lines)


def _functions(tree: ast.Module) -> list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Top-level functions and methods of top-level classes in order, with their qualified names."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((node, node.name))
        if isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]
            found += [(method, f"{node.name}.{method.name}") for method in methods]
    return found


def is_stub(text: str) -> bool:
    """True while a definition still raises what the workbook put into it."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id == "NotImplementedError"
        and any(isinstance(a, ast.Constant) and str(a.value).startswith(YOUR_TURN) for a in node.exc.args)
        for node in ast.walk(tree)
    )


def rewrite_imports(text: str, modules: list[str], old: str, new: str) -> str:
    r"""Let imports of a package's chapter modules come from another package.

    >>> rewrite_imports("from a.x import f\nfrom a.support import g", ["x"], "a", "b")
    'from b.x import f\nfrom a.support import g'
    """
    known = {f"{old}.{module}".removesuffix(".__init__") for module in modules}
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            ours = node.module in known or (node.module == old and all(f"{old}.{a.name}" in known for a in node.names))
        elif isinstance(node, ast.Import):
            ours = all(alias.asname and alias.name in known for alias in node.names)
        else:
            continue
        if ours:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = re.sub(rf"\b{re.escape(old)}\b(?=\.| +import\b)", new, line)
    return "\n".join(lines)
