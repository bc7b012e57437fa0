"""A page of HTML as a tree of elements, whose texts and attributes are escaped as it is written."""

import importlib.resources
import re
from xml.etree import ElementTree

# What HTML has no place for.
_CONTROL = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]')


def element(tag: str, *children, **attributes) -> ElementTree.Element:
    """An element of HTML or SVG.

    Args:
      tag: its name.
      children: elements, texts (anything else becomes one), and None, which is left out.
      attributes: their values; a trailing _ of a name is left out, other _ are -, so that `class_` and
        `stroke_width` can be written. One that is None is left out.
    """
    given = {
        name.rstrip('_').replace('_', '-'): _clean(value)
        for name, value in attributes.items()
        if value is not None
    }
    made = ElementTree.Element(tag, given)
    for child in children:
        if child is None:
            continue
        if ElementTree.iselement(child):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or '') + _clean(child)
        else:
            made.text = (made.text or '') + _clean(child)
    return made


def _clean(value):
    return _CONTROL.sub('�', str(value))


def table(caption: str, head, rows, class_: str | None = None) -> ElementTree.Element:
    """A table that scrolls in itself where it is wider than the page, by keys, too.

    Args:
      caption: what it is.
      head: the names of its columns.
      rows: of cells, each a text, an element, or a whole `td`; the first names its row.
      class_: of the table.
    """

    def row(cells):
        first, *others = cells
        return element('tr', element('th', first, scope='row'), *map(cell_of, others))

    def cell_of(cell):
        is_whole = ElementTree.iselement(cell) and cell.tag == 'td'
        return cell if is_whole else element('td', cell)

    made = element(
        'table',
        element('caption', caption),
        element('thead', element('tr', *(element('th', name, scope='col') for name in head))),
        element('tbody', *map(row, rows)),
        class_=class_,
    )
    return element('div', made, class_='scroll', role='region', aria_label=caption, tabindex='0')


def folded(summary: str, *children) -> ElementTree.Element:
    """What is shown when a person asks for it."""
    return element('details', element('summary', summary), *children)


def page(title: str, *children) -> str:
    """The text of a whole page, which needs nothing else."""
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
