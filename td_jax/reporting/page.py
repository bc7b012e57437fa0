"""Renders the page of a folder of runs."""

from etils import epath

import td_jax
from td_jax import config as config_lib
from td_jax import statistics
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reporting import charts, comparison, curves, maps, settings
from td_jax.reporting.markup import collapsible, element, page, table
from td_jax.reporting.runs import DAMAGED, DIVERGED, FINISHED, UNFINISHED, RunFolder, find_runs, find_teachers
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
    """Writes the page of a folder of runs, and returns the number of runs.

    Args:
      root: the workdir of a run, or a folder of several.
      target: the HTML file, made or replaced.

    Raises:
      UserError: there is no run, or the file cannot be written.
    """
    # Prevents that a file of a run is replaced by mistake.
    if target.suffix not in ('.html', '.htm'):
        raise UserError(f'--output {target} is no name of a page; let it end in .html.')
    if target.is_dir():
        raise UserError(f'--output {target} is a folder; name a file in it.')
    workdir.check_target('--output', target)
    contents = find_runs(root)
    html = render(root, contents)
    with workdir.atomic_write(target) as path:
        path.write_text(html, encoding='utf-8')
    return len(contents.runs)


def render(root: epath.Path, contents: RunFolder) -> str:
    """Renders the page as HTML.

    Args:
      root: the folder, for its name.
      contents: by runs.find_runs.
    """
    teacher_runs = find_teachers(contents.runs)
    all_settings = settings.make_settings(contents.runs, teacher_runs)
    sections = [(setting.title, _setting_section(setting)) for setting in all_settings]
    if teacher_runs:
        sections.append(('Teachers', _teachers_section(contents, teacher_runs)))
    sections += [
        (f'Representations: {name}', _representation_section(folder)) for name, folder in contents.comparisons
    ]
    if unfinished := _unfinished_table(contents):
        sections.insert(0, ('Unfinished runs', unfinished))
    if remarks := [(run.name, remark) for run in contents.runs for remark in run.remarks]:
        sections.append(('Remarks on files', [table('Left out', ['run', 'why'], remarks, 'texts')]))
    title = f'Runs in {root.name or root}'
    links = [element('li', element('a', name, href=f'#section-{i}')) for i, (name, _) in enumerate(sections)]
    return page(
        title,
        element('h1', title),
        element('p', _count_runs(contents, teacher_runs)),
        element('nav', element('ul', *links), aria_label='Sections'),
        *(
            element('section', element('h2', name, id=f'section-{i}'), *content)
            for i, (name, content) in enumerate(sections)
        ),
        element('p', _describe_versions(contents), class_='note'),
    )


def _count_runs(contents, teacher_runs):
    states = {'run': [], 'teacher': []}
    for run in contents.runs:
        states['teacher' if run.name in teacher_runs else 'run'].append(run.state)
    return ' '.join(
        f'{len(of_noun)} {noun}{"s" if len(of_noun) != 1 else ""}: {_count_states(of_noun)}.'
        for noun, of_noun in states.items()
        if of_noun
    )


def _count_states(states):
    return ', '.join(f'{states.count(state)} {state}' for state in _STATES if state in states)


def _describe_versions(contents):
    all_versions = [run.result.get('versions') for run in contents.runs if run.result]
    texts = {
        ', '.join(f'{name} {version}' for name, version in sorted(versions.items()))
        for versions in all_versions
        if isinstance(versions, dict)
    }
    by = f' Runs by {"; ".join(sorted(texts))}.' if texts else ''
    return f'Made by td_jax {td_jax.__version__}.{by}'


def _unfinished_table(contents):
    rows = [
        [run.name, element('span', run.state, class_='warn'), run.reason]
        for run in contents.runs
        if run.state != FINISHED
    ]
    rows += [
        [name, element('span', 'not readable', class_='warn'), reason] for name, reason in contents.unreadable
    ]
    return [table('Runs without a valid result', ['run', 'state', 'why'], rows, 'texts')] if rows else []


# --- A setting -------------------------------------------------------------------------------------


def _setting_section(setting):
    compared_rows = comparison.compare_setting(setting)
    parts = [_results_table(setting, compared_rows)]
    if any(compared.paired for compared in compared_rows):
        units = _UNITS.get(setting.metric, 'examples')
        parts.append(element('p', _INTERVALS.format(units=units, fewest=statistics.FEWEST), class_='note'))
    parts += [element('p', text, class_='note') for text in _comparison_remarks(compared_rows)]
    main_charts = [_differences_chart(setting, compared_rows), *_learning_charts(setting)]
    parts.append(element('div', *main_charts, class_='charts'))
    for head, figures in (
        ('Shares of the gradient', _share_charts(setting)),
        ('Messages', _message_charts(setting)),
    ):
        if figures:
            parts += [element('h3', head), element('div', *figures, class_='charts')]
    return [*parts, *_options_section(setting)]


def _comparison_remarks(compared_rows):
    """Remarks on the comparisons of a setting, with each reason once."""
    rows, others = {}, [compared for compared in compared_rows if compared.row.method != settings.SCRATCH]
    for compared in others:
        if compared.baseline.reason:
            rows.setdefault(compared.baseline.reason, []).append(compared.row.label)
    missing = [
        f'No difference{"" if len(labels) == len(others) else " of " + "; ".join(labels)}: {reason}.'
        for reason, labels in rows.items()
    ]
    return [
        *missing,
        *(f'{compared.row.label}: {remark}' for compared in others for remark in compared.remarks),
    ]


def _results_table(setting, compared_rows):
    metric = f'{setting.split} {setting.metric}'.strip() if setting.metric else 'result'
    rows = [compared.row for compared in compared_rows]
    columns = [
        ('method', [row.label for row in rows]),
        ('n', [str(compared.own.count if compared.own else 0) for compared in compared_rows]),
        (f'{metric}, mean ± 95%', [_mean_cell(compared) for compared in compared_rows]),
    ]
    if any(compared.paired for compared in compared_rows):
        heads = 'Δ to no distillation, mean ± 95%', 'Δ, 95% bootstrap', 'p (Holm)', 'verdict'
        columns += zip(heads, zip(*map(_paired_cells, compared_rows), strict=True), strict=True)
        if len([row for row in rows if row.method == settings.SCRATCH and row.finished]) > 1:
            baselines = [compared.baseline.row for compared in compared_rows]
            columns.append(('compared with', [row.label if row else '' for row in baselines]))
    scores = [
        [run.result['teacher'] for run in row.finished if run.result['teacher'] is not None] for row in rows
    ]
    if any(scores):
        means = [statistics.estimate_mean(of_row).mean if of_row else None for of_row in scores]
        columns.append(
            ('its teacher', ['' if mean is None else statistics.format_number(mean) for mean in means])
        )
    groups = dict.fromkeys(name for row in rows for run in row.finished for name in run.result['groups'])
    # A single group is the whole data set.
    for name in groups if len(groups) > 1 else ():
        columns.append((str(name).replace('_', ' '), [_group_cell(row, name) for row in rows]))
    heads, cells = zip(*columns, strict=True)
    return table(f'{metric} of finished runs', heads, zip(*cells, strict=True))


def _mean_cell(compared):
    """The cell of a row's own mean, with the states of runs that have no result."""
    states = [run.state for run in compared.row.runs if run.state != FINISHED]
    if compared.own is None:
        return element('span', states[0], class_='warn')
    mean = statistics.format_number(compared.own.mean, compared.own.half_width)
    if not states:
        return mean
    return element('span', mean, element('span', f' ({_count_states(states)})', class_='warn'))


def _paired_cells(compared):
    """The cells of a row's difference to its baseline."""
    if compared.paired is None:
        difference = ''
        if compared.baseline.row and compared.own:
            other = statistics.estimate_mean(list(compared.baseline.row.values().values()))
            mean = statistics.format_number(compared.own.mean - other.mean, signed=True)
            difference = f'{mean}, no seed in common'
        return difference, '', '', ''
    mean = statistics.format_number(compared.paired.mean, compared.paired.half_width, signed=True)
    if compared.paired.count < compared.own.count:
        mean += f' ({compared.paired.count} seeds)'
    bounds = 'no errors stored'
    if compared.bootstrap:
        bounds = ' to '.join(f'{end:+.4f}' for end in compared.bootstrap.bounds())
    kind = compared.verdict if compared.verdict in (statistics.BETTER, statistics.WORSE) else None
    verdict = element('span', compared.verdict, class_=kind)
    return mean, bounds, statistics.format_p_value(compared.p_value), verdict


def _group_cell(row, name):
    """The cell of a row's metric on a group of examples; '' if its runs have different groups."""
    groups = [run.result['groups'].get(name) for run in row.finished]
    if not groups or None in groups or len({str(group.get('count')) for group in groups}) > 1:
        return ''
    estimate = statistics.estimate_mean([value for group in groups for value in group['values']])
    return statistics.format_number(estimate.mean, estimate.half_width)


def _differences_chart(setting, compared_rows):
    """A chart of all paired differences, None without any."""
    spans = [
        charts.Span(
            compared_row.row.label,
            compared_row.paired.mean,
            compared_row.paired.interval(),
            compared_row.bootstrap and compared_row.bootstrap.bounds(),
        )
        for compared_row in compared_rows
        if compared_row.paired
    ]
    if not spans:
        return None
    less_is_better = evaluation.LESS_IS_BETTER.get(setting.metric)
    side = '' if less_is_better is None else f'Left of 0 is {"better" if less_is_better else "worse"}. '
    return charts.draw_spans(
        f'Difference in {setting.metric} to no distillation',
        spans,
        f'{side}Thin lines: over seeds; broad bands: bootstrap.',
    )


def _split_curves(all_curves, common=()):
    """Splits curves into one list per chart; the common ones are in each."""
    others = [curve for curve in all_curves if curve not in common]
    size = charts.MOST_LINES - len(common)
    starts = range(0, len(others), size) if others else [0] if common else []
    return [[*common, *others[start : start + size]] for start in starts]


def _row_curves(rows, name):
    return [curve for row in rows if (curve := curves.mean_curve(row, name, row.label))]


def _score_name(setting):
    """The name of the evaluated metric in the logs of a setting's runs; None without an evaluation."""
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


def _learning_charts(setting):
    """Charts of evaluations and losses over steps."""
    scratch = [row for row in setting.rows if row.method == settings.SCRATCH][:1]
    figures = []
    score_curves = (
        [(score, 'Bands range from the lowest to the highest seed.')]
        if (score := _score_name(setting))
        else []
    )
    for name, note in (*score_curves, ('train_loss', 'Training loss, all terms.'), ('train_task', '')):
        # A single evaluation, such as that on the test split, is in the table.
        all_curves = [curve for curve in _row_curves(setting.rows, name) if len(curve.points) > 1]
        common = [curve for curve in all_curves if curve.label in [row.label for row in scratch]]
        # Without distillation, the task is the whole loss.
        if name == 'train_task' and len(all_curves) == len(common):
            continue
        title = name.replace('train_', 'training ').replace('_', ' ')
        figures += [charts.draw_lines(title, chunk, note) for chunk in _split_curves(all_curves, common)]
    return figures


def _share_charts(setting):
    figures = []
    for row in setting.rows:
        term_curves = [curves.mean_curve(row, f'share_{term}', term) for term in curves.term_names(row)]
        figures += [
            charts.draw_lines(row.label, chunk, "Each term's share of the gradient on the student.", (0, 1))
            for chunk in _split_curves([curve for curve in term_curves if curve])
        ]
    return figures


def _message_charts(setting):
    figures = []
    notes = {'std': 'Standard deviation of messages.', 'rank': 'Effective rank of messages.'}
    for row in setting.rows:
        for measure, note in notes.items():
            side_curves = [
                curve
                for side in ('student', 'teacher')
                if (curve := curves.mean_curve(row, f'{side}_message_{measure}', side))
            ]
            figures += (
                [charts.draw_lines(f'{row.label}, {measure}', side_curves, note)] if side_curves else []
            )
    return figures


# --- Options ---------------------------------------------------------------------------------------


def _read_options(run):
    """{key: value} of the options of a run that have an effect, without seeds."""
    unread = config_lib.explain_without_effect(run.config, run.stored) if run.config is not None else ()
    return {
        key: value for key, value in run.stored.items() if key not in unread and key not in settings.SEEDS
    }


def _options_section(setting):
    reads = {row.label: [_read_options(run) for run in row.runs] for row in setting.rows}
    keys = settings.differing_keys([options for row_reads in reads.values() for options in row_reads])
    in_label = 'method'
    keys = [key for key in keys if key != in_label]

    def cell(label, key):
        values = dict.fromkeys(
            settings.format_value(options[key]) for options in reads[label] if key in options
        )
        return ' | '.join(values) or '–'

    rows = [
        [
            row.label,
            ', '.join(run.name for run in row.runs),
            ', '.join(map(str, row.values())) or '–',
            *(cell(row.label, key) for key in keys),
        ]
        for row in setting.rows
    ]
    all_options = [pair for row_reads in reads.values() for options in row_reads for pair in options.items()]
    same = {key: value for key, value in all_options if key not in (in_label, *keys)}
    return [
        element('h3', 'Options'),
        table(
            'Options that differ; – where a run does not read one',
            ['method', 'runs', 'seeds', *keys],
            rows,
            'texts',
        ),
        collapsible(
            f'{len(same)} options that are the same in all runs that read them',
            table(
                'Options',
                ['option', 'value'],
                [[key, settings.format_value(same[key])] for key in sorted(same)],
                'texts',
            ),
        ),
    ]


# --- Teachers and representations ------------------------------------------------------------------


def _teachers_section(contents, teacher_runs):
    rows, all_curves = [], []
    for run in contents.runs:
        if run.name not in teacher_runs:
            continue
        score = run.state
        if run.result:
            estimate = statistics.estimate_mean(run.result['values'])
            score = (
                f'{run.result["split"]} {run.result["metric"]} '
                f'{statistics.format_number(estimate.mean, estimate.half_width)}'
            )
        data = run.result['dataset'] if run.result else settings.format_value(run.stored.get('dataset.name'))
        steps = run.result['steps'] if run.result else run.last_step
        rows.append([run.name, ', '.join(teacher_runs[run.name]), data, score, steps])
        all_curves += _row_curves([settings.Row(run.name, (run,), {})], 'train_loss')
    figures = [
        charts.draw_lines('training loss of teachers', chunk)
        for chunk in _split_curves([curve for curve in all_curves if len(curve.points) > 1])
    ]
    head = ['teacher', 'of', 'its data', 'its score', 'steps']
    return [
        table('Teachers, each on its own data', head, rows, 'texts'),
        element('div', *figures, class_='charts'),
    ]


def _representation_section(folder):
    try:
        contents = maps.read(folder)
    except UserError as error:
        return [element('p', str(error), class_='warn')]
    return [
        element('p', f'{contents.data}. {contents.estimator}.', class_='note'),
        maps.mean_table(contents),
        *(maps.run_map(name, rows) for name, rows in contents.by_class.items()),
    ]
