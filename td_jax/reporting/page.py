"""The page of a folder of runs, from what was found there."""

from etils import epath

import td_jax
from td_jax import config as config_lib
from td_jax import statistics
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reporting import charts, comparison, curves, maps, settings
from td_jax.reporting.markup import element, folded, page, table
from td_jax.reporting.runs import DAMAGED, DIVERGED, FINISHED, UNFINISHED, Found, find, teachers
from td_jax.training import evaluation

_STATES = (FINISHED, UNFINISHED, DIVERGED, DAMAGED)
_INTERVALS = (
    '± is the half-width of the 95% t interval over n seeds; students that share a teacher count once, '
    'by their mean. Δ is the difference to the run without distillation of the same setting, over the '
    'seeds that both have. The bootstrap resamples {units} and seeds, those of one teacher together. p '
    "is the p-value of the paired t-test, with Holm's correction for the rows. A difference is "
    'significant, and a row better or worse, if both intervals exclude 0. n.s.: not significant. Fewer '
    'than {fewest} seeds or teachers support no verdict.'
)
_UNITS = {'rmse': 'users', 'accuracy': 'examples'}


def write(root: epath.Path, target: epath.Path) -> int:
    """Writes the page of a folder of runs; -> how many there are.

    Args:
      root: the workdir of a run, or a folder with some in it.
      target: the file, which is made or replaced.

    Raises:
      UserError: there is no run, or the file cannot be written.
    """
    # So that no file of a run is replaced by mistake.
    if target.suffix not in ('.html', '.htm'):
        raise UserError(f'--output {target} is no name of a page; let it end in .html.')
    if target.is_dir():
        raise UserError(f'--output {target} is a folder; name a file in it.')
    workdir.check_target('--output', target)
    found = find(root)
    text = make(root, found)
    with workdir.whole(target) as path:
        path.write_text(text, encoding='utf-8')
    return len(found.runs)


def make(root: epath.Path, found: Found) -> str:
    """The page as HTML.

    Args:
      root: the folder, for its name.
      found: what runs.find gave of it.
    """
    teaching = teachers(found.runs)
    made = settings.make(found.runs, teaching)
    sections = [(setting.title, _setting(setting)) for setting in made]
    if teaching:
        sections.append(('Teachers', _teachers(found, teaching)))
    sections += [(f'Representations: {name}', _representations(folder)) for name, folder in found.comparisons]
    if unfinished := _unfinished(found):
        sections.insert(0, ('Unfinished runs', unfinished))
    if remarks := [(run.name, remark) for run in found.runs for remark in run.remarks]:
        sections.append(('Remarks on files', [table('Left out', ['run', 'why'], remarks, 'texts')]))
    title = f'Runs in {root.name or root}'
    links = [element('li', element('a', name, href=f'#section-{i}')) for i, (name, _) in enumerate(sections)]
    return page(
        title,
        element('h1', title),
        element('p', _counted(found, teaching)),
        element('nav', element('ul', *links), aria_label='Sections'),
        *(
            element('section', element('h2', name, id=f'section-{i}'), *content)
            for i, (name, content) in enumerate(sections)
        ),
        element('p', _versions(found), class_='note'),
    )


def _counted(found, teaching):
    def said(runs, what):
        counts = [(state, sum(run.state == state for run in runs)) for state in _STATES]
        states = ', '.join(f'{count} {state}' for state, count in counts if count)
        return f'{len(runs)} {what}{"s" if len(runs) != 1 else ""}: {states}.'

    students = [run for run in found.runs if run.name not in teaching]
    taught = [run for run in found.runs if run.name in teaching]
    return ' '.join(
        [*([said(students, 'run')] if students else []), *([said(taught, 'teacher')] if taught else [])]
    )


def _versions(found):
    made = [run.result.get('versions') for run in found.runs if run.result]
    texts = {
        ', '.join(f'{name} {version}' for name, version in sorted(versions.items()))
        for versions in made
        if isinstance(versions, dict)
    }
    by = f' Runs by {"; ".join(sorted(texts))}.' if texts else ''
    return f'Made by td_jax {td_jax.__version__}.{by}'


def _unfinished(found):
    rows = [
        [run.name, element('span', run.state, class_='warn'), run.reason]
        for run in found.runs
        if run.state != FINISHED
    ]
    rows += [
        [name, element('span', 'not readable', class_='warn'), reason] for name, reason in found.unreadable
    ]
    return [table('Runs without a valid result', ['run', 'state', 'why'], rows, 'texts')] if rows else []


# --- A setting -------------------------------------------------------------------------------------


def _setting(setting):
    compared = comparison.of_setting(setting)
    parts = [_results(setting, compared)]
    if any(found.paired for found in compared):
        units = _UNITS.get(setting.metric, 'examples')
        parts.append(element('p', _INTERVALS.format(units=units, fewest=statistics.FEWEST), class_='note'))
    parts += [element('p', text, class_='note') for text in _remarks(compared)]
    drawn = [_differences(setting, compared), *_learning(setting)]
    parts.append(element('div', *drawn, class_='charts'))
    for head, figures in (('Shares of the gradient', _shares(setting)), ('Messages', _messages(setting))):
        if figures:
            parts += [element('h3', head), element('div', *figures, class_='charts')]
    return [*parts, *_configs(setting)]


def _remarks(compared):
    """What is to be said of the comparisons of a setting, each reason once."""
    rows, others = {}, [found for found in compared if found.row.method != settings.SCRATCH]
    for found in others:
        if found.beside.reason:
            rows.setdefault(found.beside.reason, []).append(found.row.label)
    missing = [
        f'No difference{"" if len(labels) == len(others) else " of " + "; ".join(labels)}: {reason}.'
        for reason, labels in rows.items()
    ]
    return [*missing, *(f'{found.row.label}: {remark}' for found in others for remark in found.remarks)]


def _results(setting, compared):
    metric = f'{setting.split} {setting.metric}'.strip() if setting.metric else 'result'
    has_pairs = any(found.paired for found in compared)
    has_choice = len([row for row in setting.rows if row.method == settings.SCRATCH and row.finished]) > 1
    groups = dict.fromkeys(
        name for row in setting.rows for run in row.finished for name in run.result['groups']
    )
    # One alone is the whole.
    groups = list(groups) if len(groups) > 1 else []
    head = ['method', 'n', f'{metric}, mean ± 95%']
    if has_pairs:
        head += ['Δ to no distillation, mean ± 95%', 'Δ, 95% bootstrap', 'p (Holm)', 'verdict']
    head += ['compared with'] if has_choice and has_pairs else []
    has_teachers = any(run.result['teacher'] is not None for row in setting.rows for run in row.finished)
    head += ['its teacher'] if has_teachers else []
    head += [str(name).replace('_', ' ') for name in groups]
    rows = []
    for found in compared:
        cells = [found.row.label, *_own(found)]
        if has_pairs:
            cells += _paired(found)
        if has_choice and has_pairs:
            cells.append(found.beside.row.label if found.beside.row else '')
        if has_teachers:
            scores = [
                run.result['teacher'] for run in found.row.finished if run.result['teacher'] is not None
            ]
            cells.append(statistics.number(statistics.of(scores).mean) if scores else '')
        rows.append([*cells, *(_of_group(found.row, name) for name in groups)])
    return table(f'{metric} of finished runs', head, rows)


def _own(found):
    """The cells of a row by itself."""
    others = [run for run in found.row.runs if run.state != FINISHED]
    states = ', '.join(f'{sum(run.state == state for run in others)} {state}' for state in _STATES[1:])
    if found.own is None:
        return ['0', element('span', others[0].state, class_='warn')]
    mean = statistics.number(found.own.mean, found.own.half_width)
    if others:
        kept = ', '.join(part for part in states.split(', ') if not part.startswith('0 '))
        return [str(found.own.count), element('span', mean, element('span', f' ({kept})', class_='warn'))]
    return [str(found.own.count), mean]


def _paired(found):
    """The cells of a row's difference to its baseline."""
    if found.paired is None:
        if found.beside.row is None or found.own is None:
            return ['', '', '', '']
        other = statistics.of(list(found.beside.row.values().values()))
        return [
            f'{statistics.number(found.own.mean - other.mean, signed=True)}, no seed in common',
            '',
            '',
            '',
        ]
    mean = statistics.number(found.paired.mean, found.paired.half_width, signed=True)
    if found.paired.count < found.own.count:
        mean += f' ({found.paired.count} seeds)'
    bounds = (
        ' to '.join(f'{end:+.4f}' for end in found.bootstrap.bounds())
        if found.bootstrap
        else 'no errors stored'
    )
    p = statistics.written_p_value(found.p_value)
    kind = found.verdict if found.verdict in (statistics.BETTER, statistics.WORSE) else None
    return [mean, bounds, p, element('span', found.verdict, class_=kind)]


def _of_group(row, name):
    """A row's metric of a group of examples; '' where its runs do not all have as many of them."""
    groups = [run.result['groups'].get(name) for run in row.finished]
    if not groups or None in groups or len({str(group.get('count')) for group in groups}) > 1:
        return ''
    found = statistics.of([value for group in groups for value in group['values']])
    return statistics.number(found.mean, found.half_width)


def _differences(setting, compared):
    """A chart of all paired differences, None without any."""
    found = [
        charts.Span(
            of_row.row.label,
            of_row.paired.mean,
            of_row.paired.interval(),
            of_row.bootstrap and of_row.bootstrap.bounds(),
        )
        for of_row in compared
        if of_row.paired
    ]
    if not found:
        return None
    less = evaluation.LESS_IS_BETTER.get(setting.metric)
    side = '' if less is None else f'Left of 0 is {"better" if less else "worse"}. '
    return charts.spans(
        f'Difference in {setting.metric} to no distillation',
        found,
        f'{side}Thin lines: over seeds; broad bands: bootstrap.',
    )


def _chunks(drawn, kept=()):
    """Curves in groups that a chart tells apart, those that are kept in each of them."""
    others = [curve for curve in drawn if curve not in kept]
    size = charts.MOST_LINES - len(kept)
    starts = range(0, len(others), size) if others else [0] if kept else []
    return [[*kept, *others[start : start + size]] for start in starts]


def _of_rows(rows, name):
    return [curve for row in rows if (curve := curves.of_row(row, name, row.label))]


def _score_name(setting):
    """What the metrics of a setting's runs call what is evaluated; None where none has been."""
    start = f'{setting.split}_'
    names = (
        name
        for row in setting.rows
        for run in row.runs
        for line in run.lines
        for name in line
        if name.startswith(start) and '/' not in name
    )
    return next(names, None)


def _learning(setting):
    """Charts of evaluations and losses over steps."""
    scratch = [row for row in setting.rows if row.method == settings.SCRATCH][:1]
    figures = []
    named = (
        [(score, 'Bands range from the lowest to the highest seed.')]
        if (score := _score_name(setting))
        else []
    )
    for name, more in (*named, ('train_loss', 'Training loss, all terms.'), ('train_task', '')):
        # A single evaluation, as that of a test, is in the table.
        drawn = [curve for curve in _of_rows(setting.rows, name) if len(curve.points) > 1]
        kept = [curve for curve in drawn if curve.label in [row.label for row in scratch]]
        # The task is the whole loss of those from scratch.
        if name == 'train_task' and len(drawn) == len(kept):
            continue
        title = name.replace('train_', 'training ').replace('_', ' ')
        figures += [charts.lines(title, chunk, more) for chunk in _chunks(drawn, kept)]
    return figures


def _shares(setting):
    figures = []
    for row in setting.rows:
        found = [curves.of_row(row, f'share_{term}', term) for term in curves.terms(row)]
        figures += [
            charts.lines(row.label, chunk, "Each term's share of the gradient on the student.", (0, 1))
            for chunk in _chunks([curve for curve in found if curve])
        ]
    return figures


def _messages(setting):
    figures = []
    said = {'std': 'Standard deviation of messages.', 'rank': 'Effective rank of messages.'}
    for row in setting.rows:
        for what, more in said.items():
            found = [
                curve
                for side in ('student', 'teacher')
                if (curve := curves.of_row(row, f'{side}_message_{what}', side))
            ]
            figures += [charts.lines(f'{row.label}, {what}', found, more)] if found else []
    return figures


# --- What runs are made of -------------------------------------------------------------------------


def _all_read(run):
    """{key: value} of a run's config that it reads, without seeds."""
    unread = config_lib.without_effect(run.config, run.stored) if run.config is not None else ()
    return {
        key: value for key, value in run.stored.items() if key not in unread and key not in settings.SEEDS
    }


def _configs(setting):
    reads = {row.label: [_all_read(run) for run in row.runs] for row in setting.rows}
    keys = settings.differing([read for of_row in reads.values() for read in of_row])
    # The label says it.
    keys = [key for key in keys if key != 'method']

    def cell(label, key):
        values = dict.fromkeys(settings.said(read[key]) for read in reads[label] if key in read)
        return ' | '.join(values) or '–'

    rows = []
    for row in setting.rows:
        seeds = ', '.join(map(str, row.values())) or '–'
        rows.append(
            [
                row.label,
                ', '.join(run.name for run in row.runs),
                seeds,
                *(cell(row.label, key) for key in keys),
            ]
        )
    same = {}
    for of_row in reads.values():
        for read in of_row:
            same |= {key: value for key, value in read.items() if key not in keys}
    return [
        element('h3', 'Options'),
        table(
            'Options that differ; – where a run does not read one',
            ['method', 'runs', 'seeds', *keys],
            rows,
            'texts',
        ),
        folded(
            f'{len(same)} options that are the same in all runs that read them',
            table(
                'Options',
                ['option', 'value'],
                [[key, settings.said(same[key])] for key in sorted(same)],
                'texts',
            ),
        ),
    ]


# --- Teachers and representations ------------------------------------------------------------------


def _teachers(found, teaching):
    rows, drawn = [], []
    for run in found.runs:
        if run.name not in teaching:
            continue
        scored = run.state
        if run.result:
            own = statistics.of(run.result['values'])
            scored = (
                f'{run.result["split"]} {run.result["metric"]} {statistics.number(own.mean, own.half_width)}'
            )
        data = run.result['dataset'] if run.result else settings.said(run.stored.get('dataset.name'))
        steps = run.result['steps'] if run.result else run.last_step
        rows.append([run.name, ', '.join(teaching[run.name]), data, scored, steps])
        drawn += _of_rows([settings.Row(run.name, (run,), {})], 'train_loss')
    figures = [
        charts.lines('training loss of teachers', chunk)
        for chunk in _chunks([curve for curve in drawn if len(curve.points) > 1])
    ]
    head = ['teacher', 'of', 'its data', 'its score', 'steps']
    return [
        table('Teachers, each on its own data', head, rows, 'texts'),
        element('div', *figures, class_='charts'),
    ]


def _representations(folder):
    try:
        found = maps.read(folder)
    except UserError as error:
        return [element('p', str(error), class_='warn')]
    return [
        element('p', f'{found.data}. {found.estimator}.', class_='note'),
        maps.means(found),
        *(maps.of_run(name, rows) for name, rows in found.by_class.items()),
    ]
