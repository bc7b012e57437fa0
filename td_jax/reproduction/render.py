"""Tables as Markdown: our numbers, their differences to a baseline, and the paper's numbers."""

from td_jax import statistics, text_tables
from td_jax.reproduction import cells, comparison, tables
from td_jax.training import evaluation, finished

# What a bootstrap draws, by metric.
_UNITS = {'rmse': 'users', 'accuracy': 'images'}
# Label -> key of a group of examples with its own metric.
_GROUPS = {'known users': 'known_users', 'unknown users': 'unknown_users'}
# The text above a table.
INTERVALS = (
    '± is the half-width of the 95% t interval over n seeds. Δ is the difference to the baseline, paired by '
    'seed. Students that share a teacher count once, by their mean. Intervals are not corrected for the '
    'number of comparisons.'
)
# Number of an earlier protocol -> how it differs from the current one.
EARLIER = {
    1: 'Measured with an earlier protocol: ten students had five teachers or one; students and teachers '
    'started from the same random numbers; all seeds had the same training examples; and the search gave the '
    'methods unequal chances. Measured again, numbers may move by more than their intervals say.'
}
# What the heading of a column says besides its name, of what it changes in the config.
NAMED_KEYS = 'dataset.genre', 'dataset.split_by', 'dataset.split'
# The explanations of a table's columns, and of its count of verdicts.
COMPARED = (
    'The bootstrap resamples {units} and seeds, the students of one teacher together; its bounds are widened '
    "to allow for small numbers of them. p is the p-value of the paired t-test, with Holm's correction for "
    'all comparisons of the table, including those of its mean.'
)
COUNTED = (
    'A difference is significant, and a column better or worse, if both 95% intervals exclude 0: the t '
    'interval, and the bootstrap interval, where there is one, by more than its Monte-Carlo error. n.s.: not '
    'significant. Columns without paired seeds are not counted; fewer than '
    f'{statistics.FEWEST} seeds or teachers support no verdict.'
)
PUBLIC_TEACHER = (
    'All students have the same teacher, a public checkpoint (fingerprint of its parameters: {names}). Each '
    'student counts once. Intervals are for other students, each with its own labelled examples, and for '
    'other test images, but not for other teachers.'
)
MEANS = 'For each seed, and each bootstrap draw, the mean of its differences over all columns.'
SPREAD = (
    'The difference to the baseline, averaged over the columns, both with the hyperparameters of the same '
    'search. The searches differ only in their draws. No interval of this table includes this spread.'
)
# A key for the mean over the columns; no column has this name.
_MEAN = 'mean'
# Header of the columns for trials of a search that were also run on the test split.
ON_TEST = 'selected on the test set (sensitivity check, not a result)'


def make(names, results: dict, genres, datasets, baseline: str | None = None) -> str:
    """Renders some tables as Markdown, one after the other.

    Args:
      names: of the tables.
      results: by `cells.make`.
      genres, datasets: the columns to keep.
      baseline: the row to compare the others with; None for each table's own.
    """
    texts = []
    for name in names:
        table = tables.with_baseline(name, baseline)
        if isinstance(table, tables.Table):
            columns = tables.selected_columns(table, genres, datasets)
            results_by_column = {
                column: results[name][column] for column in columns if column in results[name]
            }
            texts.append(render_runs(name, table, fill_teacher(table, results_by_column)))
        else:
            texts.append(render_derived(name, table, results))
    return '\n'.join(texts)


def fill_teacher(table: tables.Table, results: dict) -> dict:
    """Fills rows of scores that another row reports, {column: {row: result or None}}."""
    filled = {}
    for column, rows in results.items():
        # Rows with a teacher of their own do not count.
        usual_rows = [
            row for row in rows if not any(key.startswith('teacher.') for key in _changed(table, row))
        ]
        scores = [
            rows[row]['teacher'] for row in usual_rows if rows[row] and rows[row]['teacher'] is not None
        ]
        scores_by_row = {tables.TEACHER: {'mean': scores[0], 'stderr': None} if scores else None}
        with_probe = [rows[row] for row in usual_rows if rows[row] and rows[row].get(finished.PROBE)]
        if with_probe:
            # Every such row has the same probe, fitted to the labels of each seed.
            values = with_probe[0][finished.PROBE]
            scores_by_row[tables.PROBE] = with_probe[0] | {
                'values': values,
                'mean': sum(values) / len(values),
                'errors': None,
                'groups': {},
                'on_test': None,
            }
        filled[column] = {
            row: scores_by_row.get(table.rows[row]) if not table.is_run(row) else rows[row]
            for row in table.rows
        }
    return filled


def _changed(table, row):
    """The config keys that a row sets."""
    return (*(table.rows[row] if table.is_run(row) else ()), *table.copied.get(row, ()))


def write_difference(compared: comparison.Comparison) -> str:
    """Writes a difference, with its t interval if the seeds are paired."""
    if compared.paired is None:
        return f'{statistics.format_number(compared.mean, signed=True)}, not paired'
    return statistics.format_number(compared.mean, compared.paired.half_width, signed=True)


def write_bounds(compared: comparison.Comparison) -> str:
    """Writes the bootstrap interval."""
    if compared.paired is None:
        return ''
    if compared.bootstrap is None:
        return 'no errors stored'
    low, high = (statistics.format_number(bound, signed=True) for bound in compared.bootstrap.bounds())
    return f'{low} to {high}'


def render_runs(name: str, table: tables.Table, results: dict) -> str:
    """Renders a table as Markdown: one block for each column, the paper's numbers next to ours.

    Args:
      name: of the table.
      table: its definition.
      results: {column: {row: result or None}}.
    """
    paper = tables.paper(name)
    shown_results = [
        result for rows in results.values() for result in rows.values() if comparison.is_run(result)
    ]
    metrics = [result['metric'] for result in shown_results]
    compared = {column: comparison.compare_column(table, rows) for column, rows in results.items()}
    over_columns = _compare_means(table, results)
    adjusted = _adjust_p_values(compared | {_MEAN: over_columns})
    lines = [f'## {"Table " + name if paper else name}: {table.title}', '', *_protocol_lines(shown_results)]
    lines += _public_teacher_lines(shown_results)
    if metrics:
        lines += [f'{INTERVALS} {COMPARED.format(units=_UNITS[metrics[0]])}', '']
    for column, rows in results.items():
        changes = table.columns[column]
        change = ' '.join(changes[key] for key in NAMED_KEYS if key in changes)
        finished = [result for result in rows.values() if comparison.is_run(result)]
        groups = _find_groups(finished)
        lines += [f'### {column} {f"({change})" if change else ""}'.rstrip(), '']
        if finished:
            parts = ', '.join(f'{group["count"]} of {label}' for label, group in groups.items())
            lines += [
                f'{finished[0]["split"]} {finished[0]["metric"]}{f"; examples: {parts}" if parts else ""}.',
                '',
            ]
        p_values = {row: adjusted[column, row] for row in compared[column]}
        columns = _make_columns(table, rows, compared[column], p_values, groups)
        if paper:
            columns += _make_paper_columns(table, paper, column)
        lines += [*text_tables.markdown(columns), '']
    if metrics:
        less_is_better = evaluation.LESS_IS_BETTER[metrics[0]]
        lines += [*_verdict_lines(table, compared, less_is_better), '']
        lines += _mean_lines(table, results, over_columns, adjusted, less_is_better)
        lines += _spread_lines(table, results)
    return '\n'.join(lines)


def _make_columns(table, rows, compared, p_values, groups):
    """The columns of our results in a block, as text_tables takes them."""
    results = [rows[row] for row in table.rows]
    ours = [result and _estimate(result, result.get('values', [result['mean']])) for result in results]
    columns = [
        ('method', list(table.rows)),
        ('n', [_write_count(estimate) if estimate else '' for estimate in ours]),
        ('ours, mean ± 95%', [_write_estimate(estimate) if estimate else 'missing' for estimate in ours]),
        *_make_difference_columns(table, table.rows, compared, p_values),
        *(
            (f'ours, {label}, mean ± 95%', [_write_group(result, label) for result in results])
            for label in groups
        ),
    ]
    if any(map(_on_test, results)):
        pairs = [(_on_test(rows[row]), _on_test(rows[table.baseline_of(row)])) for row in table.rows]
        columns += [
            (f'{ON_TEST}, mean ± 95%', [_write_best_trial(best_trial) for best_trial, _ in pairs]),
            (f'{ON_TEST}, Δ, mean ± 95%', [_write_trial_difference(*pair) for pair in pairs]),
        ]
    return columns


def _make_difference_columns(table, rows, compared, p_values):
    """The columns of some rows' differences to the baseline; '' for rows without one."""
    heads = f'ours, Δ to {table.baseline}, mean ± 95%', 'ours, Δ, 95% bootstrap', 'ours, p (Holm)'
    columns = [(head, []) for head in heads]
    for row in rows:
        texts = ('',) * len(heads)
        if difference := compared.get(row):
            p_value = _write_p_value(difference, p_values[row])
            texts = write_difference(difference), write_bounds(difference), p_value
        for (_, texts_of_column), text in zip(columns, texts, strict=True):
            texts_of_column.append(text)
    return columns


def _make_paper_columns(table, paper, column):
    """The columns of the paper's numbers in a block."""
    place = paper['columns'].index(column)
    cells = {row: paper['rows'][row][place] for row in table.rows}
    means = [statistics.format_number(*cell) for cell in cells.values()]
    differences = [
        '' if row == table.baseline else f'{mean - cells[table.baseline_of(row)][0]:+.4f}'
        for row, (mean, _) in cells.items()
    ]
    return [('paper, mean ± standard error', means), ('paper, difference', differences)]


def _protocol_lines(results):
    """Lines that name the earlier protocols of some results."""
    protocols, lines = [result.get('protocol', 1) for result in results], []
    for protocol in sorted(set(protocols) & EARLIER.keys()):
        count = protocols.count(protocol)
        some = '' if count == len(protocols) else f' ({count} of {len(protocols)} cells)'
        lines += [f'**{EARLIER[protocol]}**{some}', '']
    return lines


def _public_teacher_lines(results):
    """Lines about the public checkpoint that taught, if one did."""
    fingerprints = sorted({result['public_teacher'] for result in results if result.get('public_teacher')})
    if not fingerprints:
        return []
    names = ', '.join(f'`{fingerprint[:12]}`' for fingerprint in fingerprints)
    return [f'{PUBLIC_TEACHER.format(names=names)}', '']


def _results_of(gains):
    """The results that some relative gains are computed from."""
    return [result for gain in gains if gain for _, pair in gain for result in pair]


def _adjust_p_values(compared):
    """{(column, row): p-value with Holm's correction} from {column: {row: comparison}} of a whole table."""
    p_values = {
        (column, row): comparison_of_row.p_value
        for column, rows in compared.items()
        for row, comparison_of_row in rows.items()
    }
    return dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))


def _write_p_value(compared, adjusted):
    """Writes a corrected p-value, or why there is none."""
    if compared.paired is not None and compared.paired.half_width == 0:
        return statistics.NO_VARIANCE
    return statistics.format_p_value(adjusted)


def _estimate(result, values):
    """The estimate of a result's mean, over all or a group of its examples, from [seeds] values."""
    return statistics.estimate_mean(values, comparison.clusters(result) if 'values' in result else None)


def _write_count(estimate):
    """Writes the number of seeds, and the number of teachers if it is smaller."""
    return (
        f'{estimate.count}'
        if estimate.clusters == estimate.count
        else f'{estimate.count} of {estimate.clusters} teachers'
    )


def _find_groups(results):
    """{label: group} of the first result that has all groups; {} if none has."""
    for result in results:
        groups = {label: _group(result, label) for label in _GROUPS}
        if all(groups.values()):
            return groups
    return {}


def _group(result, label):
    """A group of a result, or None if it is missing or does not cover all seeds."""
    group = (result or {}).get('groups', {}).get(_GROUPS[label])
    return group if group and len(group['values']) == len(result['values']) else None


def _write_group(result, label):
    group = _group(result, label)
    return _write_estimate(_estimate(result, group['values'])) if group else ''


def _write_estimate(estimate):
    return statistics.format_number(estimate.mean, estimate.half_width)


def _on_test(result):
    """The best trial on the test split, with the teachers of the result; or None."""
    best_trial = (result or {}).get('on_test')
    return best_trial and {'teachers': result.get('teachers'), **best_trial}


def _write_best_trial(best_trial):
    if not best_trial:
        return ''
    return f'{_write_estimate(_estimate(best_trial, best_trial["values"]))}, best of {best_trial["trials"]}'


def _write_trial_difference(ours, theirs):
    return write_difference(comparison.compare(ours, theirs)) if ours and theirs else ''


def _verdict_lines(table, compared, less_is_better):
    """Lines that count how often each row is better and worse than the baseline."""
    verdicts = statistics.BETTER, statistics.NOT_SIGNIFICANT, statistics.WORSE
    columns = f'{len(compared)} column{"s" if len(compared) > 1 else ""}'
    lines = [
        f'### Compared with {table.baseline}, in {columns}',
        '',
        COUNTED,
        '',
    ]
    for row in table.rows:
        row_verdicts = [
            rows[row].verdict(less_is_better)
            for rows in compared.values()
            if row in rows and rows[row].paired is not None
        ]
        if row_verdicts:
            # Columns without a verdict are listed only if there are some.
            special = [
                verdict for verdict in (statistics.TOO_FEW, statistics.NO_VARIANCE) if verdict in row_verdicts
            ]
            counts = ', '.join(
                f'{row_verdicts.count(verdict)} {verdict}' for verdict in (*verdicts, *special)
            )
            lines.append(f'- {row}: {counts}')
    return lines


def _with_baseline(table, results):
    """The columns that have a result of the baseline."""
    return [rows for rows in results.values() if comparison.is_run(rows[table.baseline])]


def _compare_means(table, results):
    """{row: comparison} of the means over several columns, for the rows that have a result in all."""
    columns = _with_baseline(table, results)
    return comparison.compare_means(table, columns) if len(columns) > 1 else {}


def _mean_lines(table, results, comparisons, adjusted, less_is_better):
    """Lines of the means over several columns, by `_compare_means`."""
    columns = _with_baseline(table, results)
    if len(columns) < 2:
        return []
    p_values = {row: adjusted[_MEAN, row] for row in comparisons}
    text_columns = [
        ('method', list(comparisons)),
        ('n', [_write_count(compared.paired) for compared in comparisons.values()]),
        *_make_difference_columns(table, comparisons, comparisons, p_values),
        ('verdict', [compared.verdict(less_is_better) for compared in comparisons.values()]),
    ]
    on_test = [_mean_on_test(columns, row, table.baseline_of(row)) for row in comparisons]
    if any(on_test):
        text_columns.append((f'{ON_TEST}, Δ, mean ± 95%', on_test))
    return [f'### Mean over {len(columns)} columns', '', MEANS, '', *text_tables.markdown(text_columns), '']


def _spread_lines(table, results):
    """Lines that show how much the mean differences vary from search to search."""
    lines = []
    for row, others in table.repeated.items():
        if row == table.baseline:
            continue
        rows = {name: table.baseline_of(name) for name in (row, *others)}
        pairs = [
            (of_column[name], of_column[baseline])
            for of_column in results.values()
            for name, baseline in rows.items()
        ]
        if not all(comparison.is_run(result) for pair in pairs for result in pair):
            continue
        means = [
            sum(of_column[name]['mean'] - of_column[baseline]['mean'] for of_column in results.values())
            / len(results)
            for name, baseline in rows.items()
        ]
        text = ', '.join(statistics.format_number(mean, signed=True) for mean in means)
        lines.append(f'- {row}: {text}; {statistics.format_number(max(means) - min(means))} apart')
    return ['### Spread over searches', '', SPREAD, '', *lines, ''] if lines else []


def _mean_on_test(columns, row, baseline):
    """Writes the mean difference of the best trials on the test split; '' if a column has none."""
    pairs = [(_on_test(rows[row]), _on_test(rows[baseline])) for rows in columns]
    compared = (
        comparison.compare_over_columns(pairs) if all(ours and theirs for ours, theirs in pairs) else None
    )
    return write_difference(compared) if compared else ''


def render_derived(name: str, table: tables.Derived, results: dict) -> str:
    """Renders a table of relative improvements, computed from our own cells, as Markdown.

    Args:
      name: of the table.
      table: its definition.
      results: {table: {column: {row: result or None}}} of the tables it comes from.
    """
    paper = tables.paper(name)
    columns = [*table.groups, *([] if paper is None else ['Avg.']), *table.contrasts]
    gains_by_row = {row: _gains(table, row, results) for row in table.rows}
    text_columns = [('method', list(table.rows))]
    for column in columns:
        ours = _write_percents({row: gains[column] for row, gains in gains_by_row.items()})
        text_columns.append((f'{column}, ours', list(ours.values())))
        if paper is not None:
            theirs = [f'{_paper_gain(table, paper, column, row):+.2f}' for row in table.rows]
            text_columns.append((f'{column}, paper', theirs))
    lines = [
        f'## Table {name}: {table.title}, percent',
        '',
        *_protocol_lines(result for gains in gains_by_row.values() for result in _results_of(gains.values())),
        'Ours is computed from our own cells: the relative improvement (of an RMSE, its relative reduction), '
        'averaged over the columns; n seeds in brackets, then the 95% bootstrap interval. '
        f'{INTERVALS}',
        '',
        *text_tables.markdown(text_columns),
        '',
    ]
    return '\n'.join(lines)


def _paper_gain(table, paper, column, row):
    """The paper's relative improvement, or the difference of two in a contrast."""
    if column in table.contrasts:
        first, second = (_paper_gain(table, paper, part, row) for part in table.contrasts[column])
        return first - second
    return paper['rows'][row][paper['columns'].index(column)][0]


def _gains(table, row, results):
    """{column: relative gain} of a row, for all columns of a derived table."""
    gains = {
        group: relative_gain(of_group, table.rows[row], results) for group, of_group in table.groups.items()
    }
    # The paper averages over all of its columns.
    gains['Avg.'] = _mean(list(gains.values()))
    return gains | {
        column: _subtract(*(gains[group] for group in both)) for column, both in table.contrasts.items()
    }


def relative_gain(group: tables.Group, rows: dict, results: dict) -> list | None:
    """The improvement of a row in percent of its baseline's mean, averaged over the columns.

    Args:
      group: the columns.
      rows: {table: the row there}.
      results: {table: {column: {row: result or None}}}.

    Returns:
      [columns] of (share, (result, baseline)): the improvement is the sum of share * (result - baseline).
      None where a cell is missing.
    """
    baseline_table, baseline_row = group.baseline
    terms = []
    for column in group.columns:
        result = results.get(group.source, {}).get(column, {}).get(rows[group.source])
        baseline = results.get(baseline_table, {}).get(column, {}).get(baseline_row)
        if not result or not baseline:
            return None
        pair = comparison.match_seeds(result, baseline)
        terms.append((100 * group.sign / pair[1]['mean'] / len(group.columns), pair))
    return terms


def _mean(gains):
    """The mean of several relative gains; None if one of them is None."""
    if any(gain is None for gain in gains):
        return None
    return [(share / len(gains), pair) for gain in gains for share, pair in gain]


def _subtract(gain, other):
    """The difference of two relative gains; None if one of them is None."""
    if gain is None or other is None:
        return None
    return [*gain, *((-share, pair) for share, pair in other)]


def _write_percents(gains):
    """{row: text} of {row: relative gain}."""
    gains_there = {row: tuple(zip(*gain, strict=True)) for row, gain in gains.items() if gain is not None}
    comparisons = comparison.compare_rows_over_columns(
        {row: (pairs, shares) for row, (shares, pairs) in gains_there.items()}
    )
    return {row: _write_percent(gain, comparisons[row]) if gain else 'missing' for row, gain in gains.items()}


def _write_percent(gain, compared):
    if compared is None:
        mean = sum(share * (ours['mean'] - theirs['mean']) for share, (ours, theirs) in gain)
        return statistics.format_number(mean, signed=True, digits=2)
    text = statistics.format_number(compared.mean, compared.paired.half_width, signed=True, digits=2)
    bounds = '' if compared.bootstrap is None else '; {:+.2f} to {:+.2f}'.format(*compared.bootstrap.bounds())
    return f'{text} ({_write_count(compared.paired)}){bounds}'


def render_plan(planned: list[cells.PlannedRun], device_tflops: float) -> str:
    """Renders the planned runs as Markdown, with their operations and hours on a device of a given speed.

    Args:
      planned: by `cells.plan`.
      device_tflops: 1e12 operations per second that the device reaches.
    """

    def hours(operations):
        return operations / device_tflops / 1e12 / 3600

    columns = [
        ('run', [f'Table {name}, {column}, {row}' for name, column, row in (run.cell for run in planned)]),
        ('state', ['there' if run.has_result else 'missing' for run in planned]),
        ('operations per step', [f'{run.step_operations:.3g}' for run in planned]),
        ('steps', [f'{run.steps}' for run in planned]),
        ('seeds', [f'{run.seeds}' for run in planned]),
        ('operations', [f'{run.operations():.3g}' for run in planned]),
        ('hours', [f'{hours(run.operations()):.3g}' for run in planned]),
    ]
    total = sum(run.operations() for run in planned if not run.has_result)
    missing = (
        f'Missing in all: {total:.3g} operations, {hours(total):.3g} hours at {device_tflops:g} TFLOP/s.'
    )
    return '\n'.join([*text_tables.markdown(columns), '', missing])
