"""The manual as a PDF: `docs/manual.md` into `docs/manual.pdf`, the same bytes for the same source."""  # noqa: INP001

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF, FontFace, TextStyle
from fpdf.outline import OutlineSection, TableOfContents
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

SOURCE = Path(__file__).with_name("manual.md")
ACCENT, PALE, RULE = (18, 78, 96), (243, 246, 247), (203, 213, 217)
TITLE = TextStyle("helvetica", "B", 34, color=255)
CHAPTER = TextStyle("helvetica", "B", 22, color=ACCENT, b_margin=4)
SECTION = TextStyle("helvetica", "B", 12.5, color=ACCENT, t_margin=4, b_margin=2)
FONTS = {"code_inline": ("courier", "", 9.4), "strong": ("helvetica", "B", 10), "em": ("helvetica", "I", 10)}
LISTING = FontFace("courier", size_pt=8.2)
GRID = {"borders_layout": "HORIZONTAL_LINES", "line_height": 4.4, "padding": 1}
HEAD = FontFace(emphasis="BOLD", color=ACCENT, fill_color=PALE)


class Manual(FPDF):
    """A title page with the contents, then every chapter from a new page on; a `draw_` for each kind of block."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.chapter = ""
        self.set_title(title)
        self.set_author("The celeriq authors")
        self.set_lang("en")
        self.set_creation_date(datetime(2026, 11, 20, tzinfo=UTC))
        self.set_margins(24, 20)
        self.set_auto_page_break(auto=True, margin=19)
        self.set_section_title_styles(CHAPTER, SECTION)
        self.add_page()
        self.set_fill_color(ACCENT)
        self.rect(0, 0, self.w, 90, style="F")
        with self.use_text_style(TITLE):
            self.text(self.l_margin + self.c_margin, 60, title)
        self.set_y(105)
        self.set_draw_color(RULE)
        self.set_fill_color(PALE)

    def footer(self) -> None:
        if self.chapter:
            self.set_y(-14)
            self.set_font("helvetica", size=8.5)
            self.cell(self.epw / 2, text=self.chapter)
            self.cell(self.epw / 2, text=str(self.page_no()), align="R")

    def keep_together(self, node: SyntaxTreeNode | None, above: float = 0) -> None:
        begin, end = (node and node.map) or (0, 0)
        if self.will_page_break(above + 5 * (end - begin)):
            self.add_page()

    def draw_heading(self, node: SyntaxTreeNode) -> None:
        if node.tag == "h3":
            self.keep_together(node.next_sibling, above=15)
            self.start_section(text_of(node), level=1)
            return
        self.add_page() if self.chapter else self.insert_toc_placeholder(draw_contents)
        self.chapter = text_of(node)
        self.start_section(self.chapter)
        self.line(self.l_margin, self.y, self.w - self.r_margin, self.y)
        self.ln(2)

    def draw_paragraph(self, node: SyntaxTreeNode, bullet: str = "") -> None:
        self.set_font("helvetica", size=10)
        with self.text_columns(line_height=1.36) as column:
            paragraph = column.paragraph(bottom_margin=2.2, indent=6 if bullet else 0, bullet_string=bullet)
            for span in node.children[0].children:
                self.set_font(*FONTS.get(span.type, ("helvetica", "", 10)))
                paragraph.write(text_of(span))

    def draw_bullet_list(self, node: SyntaxTreeNode) -> None:
        for item in node.children:
            self.draw_paragraph(item.children[0], bullet="\x95")

    def draw_fence(self, node: SyntaxTreeNode) -> None:
        self.keep_together(node)
        with self.use_font_face(LISTING):
            self.multi_cell(0, 4.1, node.content.rstrip(), align="L", fill=True, padding=3, new_x="LMARGIN")
        self.ln(3.5)

    def draw_table(self, node: SyntaxTreeNode) -> None:
        rows = [row.children for part in node.children for row in part.children]
        widths = [min(1.8 * max(len(text_of(cell)) for cell in column) + 4, 58) for column in zip(*rows, strict=True)]
        widths[-1] = self.epw - sum(widths[:-1])
        self.set_font("helvetica", size=9)
        with self.table(col_widths=widths, headings_style=HEAD, **GRID) as table:
            for cells in rows:
                row = table.row()
                for cell in cells:
                    code = cell.children[0].children[0].type == "code_inline"
                    row.cell(text_of(cell), "L", style=LISTING if code else None)
        self.ln(3.5)


def draw_contents(manual: FPDF, outline: list[OutlineSection]) -> None:
    chapters = [section for section in outline if section.level == 0]
    TableOfContents(TextStyle("helvetica", "", 12, t_margin=2.5)).render_toc(manual, chapters)


def text_of(node: SyntaxTreeNode) -> str:
    return "".join(" " if leaf.type == "softbreak" else leaf.content for leaf in node.walk() if not leaf.children)


def typeset(markdown: str) -> bytes:
    blocks = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown)).children
    manual = Manual(text_of(blocks[0]))
    for block in blocks[1:]:
        getattr(manual, f"draw_{block.type}")(block)
    return bytes(manual.output())


if __name__ == "__main__":
    SOURCE.with_suffix(".pdf").write_bytes(typeset(SOURCE.read_text()))
