"""A hook of mkdocs: the site's start page is README.md, its links taken from docs/."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files that are not pages, such as CONTRIBUTING.md, become plain text."""
    if page.file.src_uri != "index.md":
        return markdown
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!docs/|https?:)[^)]*\)", r"\1", README.read_text(encoding="utf-8"))
    return text.replace("](docs/", "](")
