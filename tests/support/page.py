"""Reads an HTML page as a tree, with nothing but the standard library."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Node:
    """An element, or the page itself."""

    tag: str
    attributes: dict[str, str]
    children: "list[Node | str]" = field(default_factory=list)

    def __iter__(self) -> "Iterator[Node]":
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child

    def all(self, tag: str | None = None, *, class_: str | None = None) -> "list[Node]":
        """The elements inside, at any depth, with this tag and class."""
        return [
            node
            for node in self
            if tag in (None, node.tag)
            and (class_ is None or class_ in node.attributes.get("class", "").split())
        ]

    def one(self, tag: str | None = None, *, class_: str | None = None) -> "Node":
        """The only such element."""
        (node,) = self.all(tag, class_=class_)
        return node

    def at(self, anchor: str) -> "Node":
        """The element with this id."""
        (node,) = (node for node in self if node.attributes.get("id") == anchor)
        return node

    def text(self, tag: str | None = None, *, class_: str | None = None) -> str:
        """The text of the element, or of the only one inside with this tag and class."""
        if tag or class_:
            return self.one(tag, class_=class_).text()
        words = " ".join(child if isinstance(child, str) else child.text() for child in self.children)
        return " ".join(words.split())

    def table(self) -> list[list[str]]:
        """The texts of the cells of the only table inside, row by row, with its header."""
        rows = self.one("table").all("tr")
        return [[cell.text() for cell in row if cell.tag in ("th", "td")] for row in rows]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def read_page(page: Path | bytes) -> Node:
    """The page. Fails for elements that are not closed in turn."""
    reader = _Reader()
    reader.feed((page.read_bytes() if isinstance(page, Path) else page).decode())
    reader.close()
    assert len(reader._open) == 1
    return reader.root
