"""Builds a page of HTML as a tree of elements; writing it escapes texts and attributes."""

import importlib.resources
import re
from xml.etree import ElementTree

# Characters that HTML does not allow.
_CONTROL = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]')


def element(tag: str, *children, **attributes) -> ElementTree.Element:
    """Makes an element of HTML or SVG.

    Args:
      tag: its name.
      children: elements and texts; None is left out, and anything else becomes a text.
      attributes: their values; None is left out. In names, a trailing _ is dropped and other _ become -, as
        in `class_` and `stroke_width`.
    """
    values = {
        name.rstrip('_').replace('_', '-'): _clean(value)
        for name, value in attributes.items()
        if value is not None
    }
    node = ElementTree.Element(tag, values)
    for child in children:
        if child is None:
            continue
        if ElementTree.iselement(child):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or '') + _clean(child)
        else:
            node.text = (node.text or '') + _clean(child)
    return node


def _clean(value):
    return _CONTROL.sub('�', str(value))


def table(caption: str, head, rows, class_: str | None = None) -> ElementTree.Element:
    """Makes a table that scrolls, also by keyboard, if it is wider than the page.

    Args:
      caption: its title.
      head: the names of the columns.
      rows: lists of cells, each a text, an element or a whole `td`; the first one is the name of the row.
      class_: of the table.
    """

    def row(cells):
        first, *others = cells
        return element('tr', element('th', first, scope='row'), *map(cell_of, others))

    def cell_of(cell):
        is_whole = ElementTree.iselement(cell) and cell.tag == 'td'
        return cell if is_whole else element('td', cell)

    node = element(
        'table',
        element('caption', caption),
        element('thead', element('tr', *(element('th', name, scope='col') for name in head))),
        element('tbody', *map(row, rows)),
        class_=class_,
    )
    return element('div', node, class_='scroll', role='region', aria_label=caption, tabindex='0')


def collapsible(summary: str, *children) -> ElementTree.Element:
    """Makes a section that is closed until the reader opens it."""
    return element('details', element('summary', summary), *children)


def page(title: str, *children) -> str:
    """Writes a whole page, which needs no other files, as text."""
    style = importlib.resources.files(__package__).joinpath('page.css').read_text(encoding='utf-8')
    root = element(
        'html',
        element(
            'head',
            element('meta', charset='utf-8'),
            element('meta', name='viewport', content='width=device-width, initial-scale=1'),
            element('meta', name='color-scheme', content='light dark'),
            element('title', title),
            element('style', style),
        ),
        element('body', element('main', *children)),
        lang='en',
    )
    return '<!DOCTYPE html>\n' + ElementTree.tostring(root, encoding='unicode', method='html') + '\n'
