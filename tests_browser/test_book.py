"""The built book, opened from disk: complete, quiet, and readable on a telephone and on a desk."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT, SITE, Watched


CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = ["index.html", "book/index.html", "book/notation.html", *(f"notebooks/{name}.html" for name in CHAPTERS)]
EXTRA = ["search.html?q=softmax", "genindex.html"]

pytestmark = pytest.mark.skipif(not SITE.is_dir(), reason=f"There is no book in {SITE}: `make book` makes it.")


class References(HTMLParser):
    """The ids of a page, what it links to, and what it loads; pictures also with their alternative text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        values = dict(attrs)
        self.ids |= {value for key, value in attrs if key in ("id", "name") and value}
        self.links += [value for key, value in attrs if key in ("href", "src") and value]
        if tag == "img":
            self.pictures.append(values.get("alt"))


def references(path: Path) -> References:
    """What a page of the book refers to."""
    return References(path.read_text(encoding="utf-8"))


def open_page(watched: Watched, name: str) -> None:
    """Open a page from disk and wait until its scripts are done."""
    watched.page.goto(f"{SITE.as_uri()}/{name}", wait_until="load")
    watched.page.wait_for_timeout(300)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", PAGES + EXTRA)
def test_page_is_quiet_and_fits(watched: Watched, name: str, width: int):
    watched.page.set_viewport_size({"width": width, "height": 900})
    open_page(watched, name)
    assert not watched.errors
    assert not watched.outside
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.page.evaluate("document.body.scrollWidth") <= width
    assert watched.page.locator("h1").count() >= 1


@pytest.mark.parametrize("name", PAGES[1:])  # the first leads to the second, and does no more
def test_links_resolve(name: str):
    page = SITE / name
    found = references(page)
    assert found.links
    broken = []
    for link in found.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = page.parent / unquote(parts.path) if parts.path else page
        if not target.is_file():
            broken.append(link)
            continue
        if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in references(target).ids:
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", PAGES[1:])
def test_nothing_is_loaded_from_elsewhere(name: str):
    """Also what a browser would fetch only later or not at all."""
    for line in (SITE / name).read_text(encoding="utf-8").splitlines():
        if "<script" in line or "<link" in line or "<img" in line:
            assert "://" not in line, line


@pytest.mark.parametrize("name", PAGES[1:])
def test_pictures_have_words(name: str):
    """MyST-NB takes them from the cell's metadata: {"mystnb": {"image": {"alt": …}}}."""
    assert all(alt and len(alt) > 20 and not alt.endswith(".png") for alt in references(SITE / name).pictures)


def test_search_finds_a_chapter(watched: Watched):
    open_page(watched, "search.html?q=attention")
    watched.page.locator("#search-results li").first.wait_for(timeout=10_000)
    assert "Attention" in watched.page.locator("#search-results").inner_text()


def test_a_solution_is_folded_until_it_is_opened(watched: Watched):
    open_page(watched, "notebooks/05_attention.html")
    solution = watched.page.locator("details.hide").first
    code = solution.locator("pre").first
    assert "solution_" in (code.text_content() or "")
    assert not code.is_visible()
    solution.locator("summary").first.click()
    assert code.is_visible()


def test_cells_of_the_package_are_marked(watched: Watched):
    open_page(watched, "notebooks/05_attention.html")
    color = "element => getComputedStyle(element).borderLeftColor"
    inside = watched.page.locator('div.cell[class*="tag_fold:"] > div.cell_input')
    outside = watched.page.locator('div.cell:not([class*="tag_fold:"]) > div.cell_input')
    assert inside.count() > 5
    assert inside.first.evaluate(color) == "rgb(217, 115, 13)"
    assert outside.first.evaluate(color) != "rgb(217, 115, 13)"


def test_a_widget_shows_what_it_last_showed(watched: Watched):
    """Where the notebook holds the state of a widget, its text stands in the page, with a word on how to move it."""
    stored = '"application/vnd.jupyter.widget-state+json"'
    holding = [name for name in CHAPTERS if stored in (ROOT / "notebooks" / f"{name}.ipynb").read_text()]
    if not holding:
        pytest.skip("No notebook holds the state of a widget: `make run-notebooks` stores it.")
    open_page(watched, f"notebooks/{holding[-1]}.html")
    still = watched.page.locator(".still").first
    assert "Run the notebook in JupyterLab" in still.inner_text()
    assert still.locator("span[title]").count() > 5


def test_notation_is_right_about_the_small_model():
    from minillm.model import ModelConfig

    nano = ModelConfig.preset("nano", vocab_size=1024)
    rows = [line.split("|") for line in (ROOT / "book" / "notation.md").read_text().splitlines() if line[:1] == "|"]
    table = {row[1].strip(): row[3].strip() for row in rows if len(row) == 5}
    numbers = {
        "C": nano.d_model, "H": nano.n_heads, "K": nano.n_kv_heads, "D": nano.head_dim, "F": nano.d_ff,
        "V": nano.vocab_size, "L": nano.n_layers,
    }  # fmt: skip
    assert {key: table[key] for key in numbers} == {key: str(value) for key, value in numbers.items()}
    assert table["T"] == table["S"] == f"up to {nano.max_seq_len}"
