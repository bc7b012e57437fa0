"""What the site has in addition to the pages of docs/: documents and sources that lie elsewhere.

MkDocs takes pages from docs/ alone. README becomes the start page, and every file outside docs/ that a
document links to becomes a page of its own, so that one link works in the repository and on the site. A link
to a file that does not exist is left as it is, and the strict build fails on it.
"""

import json
import pathlib
import posixpath
import re

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).parents[2]
# Documents -> their pages, where that is not the file's own place in docs/.
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    # Its own name would be that of the start page.
    'docs/README.md': 'documents.md',
}
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.yaml': 'yaml', '.cff': 'yaml'}
# Code, which is left alone, or the end of a link to a file: ](PATH#ANCHOR).
CODE_OR_LINK = re.compile(
    r'^(?P<fence>```+).*?^(?P=fence)$|(?P<ticks>`+).*?(?P=ticks)'
    r'|\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)',
    re.MULTILINE | re.DOTALL,
)


def on_files(files, config):
    """Adds a page for each document of PAGES and for each file outside docs/ that a document links to."""
    files.remove(files.get_file_from_path('README.md'))
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    documents = [file.src_uri for file in files.documentation_pages()]
    linked = {
        path
        for page in documents
        for path in _linked_from((ROOT / _path_of(page)).read_text(), _path_of(page))
        if not path.startswith('docs/') and path not in PAGES and (ROOT / path).is_file()
    }
    for path in sorted(linked):
        files.append(
            File.generated(
                config, _page_of(path), content=_show_source(path), inclusion=InclusionLevel.NOT_IN_NAV
            )
        )
    return files


def on_page_markdown(markdown, page, files, **_):
    """Points links that leave docs/, or come from outside it, to pages of the site."""
    path = _path_of(page.file.src_uri)

    def point(match):
        if not match['path']:
            return match[0]
        target = _page_of(_resolve(match['path'], path))
        if files.get_file_from_path(target) is None:
            return match[0]
        relative = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')
        return f']({relative}{match["anchor"] or ""})'

    return CODE_OR_LINK.sub(point, markdown)


def _resolve(target, path):
    """The path in the repository of what the document at a path links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _linked_from(markdown, path):
    """The paths in the repository of all files that the document at a path links to."""
    return [_resolve(match['path'], path) for match in CODE_OR_LINK.finditer(markdown) if match['path']]


def _page_of(path):
    """The page or file of the site for a path in the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix('docs/') if path.startswith('docs/') else f'source/{path}.md'


def _path_of(page):
    """The path in the repository of a page of the site."""
    if page.startswith('source/'):
        return page.removeprefix('source/').removesuffix('.md')
    return {page: path for path, page in PAGES.items()}.get(page, f'docs/{page}')


def _show_source(path):
    """A page that shows a file; of a notebook, its cells."""
    text = (ROOT / path).read_text()
    suffix = pathlib.PurePath(path).suffix
    if suffix != '.ipynb':
        return f'# {path}\n\n~~~~~~{LANGUAGES.get(suffix, "text")}\n{text}~~~~~~\n'
    cells = [(cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(text)['cells']]
    return '\n\n'.join(
        source if kind == 'markdown' else f'```python\n{source}\n```' for kind, source in cells
    )
