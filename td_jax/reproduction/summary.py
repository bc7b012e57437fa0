"""What a comparison of variants says: its rows as a table and as JSON, and one sentence."""

from td_jax import config as config_lib
from td_jax import statistics
from td_jax.reproduction import comparison, tuning, variants

# What is said of a difference to no distillation.
_WORDS = {statistics.BETTER: 'better', statistics.WORSE: 'worse'}
NOTE = (
    '± is the half-width of the 95% t interval over {students}. A difference is significant if its t '
    "interval and its bootstrap interval both exclude 0; p has Holm's correction for the rows. Validation "
    'scores chose the hyperparameters and the best variant: they compare nothing.'
)


def compare(rows: list) -> dict[str, comparison.Comparison]:
    """{name: Comparison with no distillation} of the other rows."""
    (baseline,) = (row.result for row in rows if row.name == tuning.NO_DISTILLATION)
    return comparison.compare_all(
        {row.name: (row.result, baseline) for row in rows if row.name != tuning.NO_DISTILLATION}
    )


def table(of: variants.Plan, rows: list, compared: dict) -> str:
    """The rows as a Markdown table.

    Args:
      of: the plan.
      rows: as variants.run gives them.
      compared: as `compare` gives them.
    """
    adjusted = dict(
        zip(compared, statistics.holm([found.p_value for found in compared.values()]), strict=True)
    )
    metric = of.metric()
    head = [
        'variant',
        'n',
        f'test {metric}',
        'Δ to no distillation',
        '95% bootstrap',
        'p (Holm)',
        'significant',
        f'validation {metric}',
        'parameters',
    ]
    lines = [_row(head), _row(['---'] * len(head))]
    for row in rows:
        own = statistics.of(row.result['values'], comparison.clusters(row.result))
        parts = [row.name, str(own.count), statistics.number(own.mean, own.half_width), '', '', '', '']
        if found := compared.get(row.name):
            parts[3] = statistics.number(found.mean, found.paired and found.paired.half_width, signed=True)
            if found.bootstrap:
                bounds = (statistics.number(bound, signed=True) for bound in found.bootstrap.bounds())
                parts[4] = ' to '.join(bounds)
            parts[5] = statistics.written_p_value(adjusted[row.name])
            parts[6] = found.verdict(of.less_is_better())
        lines.append(_row([*parts, statistics.number(row.validation), f'{row.parameters:,}']))
    return '\n'.join([*lines, '', NOTE.format(students=_students(of))])


def _students(of):
    """How many students an interval is over."""
    return f'{of.seeds} students' + (f' of {of.teachers} teachers' if of.teachers < of.seeds else '')


def sentence(of: variants.Plan, rows: list, compared: dict) -> str:
    """What the intervals allow to say, in one sentence; of the arguments of `table`."""
    said, others = [], []
    for row in rows:
        found = compared.get(row.name)
        if found is None:
            continue
        word = _WORDS.get(found.verdict(of.less_is_better()))
        if word is None:
            others.append(row.name)
            continue
        low, high = sorted(abs(bound) for bound in found.paired.interval())
        scale, unit = (100, ' percentage points') if of.metric() == 'accuracy' else (1, '')
        digits = 1 if scale == 100 else 4
        size, low, high = (
            statistics.number(scale * value, digits=digits) for value in (abs(found.mean), low, high)
        )
        said.append(f'{row.name}: {size}{unit} {word} than no distillation (95% CI {low} to {high})')
    if any(found.verdict(of.less_is_better()) == statistics.TOO_FEW for found in compared.values()):
        return f'Fewer than {statistics.FEWEST} students or teachers support no verdict; raise --seeds.'
    if not said:
        return 'No variant differs significantly from no distillation.'
    rest = ''
    if others:
        rest = f'; {", ".join(others)} {"do" if len(others) > 1 else "does"} not differ significantly'
    return f'{"; ".join(said)}{rest}.'


def record(of: variants.Plan, rows: list, compared: dict, best: variants.Row) -> dict:
    """All of a comparison, for JSON; of the arguments of `table`, and the row that was kept."""
    found = []
    for row in rows:
        beside = compared.get(row.name)
        found.append(
            {
                'variant': row.name,
                'seeds': row.result['seeds'],
                f'test_{of.metric()}': row.result['values'],
                f'validation_{of.metric()}': row.validation,
                'parameters': row.parameters,
                'config': config_lib.flatten(row.config),
                'runs': row.result['runs'],
                'difference': beside
                and {
                    'mean': beside.mean,
                    't_interval': beside.paired and beside.paired.interval(),
                    'bootstrap_interval': beside.bootstrap and beside.bootstrap.bounds(),
                    'p_value': beside.p_value,
                    'verdict': beside.verdict(of.less_is_better()),
                },
            }
        )
    return {
        'trials': of.search.trials if of.is_searched else 0,
        'best': best.name,
        'sentence': sentence(of, rows, compared),
        'rows': found,
    }


def _row(parts):
    return f'| {" | ".join(parts)} |'
