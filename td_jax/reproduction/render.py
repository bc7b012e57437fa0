"""Tables as Markdown: our numbers, their differences to a baseline, and the paper's numbers."""

from td_jax import statistics
from td_jax.reproduction import cells, comparison, tables
from td_jax.training import evaluation

# What a bootstrap draws, by metric.
_UNITS = {'rmse': 'users', 'accuracy': 'images'}
# Parts of the examples that have a metric of their own, by what a person calls them.
_GROUPS = {'known users': 'known_users', 'unknown users': 'unknown_users'}
# What stands above a table.
INTERVALS = (
    '± is the half-width of the 95% t interval over n seeds. Δ is the difference to the baseline, paired by '
    'seed. Students that share a teacher count once, by their mean. Intervals are not corrected for the '
    'number of comparisons.'
)
# Number of an earlier protocol -> what it did otherwise than today's.
EARLIER = {
    1: 'Measured with an earlier protocol: ten students had five teachers or one; students and teachers '
    'started from the same random numbers; all seeds had the same training examples; and the search gave the '
    'methods unequal chances. Measured again, numbers may move by more than their intervals say.'
}
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
MEANS = 'For each seed, and each bootstrap draw, the mean of its differences over all columns.'
SPREAD = (
    'The difference to the baseline, averaged over the columns, both with the hyperparameters of the same '
    'search. The searches differ only in their draws. No interval of this table includes this spread.'
)
# A key for the mean over the columns; no column has this name.
_MEAN = 'mean'
# Two columns of a table, and one of its mean, where the trials of a search were run on the test split, too.
ON_TEST = 'selected on the test set (sensitivity check, not a result)'


def make(names, results: dict, genres, datasets, baseline: str | None = None) -> str:
    """Some tables as Markdown, one after the other.

    Args:
      names: of the tables.
      results: as `cells.make` gives them.
      genres, datasets: the columns to keep.
      baseline: the row that the others are compared with, in place of a table's own, or None.
    """
    texts = []
    for name in names:
        table = tables.beside(name, baseline)
        if isinstance(table, tables.Table):
            columns = tables.selected_columns(table, genres, datasets)
            shown = {column: results[name][column] for column in columns if column in results[name]}
            texts.append(of_runs(name, table, with_teacher(table, shown)))
        else:
            texts.append(of_others(name, table, results))
    return '\n'.join(texts)


def with_teacher(table: tables.Table, results: dict) -> dict:
    """{column: {row: result or None}}, the teacher's row filled with what another row says of it."""
    filled = {}
    for column, rows in results.items():
        # Not that of a row with a teacher of its own.
        usual = [row for row in rows if not any(key.startswith('teacher.') for key in _changed(table, row))]
        scores = [rows[row]['teacher'] for row in usual if rows[row] and rows[row]['teacher'] is not None]
        said = {'mean': scores[0], 'stderr': None} if scores else None
        filled[column] = {row: said if table.rows[row] == tables.TEACHER else rows[row] for row in table.rows}
    return filled


def _changed(table, row):
    """The keys that a row sets."""
    return (*(table.rows[row] if table.rows[row] != tables.TEACHER else ()), *table.copied.get(row, ()))


def difference(found: comparison.Comparison) -> str:
    """The difference, with the interval of the paired one if their seeds are the same."""
    if found.paired is None:
        return f'{statistics.number(found.mean, signed=True)}, not paired'
    return statistics.number(found.mean, found.paired.half_width, signed=True)


def bounds(found: comparison.Comparison) -> str:
    """The interval of the bootstrap."""
    if found.paired is None:
        return ''
    if found.bootstrap is None:
        return 'no errors stored'
    low, high = (statistics.number(bound, signed=True) for bound in found.bootstrap.bounds())
    return f'{low} to {high}'


def of_runs(name: str, table: tables.Table, results: dict) -> str:
    """A table as Markdown, one block for each column, the paper's numbers next to ours.

    Args:
      name: of the table.
      table: what it is made of.
      results: {column: {row: result or None}}.
    """
    paper = tables.paper(name)
    shown_results = [result for rows in results.values() for result in rows.values() if _is_run(result)]
    metrics = [result['metric'] for result in shown_results]
    compared = {column: _compared(table, rows) for column, rows in results.items()}
    over_columns = _over_columns(table, results)
    adjusted = _adjusted(compared | {_MEAN: over_columns})
    lines = [f'## {"Table " + name if paper else name}: {table.title}', '', *_protocol(shown_results)]
    if metrics:
        lines += [f'{INTERVALS} {COMPARED.format(units=_UNITS[metrics[0]])}', '']
    for column, rows in results.items():
        change = ' '.join(str(value) for value in table.columns[column].values())
        shown = [result for result in rows.values() if _is_run(result)]
        groups = _shown_groups(shown)
        lines += [f'### {column} {f"({change})" if change else ""}'.rstrip(), '']
        if shown:
            parts = ', '.join(f'{group["count"]} of {said}' for said, group in groups.items())
            lines += [
                f'{shown[0]["split"]} {shown[0]["metric"]}{f"; examples: {parts}" if parts else ""}.',
                '',
            ]
        head = [
            'method',
            'n',
            'ours, mean ± 95%',
            f'ours, Δ to {table.baseline}, mean ± 95%',
            'ours, Δ, 95% bootstrap',
            'ours, p (Holm)',
            *(f'ours, {said}, mean ± 95%' for said in groups),
        ]
        has_on_test = any(_on_test(result) for result in rows.values())
        if has_on_test:
            head += [f'{ON_TEST}, mean ± 95%', f'{ON_TEST}, Δ, mean ± 95%']
        head += ['paper, mean ± standard error', 'paper, difference'] if paper else []
        lines += [_row(head), _row(['---'] * len(head))]
        for row in table.rows:
            result, found = rows[row], compared[column].get(row)
            parts = [row, '', 'missing', '', '', '']
            if result:
                ours = _own(result, result.get('values', [result['mean']]))
                parts[1:3] = _count(ours), statistics.number(ours.mean, ours.half_width)
            if found:
                parts[3:6] = difference(found), bounds(found), _p_value(found, adjusted[column, row])
            parts += [_of_group(result, said) for said in groups]
            if has_on_test:
                parts += _of_on_test(result, rows[table.baseline_of(row)])
            if paper:
                mean, stderr = _paper_cell(paper, column, row)
                base, _ = _paper_cell(paper, column, table.baseline_of(row))
                parts += [
                    statistics.number(mean, stderr),
                    '' if row == table.baseline else f'{mean - base:+.4f}',
                ]
            lines.append(_row(parts))
        lines.append('')
    if metrics:
        less_is_better = evaluation.LESS_IS_BETTER[metrics[0]]
        lines += [*_counted(table, compared, less_is_better), '']
        lines += _means(table, results, over_columns, adjusted, less_is_better)
        lines += _spread(table, results)
    return '\n'.join(lines)


def _protocol(results):
    """Lines that say by which earlier protocols some results were measured."""
    found, lines = [result.get('protocol', 1) for result in results], []
    for protocol in sorted(set(found) & EARLIER.keys()):
        count = found.count(protocol)
        some = '' if count == len(found) else f' ({count} of {len(found)} cells)'
        lines += [f'**{EARLIER[protocol]}**{some}', '']
    return lines


def _results_of(gains):
    """The results that some of `gain` are made of."""
    return [result for gain in gains if gain for _, pair in gain for result in pair]


def _is_run(result):
    """Whether a cell is there and not a teacher's, of which only a mean is known."""
    return bool(result) and 'values' in result


def _compared(table, rows):
    """{row: comparison.Comparison} of a column's rows to the baseline, of those that are there."""
    pairs = {
        row: (result, rows[table.baseline_of(row)])
        for row, result in rows.items()
        if rows[table.baseline_of(row)] and result and row != table.baseline
    }
    return comparison.compare_all(pairs)


def _adjusted(compared):
    """{(column, row): p-value by Holm} of all comparisons of a table, {column: {row: comparison}}."""
    p_values = {
        (column, row): found.p_value for column, rows in compared.items() for row, found in rows.items()
    }
    return dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))


def _p_value(found, adjusted):
    """A p-value after its correction, or why there is none."""
    if found.paired is not None and found.paired.half_width == 0:
        return statistics.NO_VARIANCE
    return statistics.written_p_value(adjusted)


def _own(result, values):
    """The estimate of a result's own mean, or of that of a part of its examples, from [seeds] values."""
    return statistics.of(values, comparison.clusters(result) if 'values' in result else None)


def _count(found):
    """How many seeds an estimate is of, and of how many teachers, if these are fewer."""
    return (
        f'{found.count}' if found.clusters == found.count else f'{found.count} of {found.clusters} teachers'
    )


def _shown_groups(shown):
    """{what a person calls a group: the first result's}; {} where not both of them are there."""
    for result in shown:
        groups = {said: _group(result, said) for said in _GROUPS}
        if all(groups.values()):
            return groups
    return {}


def _group(result, said):
    """A group of a result, or None; one of some of the seeds alone is none."""
    group = (result or {}).get('groups', {}).get(_GROUPS[said])
    return group if group and len(group['values']) == len(result['values']) else None


def _of_group(result, said):
    group = _group(result, said)
    if not group:
        return ''
    found = _own(result, group['values'])
    return statistics.number(found.mean, found.half_width)


def _on_test(result):
    """What the best trial on the test split gives, with the teachers of the result's own; or None."""
    found = (result or {}).get('on_test')
    return found and {'teachers': result.get('teachers'), **found}


def _of_on_test(result, baseline):
    ours, theirs = _on_test(result), _on_test(baseline)
    if not ours:
        return ['', '']
    found = _own(ours, ours['values'])
    said = f'{statistics.number(found.mean, found.half_width)}, best of {ours["trials"]}'
    return [said, '' if not theirs or ours is theirs else difference(comparison.compare(ours, theirs))]


def _counted(table, compared, less_is_better):
    """Lines of how often each row is better and worse than the baseline."""
    verdicts = statistics.BETTER, statistics.NOT_SIGNIFICANT, statistics.WORSE
    columns = f'{len(compared)} column{"s" if len(compared) > 1 else ""}'
    lines = [
        f'### Compared with {table.baseline}, in {columns}',
        '',
        COUNTED,
        '',
    ]
    for row in table.rows:
        found = [
            rows[row].verdict(less_is_better)
            for rows in compared.values()
            if row in rows and rows[row].paired is not None
        ]
        if found:
            # Those that are no verdict only where there are some.
            others = [one for one in (statistics.TOO_FEW, statistics.NO_VARIANCE) if one in found]
            counts = ', '.join(f'{found.count(verdict)} {verdict}' for verdict in (*verdicts, *others))
            lines.append(f'- {row}: {counts}')
    return lines


def _with_baseline(table, results):
    """The columns where the baseline is there."""
    return [rows for rows in results.values() if _is_run(rows[table.baseline])]


def _over_columns(table, results):
    """{row: comparison} of the mean over several columns, of the rows that are there in all."""
    columns = _with_baseline(table, results)
    if len(columns) < 2:
        return {}
    pairs = {
        row: [(rows[row], rows[table.baseline_of(row)]) for rows in columns]
        for row in table.rows
        if row != table.baseline
        and all(_is_run(rows[of]) for rows in columns for of in (row, table.baseline_of(row)))
    }
    found = comparison.rows_over_columns({row: (of_row, None) for row, of_row in pairs.items()})
    return {row: compared for row, compared in found.items() if compared}


def _means(table, results, found, adjusted, less_is_better):
    """Lines of the means over several columns, by `_over_columns`."""
    columns = _with_baseline(table, results)
    if len(columns) < 2:
        return []
    on_test = {row: _mean_on_test(columns, row, table.baseline_of(row)) for row in found}
    head = [
        'method',
        'n',
        f'ours, Δ to {table.baseline}, mean ± 95%',
        'ours, Δ, 95% bootstrap',
        'ours, p (Holm)',
        'verdict',
    ]
    has_on_test = any(on_test.values())
    head += [f'{ON_TEST}, Δ, mean ± 95%'] if has_on_test else []
    lines = [f'### Mean over {len(columns)} columns', '', MEANS, '', _row(head), _row(['---'] * len(head))]
    for row, compared in found.items():
        parts = [
            row,
            _count(compared.paired),
            difference(compared),
            bounds(compared),
            _p_value(compared, adjusted[_MEAN, row]),
            compared.verdict(less_is_better),
        ]
        parts += [on_test[row]] if has_on_test else []
        lines.append(_row(parts))
    return [*lines, '']


def _spread(table, results):
    """Lines of how far the mean difference of a row to its baseline moves from one search to the next."""
    lines = []
    for row, others in table.repeated.items():
        if row == table.baseline:
            continue
        rows = {one: table.baseline_of(one) for one in (row, *others)}
        pairs = [
            (of_column[one], of_column[baseline])
            for of_column in results.values()
            for one, baseline in rows.items()
        ]
        if not all(_is_run(result) for pair in pairs for result in pair):
            continue
        means = [
            sum(of_column[one]['mean'] - of_column[baseline]['mean'] for of_column in results.values())
            / len(results)
            for one, baseline in rows.items()
        ]
        said = ', '.join(statistics.number(mean, signed=True) for mean in means)
        lines.append(f'- {row}: {said}; {statistics.number(max(means) - min(means))} apart')
    return ['### Spread over searches', '', SPREAD, '', *lines, ''] if lines else []


def _mean_on_test(columns, row, baseline):
    """The mean difference of what the best trials on the test split give; '' where a column has none."""
    pairs = [(_on_test(rows[row]), _on_test(rows[baseline])) for rows in columns]
    found = comparison.over_columns(pairs) if all(ours and theirs for ours, theirs in pairs) else None
    return difference(found) if found else ''


def of_others(name: str, table: tables.Derived, results: dict) -> str:
    """A table of relative improvements as Markdown, computed from our own cells.

    Args:
      name: of the table.
      table: what it is made of.
      results: {table: {column: {row: result or None}}} of the tables it comes from.
    """
    paper = tables.paper(name)
    columns = [*table.groups, *([] if paper is None else ['Avg.']), *table.contrasts]
    shown = [
        (column, who) for column in columns for who in (['ours'] if paper is None else ['ours', 'paper'])
    ]
    every = {row: _gains(table, row, results) for row in table.rows}
    lines = [
        f'## Table {name}: {table.title}, percent',
        '',
        *_protocol(result for gains in every.values() for result in _results_of(gains.values())),
        'Ours is computed from our own cells: the relative improvement (of an RMSE, its relative reduction), '
        'averaged over the columns; n seeds in brackets, then the 95% bootstrap interval. '
        f'{INTERVALS}',
        '',
        _row(['method', *(f'{column}, {who}' for column, who in shown)]),
        _row(['---'] * (1 + len(shown))),
    ]
    ours = {column: _percents({row: gains[column] for row, gains in every.items()}) for column in columns}
    for row in table.rows:
        theirs = {}
        if paper is not None:
            found = zip(paper['columns'], paper['rows'][row], strict=True)
            theirs = {column: value for column, (value, _) in found}
            theirs |= {column: theirs[a] - theirs[b] for column, (a, b) in table.contrasts.items()}
        parts = [ours[column][row] if who == 'ours' else f'{theirs[column]:+.2f}' for column, who in shown]
        lines.append(_row([row, *parts]))
    return '\n'.join([*lines, ''])


def _gains(table, row, results):
    """{column: `gain` of a row}, of all columns of a table that is made of others."""
    gains = {group: gain(of_group, table.rows[row], results) for group, of_group in table.groups.items()}
    # What the paper averages over is all of its columns.
    gains['Avg.'] = _mean(list(gains.values()))
    return gains | {
        column: _less(*(gains[group] for group in both)) for column, both in table.contrasts.items()
    }


def gain(group: tables.Group, rows: dict, results: dict) -> list | None:
    """Relative improvement of a row over a baseline in percent of the baseline's mean, mean over the columns.

    Args:
      group: the columns.
      rows: {table: the row there}.
      results: {table: {column: {row: result or None}}}.

    Returns:
      [columns] of (share, (result, baseline)): the improvement is the sum of share * (result - baseline).
      None where a cell is missing.
    """
    baseline_table, baseline_row = group.baseline
    found = []
    for column in group.columns:
        result = results.get(group.source, {}).get(column, {}).get(rows[group.source])
        baseline = results.get(baseline_table, {}).get(column, {}).get(baseline_row)
        if not result or not baseline:
            return None
        pair = comparison.of_the_same_seeds(result, baseline)
        found.append((100 * group.sign / pair[1]['mean'] / len(group.columns), pair))
    return found


def _mean(gains):
    """The mean of several of `gain`; None where one of them is None."""
    if any(gain is None for gain in gains):
        return None
    return [(share / len(gains), pair) for gain in gains for share, pair in gain]


def _less(gain, other):
    """A `gain` less another; None where one of them is None."""
    if gain is None or other is None:
        return None
    return [*gain, *((-share, pair) for share, pair in other)]


def _percents(gains):
    """{row: text} of {row: `gain`}."""
    there = {row: tuple(zip(*gain, strict=True)) for row, gain in gains.items() if gain is not None}
    found = comparison.rows_over_columns({row: (pairs, shares) for row, (shares, pairs) in there.items()})
    return {row: _percent(gain, found[row]) if gain else 'missing' for row, gain in gains.items()}


def _percent(gain, found):
    if found is None:
        mean = sum(share * (ours['mean'] - theirs['mean']) for share, (ours, theirs) in gain)
        return statistics.number(mean, signed=True, digits=2)
    text = statistics.number(found.mean, found.paired.half_width, signed=True, digits=2)
    bounds = '' if found.bootstrap is None else '; {:+.2f} to {:+.2f}'.format(*found.bootstrap.bounds())
    return f'{text} ({_count(found.paired)}){bounds}'


def plan(planned: list[cells.Planned], device_tflops: float) -> str:
    """What would be run, as Markdown: operations and time of each run on a device of a given speed.

    Args:
      planned: as `cells.plan` gives it.
      device_tflops: 1e12 operations per second that the device reaches.
    """

    def hours(operations):
        return operations / device_tflops / 1e12 / 3600

    lines = [
        _row(['run', 'state', 'operations per step', 'steps', 'seeds', 'operations', 'hours']),
        _row(['---'] * 7),
    ]
    for run in planned:
        name, column, row = run.cell
        lines.append(
            _row(
                [
                    f'Table {name}, {column}, {row}',
                    'there' if run.is_there else 'missing',
                    f'{run.of_step:.3g}',
                    f'{run.steps}',
                    f'{run.seeds}',
                    f'{run.operations():.3g}',
                    f'{hours(run.operations()):.3g}',
                ]
            )
        )
    total = sum(run.operations() for run in planned if not run.is_there)
    lines += [
        '',
        f'Missing in all: {total:.3g} operations, {hours(total):.3g} hours at {device_tflops:g} TFLOP/s.',
    ]
    return '\n'.join(lines)


def _row(cells):
    return f'| {" | ".join(cells)} |'


def _paper_cell(paper, column, row):
    return paper['rows'][row][paper['columns'].index(column)]
