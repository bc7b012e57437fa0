"""The page: runs of every kind, escaped content of files, and no external resources."""

import html.parser
import json
import re

import numpy as np
from etils import epath

from td_jax.reporting import page, runs

VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'source', 'col', 'area', 'base', 'embed', 'track', 'wbr'}
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;\x00'


class Page(html.parser.HTMLParser):
    """The tags and texts of a page, which must be well formed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.texts, self.addresses = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not [name for name in attributes if name.startswith('on')]
        self.tags.append(tag)
        self.ids += [attributes['id']] if 'id' in attributes else []
        self.addresses += [attributes[name] for name in ('href', 'src', 'xlink:href') if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] != 'style':
            self.texts.append(text)


def render_page(root):
    """(text, Page) of a folder's page."""
    root = epath.Path(root)
    text = page.render(root, runs.find_runs(root))
    return text, Page(text)


def make_lines(split='validation', terms=('task', 'state')):
    """The metrics of a run, with diagnostics."""
    records = []
    for step in (0, 2, 4, 6):
        records.append({'step': step, **{f'share_{term}': 1 / len(terms) for term in terms}})
        records[-1] |= {
            f'{side}_message_{measure}': 0.5 for side in ('student', 'teacher') for measure in ('std', 'rank')
        }
        if step:
            records[-1] |= {'train_loss': 1 / step, 'train_task': 0.5 / step}
            records.append(
                {'step': step, f'{split}_rmse': 0.5, f'{split}_rmse/seed_0': 0.4, f'{split}_rmse/seed_1': 0.6}
            )
    return records


def test_a_folder_of_runs_of_every_kind(write_run, tmp_path):
    rng = np.random.default_rng(0)
    write_run(
        tmp_path / 'scratch', [1.0, 1.25], rng.random((2, 9)), make_lines(terms=()), method='supervised'
    )
    td = write_run(tmp_path / 'td', [0.5, 0.625], rng.random((2, 9)), make_lines(), teacher='a')
    write_run(td / 'teacher', [0.75], lines=make_lines(), method='supervised', seed=4)
    write_run(tmp_path / 'ld', None, lines=make_lines(), method='ld')
    fd = write_run(tmp_path / 'fd', None, method='fd')
    (fd / 'diverged.json').write_text(json.dumps({'reason': 'the loss of fd is not finite at step 5'}))
    rkd = write_run(tmp_path / 'rkd', [0.5], method='rkd')
    (rkd / 'result.json').write_text('{')
    text, parsed = render_page(tmp_path)
    page_text = ' '.join(parsed.texts)
    assert '5 runs: 2 finished, 1 unfinished, 1 diverged, 1 damaged. 1 teacher: 1 finished.' in page_text
    assert 'the loss of fd is not finite at step 5' in page_text
    assert 'result.json cannot be read' in page_text
    assert 'at step 6 of 6 when its metrics were last written' in page_text
    # Differences -0.5 and -0.625: t(0.975, 1) = 12.706 times 0.0625.
    assert '-0.5625 ± 0.7941' in page_text
    assert '0.5625 ± 0.7941' in page_text
    for title in (
        'validation rmse',
        'training loss',
        'training task',
        'Shares of the gradient',
        'td, std',
        'td, rank',
        'Teachers',
        'Difference in rmse to no distillation',
    ):
        assert title in page_text, title
    # The links lead to the titles.
    assert [address.removeprefix('#') for address in parsed.addresses] == parsed.ids
    # Options that have an effect are listed, and others are not.
    assert 'communication.hidden' in page_text
    assert 'dkd.temperature' not in page_text
    # Methods differ, and are in the labels of the rows.
    assert '<th scope="row">method</th>' not in text
    # The same files give the same page.
    assert render_page(tmp_path)[0] == text


def test_the_page_stands_alone(write_run, tmp_path):
    write_run(tmp_path / 'td', [0.5, 0.625], lines=make_lines())
    text, parsed = render_page(tmp_path)
    assert not {'script', 'link', 'img', 'iframe', 'object', 'embed', 'base', 'form'} & set(parsed.tags)
    assert all(address.startswith('#') for address in parsed.addresses)
    assert not re.search(r'https?:|url\(|@import', text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">' in text
    )
    assert 'prefers-color-scheme: dark' in text
    # Every table scrolls by itself and with the keyboard; every chart has a title.
    assert text.count('<table') == text.count('<div class="scroll" role="region" aria-label=')
    assert text.count('<table') == text.count('tabindex="0"') > 2
    assert text.count('role="img"><title>') == text.count('role="img"') > 2


def test_what_files_say_is_text(write_run, tmp_path):
    folder = write_run(
        tmp_path / 'a&lt;<b>', [0.5, 0.625], lines=[*make_lines(), {'step': 7, f'share_{EVIL}': 0.5}]
    )
    for name in ('config.json', 'result.json'):
        path = folder / name
        content = json.loads(path.read_text())
        content |= (
            {'dataset': EVIL, 'metric': EVIL, 'split': EVIL} if name == 'result.json' else {'method': EVIL}
        )
        content |= {EVIL: EVIL, 'lone': '\ud800'}
        if name == 'result.json':
            content |= {'versions': {EVIL: EVIL}, 'steps': 7}
            content['groups'] = {name: {'count': 1, 'values': [1, 2]} for name in (EVIL, 'b')}
        path.write_text(json.dumps(content))
    (folder / 'diverged').mkdir()
    (folder / 'diverged' / 'metrics.jsonl').touch()
    (folder / 'diverged' / 'diverged.json').write_text(json.dumps({'reason': EVIL}))
    (folder / 'cka.json').write_text(
        json.dumps(
            {'estimator': EVIL, 'cka': {EVIL: {EVIL: {EVIL: 1}}}, 'by_seed': {EVIL: {EVIL: {EVIL: 1}}}}
        )
    )
    text, parsed = render_page(tmp_path)
    assert not {'script', 'img', 'b'} & set(parsed.tags)
    evil_text = EVIL.replace('\x00', '\ufffd')
    assert evil_text in parsed.texts
    assert '\x00' not in text
    text.encode()


def test_runs_on_the_test_have_no_curve_of_it(write_run, tmp_path):
    last = [{'step': 6, 'test_rmse': 0.5, 'test_rmse/seed_0': 0.5}]
    write_run(tmp_path / 'a', [0.5], lines=[*make_lines(), *last], dataset__split='test')
    _, parsed = render_page(tmp_path)
    titles = [text for text in parsed.texts if text.startswith(('test rmse', 'validation rmse', 'training'))]
    assert 'training loss' in titles
    assert 'test rmse' not in titles
    assert 'validation rmse' not in titles


def test_why_there_is_no_difference_is_reported_once(write_run, tmp_path):
    write_run(tmp_path / 'td', [0.5, 0.6], np.ones((2, 3)))
    write_run(tmp_path / 'ld', [0.5, 0.6], method='ld')
    notes = [text for text in render_page(tmp_path)[1].texts if text.startswith('No difference')]
    assert notes == ['No difference: no finished run without distillation.']
    for i in (0, 1):
        write_run(
            tmp_path / f'scratch_{i}', [0.5, 0.6], np.ones((2, 3)), method='supervised', batch_size=4 * i + 5
        )
    write_run(tmp_path / 'fd', [0.5, 0.6], np.ones((2, 3)), method='fd', batch_size=9)
    (tmp_path / 'fd' / 'errors.npz').write_text('')
    texts = render_page(tmp_path)[1].texts
    assert 'No difference of ld; td: 2 runs without distillation are equally near.' in texts
    assert [text for text in texts if text.startswith('fd: ') and 'errors.npz cannot be read' in text]


def test_more_rows_than_a_chart_can_show_are_in_several(write_run, tmp_path):
    write_run(tmp_path / 'scratch', [0.5, 0.6], lines=make_lines(), method='supervised')
    for i in range(7):
        write_run(tmp_path / f'td_{i}', [0.5, 0.6], lines=make_lines(), td__rounds=i)
    _, parsed = render_page(tmp_path)
    # Two charts: seven rows, and in each the row without distillation.
    assert parsed.texts.count('training loss') == 2
    assert parsed.texts.count('td, rounds 3') > 4


def test_groups_and_scores_of_teachers_are_columns(write_run, tmp_path):
    for name, known_values in (('a', [0.25, 0.75]), ('b', [0.5])):
        folder = write_run(
            tmp_path / name, [0.5] * len(known_values), teacher='t', seed=len(name) if name == 'a' else 7
        )
        path = folder / 'result.json'
        content = json.loads(path.read_text())
        content['groups'] = {
            'known_users': {'count': 5, 'values': known_values},
            'unknown_users': {'count': 3, 'values': 'damaged' if name == 'b' else known_values},
        }
        path.write_text(json.dumps(content))
    _, parsed = render_page(tmp_path)
    # 0.25, 0.75 and 0.5: t(0.975, 2) = 4.3027 times 0.25 / sqrt(3).
    assert parsed.texts.count('0.5000 ± 0.6210') == 1
    assert {'known users', 'unknown users', 'its teacher'} <= set(parsed.texts)


def test_maps_of_representations(write_run, tmp_path):
    write_run(tmp_path / 'td', [0.5])
    pairs = [f'{g},{h}' for g in ('s_g', 'm_g') for h in ('s_h', 'm_h')]
    rng = np.random.default_rng(0)

    def draw_row():
        return {pair: float(value) for pair, value in zip(pairs, rng.uniform(-0.1, 1, 4), strict=True)}

    classes = {f'class {i}': draw_row() for i in range(100)}
    by_seed = {'0': {**draw_row(), 's_g,s_h': 0.25}, '1': {**draw_row(), 's_g,s_h': 0.75}}
    content = {
        'estimator': 'debiased',
        'dataset': 'd',
        'split': 'test',
        'cka': {'td': classes},
        'by_seed': {'td': by_seed},
    }
    (tmp_path / 'figure').mkdir()
    (tmp_path / 'figure' / 'cka.json').write_text(json.dumps(content))
    text, parsed = render_page(tmp_path)
    assert 'Representations: figure' in parsed.texts
    # t(0.975, 1) = 12.706 times 0.25.
    assert '0.500 ± 3.177' in parsed.texts
    # Every third class: 34 rows of four cells, whose colour is lighter the higher the CKA.
    cells = re.findall(r'<td style="background: (#\w+); color: (#\w+)">([-\d.]+)</td>', text)
    assert len(cells) == 34 * 4
    assert 'class 3' in parsed.texts
    assert 'class 4' not in parsed.texts
    ordered = sorted(cells, key=lambda cell: float(cell[2]))

    def compute_luminance(colour):
        return np.dot([int(colour[i : i + 2], 16) for i in (1, 3, 5)], (0.2126, 0.7152, 0.0722))

    greys = [compute_luminance(colour) for colour, _, _ in ordered]
    assert np.all(np.diff(greys) > -2)
    assert (ordered[0][1], ordered[-1][1]) == ('#ffffff', '#000000')
    # Text is white on dark cells and black from a certain lightness on.
    inks = [ink for _, ink, _ in ordered]
    assert inks == sorted(inks, reverse=True)
    for damage in ({'cka': {}}, {'by_seed': {'other': by_seed}}, {'cka': {'td': {'a': {'s_g,s_h': 'x'}}}}):
        (tmp_path / 'figure' / 'cka.json').write_text(json.dumps({**content, **damage}))
        assert 'cka.json is damaged or not of td_jax.cka' in ' '.join(render_page(tmp_path)[1].texts)
