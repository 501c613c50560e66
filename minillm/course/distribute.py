"""After a refactoring: give a module's text back to the notebook's cells, each definition to the cell that held it."""

import re
from dataclasses import dataclass, field
from typing import Any

from minillm.course.notebooks import FOLD, is_folded, nbformat, tags_of
from minillm.course.source import BETWEEN, is_head, names_in, split_chunks


@dataclass
class Group:
    """Neighbouring pieces of a module that share a cell; `owner` counts the module's cells, None is a new one."""

    owner: int | None
    chunks: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The cell's text."""
        return BETWEEN.join(self.chunks)


def spread(notebook: Any, module: str, chunks: list[str]) -> list[str]:
    """Write a module's pieces into its cells, in place; what was done, a line each.

    A cell keeps the definitions whose names it holds. What is new becomes a cell where it stands in order, what is gone
    is removed, what changed place is moved. Cells that stay the same are not touched.
    """
    said = _tag_again(notebook, module, chunks)
    cells = [node for node in notebook["cells"] if FOLD + module in tags_of(node)]
    groups = _groups(chunks, [node["source"] for node in cells])
    owners = [group.owner for group in groups if group.owner is not None]
    staying = set(_longest_rise(owners))
    for owner in sorted(set(range(len(cells))) - set(owners)):
        said += _remove(notebook, cells[owner])
    for owner in set(owners) - staying:
        _take_out(notebook, cells[owner])
    cursor = _start(notebook, [cells[owner] for owner in sorted(staying)])
    for group in groups:
        node = _new_cell(notebook, module, group.text) if group.owner is None else cells[group.owner]
        if group.owner in staying:
            cursor = _position(notebook, node)
        else:
            notebook["cells"].insert(cursor, node)
            said.append(f"cell {cursor + 1}: {_title(group.text)} {'is new' if group.owner is None else 'moved here'}")
        if node["source"] != group.text:
            node.update(source=group.text, outputs=[], execution_count=None)
            said.append(f"cell {cursor + 1}: {_title(group.text)} rewritten")
        cursor += 1 + _is_its_check(notebook, cursor + 1)
    return said


def _tag_again(notebook: Any, module: str, chunks: list[str]) -> list[str]:
    """Put the tag back on cells that hold a piece of the module, word for word, but lost it."""
    held = {chunk for node in notebook["cells"] if FOLD + module in tags_of(node) for chunk in _split(node["source"])}
    said = []
    for number, node in enumerate(notebook["cells"], start=1):
        text = node["source"]
        if node["cell_type"] == "code" and text in chunks and text not in held and not is_folded(node):
            node["metadata"]["tags"] = [FOLD + module, *tags_of(node)]
            held.add(text)
            said.append(f"cell {number}: the tag {FOLD}{module} is back on {_title(text)}")
    return said


def _split(text: str) -> list[str]:
    try:
        return split_chunks(text)
    except SyntaxError:
        return [text]


def _groups(chunks: list[str], cells: list[str]) -> list[Group]:
    """Which pieces go to which cell, by the names they define; the first piece goes to the first cell."""
    holder = {name: owner for owner in reversed(range(len(cells))) for name in names_in(cells[owner])}
    holder |= {chunk: owner for owner in reversed(range(len(cells))) for chunk in _split(cells[owner])}
    owners = [next((holder[key] for key in (chunk, *names_in(chunk)) if key in holder), None) for chunk in chunks]
    if owners[0] is None and cells and is_head(cells[0]):
        owners[0] = 0
    groups: list[Group] = []
    seen: set[int] = set()
    for i, (chunk, owner) in enumerate(zip(chunks, owners)):
        last = groups[-1].owner if groups else None
        if owner is None and last is not None and next((o for o in owners[i:] if o is not None), None) == last:
            owner = last  # a new piece in the middle of a cell
        if owner is not None and owner == last:
            groups[-1].chunks.append(chunk)
            continue
        groups.append(Group(None if owner in seen else owner, [chunk]))
        if owner is not None:
            seen.add(owner)
    return groups


def _longest_rise(numbers: list[int]) -> list[int]:
    """The longest rising subsequence: the cells that can stay where they are.

    >>> _longest_rise([0, 3, 1, 2])
    [0, 1, 2]
    """
    best: list[list[int]] = []
    for number in numbers:
        best.append(max((rise for rise in best if rise[-1] < number), key=len, default=[]) + [number])
    return max(best, key=len, default=[])


def _position(notebook: Any, node: Any) -> int:
    return next(i for i, other in enumerate(notebook["cells"]) if other is node)


def _start(notebook: Any, staying: list[Any]) -> int:
    """Where a cell goes that has none of the module's before it: in front of them, or at the end."""
    return _position(notebook, staying[0]) if staying else len(notebook["cells"])


def _take_out(notebook: Any, node: Any) -> None:
    del notebook["cells"][_position(notebook, node)]


def _remove(notebook: Any, node: Any) -> list[str]:
    """Take a cell out whose definitions are gone, and the cell that checked them."""
    at = _position(notebook, node)
    if _is_its_check(notebook, at + 1):
        del notebook["cells"][at + 1]
    _take_out(notebook, node)
    return [f"cell {at + 1}: {_title(node['source'])} is gone from the module, so its cell was removed"]


def _is_its_check(notebook: Any, at: int) -> bool:
    """True if the cell at a place checks the one before it: `attend = check.use(attend)`."""
    if not 0 < at < len(notebook["cells"]) or notebook["cells"][at]["cell_type"] != "code":
        return False
    match = re.match(r"(\w+) = check\.use\(", notebook["cells"][at]["source"])
    return match is not None and match[1] in names_in(notebook["cells"][at - 1]["source"])


def _new_cell(notebook: Any, module: str, text: str) -> Any:
    """A cell with an id made of its names, so that the same fold gives the same notebook."""
    node = nbformat().new_code_cell(text, metadata={"tags": [FOLD + module]})
    taken = {other.get("id") for other in notebook["cells"]}
    stem = re.sub(r"[^a-zA-Z0-9-]", "-", f"fold-{module}-{'-'.join(names_in(text)) or 'head'}")[:56]
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    node["id"] = name
    if notebook.get("nbformat_minor", 0) < 5:  # cells had no ids yet
        del node["id"]
    return node


def _title(text: str) -> str:
    """What a cell is called when it is spoken of."""
    return ", ".join(names_in(text)) or "the first cell" if not is_head(text) else "the docstring and imports"
