"""The documents in the repository, and the site that MkDocs builds from them."""

import ast
import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
]
# {page of the reference: modules that it documents}.
PUBLIC = {
    'python': ('td_jax/own.py', 'td_jax/compare.py'),
    'losses': ('td_jax/losses.py',),
    'models': ('td_jax/models/base.py',),
    'communication': ('td_jax/method/communication.py',),
}
CODE = re.compile(r'^```.*?^```$|`[^`]*`', re.MULTILINE | re.DOTALL)


def list_anchors_on_github(path):
    """The anchors of a document's headings: lower case, without punctuation, dashes for spaces."""
    text = re.sub(r'^```.*?^```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_links_work_in_the_repository():
    number = 0
    for document in DOCUMENTS:
        for link in re.findall(r'\]\(([^)\s]+)\)', CODE.sub('', document.read_text())):
            if re.match(r'https?:', link):
                continue
            name, _, anchor = link.partition('#')
            target = document.parent / name if name else document
            assert target.is_file(), f'{document}: {link}'
            assert not anchor or anchor in list_anchors_on_github(target), f'{document}: {link}'
            number += 1
    assert number > 100


def list_parameters(node):
    """The names of a function's parameters, or of a class's fields."""
    if isinstance(node, ast.ClassDef):
        return [child.target.id for child in node.body if isinstance(child, ast.AnnAssign)]
    arguments = node.args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


@pytest.mark.parametrize('path', [path for paths in PUBLIC.values() for path in paths])
def test_the_reference_describes_the_parameters_that_are_there(path):
    """One line may describe several parameters, which the site's own check does not support."""
    described = 0
    for node in ast.parse((ROOT / path).read_text()).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'):
            continue
        section = re.search(r'^(?:Args|Attributes):\n((?:  .*\n?)+)', ast.get_docstring(node) or '', re.M)
        if section:
            lines = re.findall(r'^  (\w[\w, ]*):', section.group(1), re.MULTILINE)
            assert [name for line in lines for name in line.split(', ')] == list_parameters(node), node.name
            described += 1
    assert described


# --- On the site -----------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The anchors, links, loaded resources and text in <pre> of a page."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.tabs, self.code = set(), [], [], [], ''
        self._is_tab, self._depth = False, 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[key] for key in ('id', 'name') if attributes.get(key)}
        if tag == 'a':
            self.links.append(attributes.get('href') or '')
            self._is_tab = attributes.get('class') == 'md-tabs__link'
        elif tag in ('script', 'img', 'iframe') and attributes.get('src'):
            self.loads.append(attributes['src'])
        elif tag == 'link':
            self.loads.append(attributes['href'])
        self._depth += tag == 'pre'

    def handle_endtag(self, tag):
        self._is_tab = self._is_tab and tag != 'a'
        self._depth -= tag == 'pre'

    def handle_data(self, data):
        if self._is_tab and data.strip():
            self.tabs.append(data.strip())
        if self._depth:
            self.code += data


def build_site(folder, site):
    """Builds the site of a checkout: (exit code, output)."""
    completed = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--site-dir', site],
        cwd=folder,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.returncode, completed.stdout + completed.stderr


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """{path in the site: Page}, and its folder."""
    pytest.importorskip('mkdocs', reason='The site needs requirements-docs.txt.')
    folder = tmp_path_factory.mktemp('site')
    code, text = build_site(ROOT, folder)
    assert code == 0 and 'WARNING' not in text, text
    # The error page of the server, at any address.
    pages = sorted(path for path in folder.rglob('*.html') if path.name != '404.html')
    return folder, {str(path.relative_to(folder)): Page(path) for path in pages}


@pytest.mark.long
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_fetched_from_elsewhere(site):
    folder, pages = site
    # Every document has a page, and every page of source code is linked.
    assert len(pages) > len(DOCUMENTS)
    anchored = 0
    for name, page in pages.items():
        for address in (*page.links, *page.loads):
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc:
                assert address in page.links and address not in page.loads, f'{name} loads {address}'
                continue
            path = urllib.parse.unquote(parts.path)
            target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            target = 'index.html' if target == '.' else target
            assert (folder / target).is_file(), f'{name}: {address}'
            if parts.fragment:
                assert urllib.parse.unquote(parts.fragment) in pages[target].anchors, f'{name}: {address}'
                anchored += 1
    assert anchored > 500
    for sheet in folder.rglob('*.css'):
        assert not re.search(r'(url\(|@import )["\']?(https?:)?//', sheet.read_text()), sheet


@pytest.mark.long
def test_the_site_has_what_the_repository_has(site):
    _, pages = site
    start = pages['index.html']
    assert start.tabs == ['Start', 'Your data', 'Reproduce', 'Extend', 'Cloud', 'Reference']
    # The diagram of README, character by character, and a file outside docs/.
    (diagram,) = re.findall(r'^```\n(.*?)^```$', (ROOT / 'README.md').read_text(), re.MULTILINE | re.DOTALL)
    assert diagram in start.code
    common = 'source/td_jax/configs/common.py.html'
    assert common in start.links
    assert (ROOT / 'td_jax' / 'configs' / 'common.py').read_text().rstrip() in pages[common].code
    # All public functions and classes, and a formula in a code block.
    for name, paths in PUBLIC.items():
        anchors = pages[f'reference/{name}.html'].anchors
        for path in paths:
            module = path.removesuffix('.py').replace('/', '.')
            nodes = ast.parse((ROOT / path).read_text()).body
            public = {
                f'{module}.{node.name}'
                for node in nodes
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')
            }
            documented = {anchor for anchor in anchors if anchor.startswith(f'{module}.')}
            chosen = {'td_jax.own.train', 'td_jax.own.load', 'td_jax.compare.run'}
            assert documented == (public & chosen if name == 'python' else public)
    assert 'L_MC = d(m_h, m_g),   m_g = E_g(s_g, e_g)' in pages['reference/losses.html'].code


@pytest.mark.long
def test_links_that_lead_nowhere_end_the_build(tmp_path):
    pytest.importorskip('mkdocs', reason='The site needs requirements-docs.txt.')
    tracked = subprocess.check_output(['git', 'ls-files'], cwd=ROOT, text=True).splitlines()
    for name in tracked:
        if not name.startswith(('tests/golden/', 'docs/results/search/')) and not name.endswith('.npz'):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    links = {
        'docs/own.md': ('running.md#no-such-heading', 'no_such.md', '../td_jax/no_such.py'),
        'README.md': ('docs/glossary.md#no-such-heading',),
    }
    for document, targets in links.items():
        with (tmp_path / document).open('a') as file:
            file.writelines(f'\n[nowhere]({target})\n' for target in targets)
    code, text = build_site(tmp_path, tmp_path / 'site')
    assert code == 1 and 'Aborted with 4 warnings in strict mode!' in text
    # The links of README are those of the start page.
    for document, target in (
        ('own.md', 'running.md#no-such-heading'),
        ('own.md', 'no_such.md'),
        ('own.md', '../td_jax/no_such.py'),
        ('index.md', 'glossary.md#no-such-heading'),
    ):
        assert f"Doc file '{document}' contains a link '{target}'" in text, text
