"""The ledger's Markdown as HTML for a page that loads nothing."""

import base64
from pathlib import Path
from urllib.parse import unquote

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".svg": "image/svg+xml"}
LARGEST_PICTURE = 1_000_000  # bytes of a picture that is taken into the page
LOWER = 2  # levels by which headings move below those of the page


def rendered(text: str, folder: Path) -> str:
    """Markdown with tables as HTML: pictures from ``folder`` inside the page, HTML in the text shown as text.

    A picture that lies elsewhere, or is large, becomes its description. Links stay as they are: the page lies in the same folder.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable(["table", "strikethrough"])
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + LOWER, 6)}"
        for child in token.children or ():
            if child.type == "image":
                uri = _uri(str(child.attrs["src"]), folder)
                if uri is None:
                    child.type, child.content, child.children = "text", f"[picture: {child.content}]", []
                else:
                    child.attrs["src"] = uri
    return parser.renderer.render(tokens, parser.options, {})


def _uri(address: str, folder: Path) -> str | None:
    """The data URI of a picture inside the folder, or None."""
    path = (folder / unquote(address)).resolve()
    kind = KINDS.get(path.suffix.lower())
    if kind is None or "://" in address or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    content = path.read_bytes()
    if len(content) > LARGEST_PICTURE:
        return None
    return f"data:{kind};base64," + base64.b64encode(content).decode()
