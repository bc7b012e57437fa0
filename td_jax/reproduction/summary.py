"""Summarizes a comparison of variants as a table, as JSON and in one sentence."""

from collections.abc import Mapping

from td_jax import config as config_lib
from td_jax import statistics, text_tables
from td_jax.reproduction import comparison, render, tuning, variants

# Verdict -> the word for it in the sentence.
_VERDICTS = {statistics.BETTER: 'better', statistics.WORSE: 'worse'}
NOTE = (
    '± is the half-width of the 95% t interval over {students}. A difference is significant if its t '
    "interval and its bootstrap interval both exclude 0; p has Holm's correction for the rows. Validation "
    'scores chose the hyperparameters and the best variant: they compare nothing. A student is timed in '
    'batches of 64 on this machine.'
)


def compare(rows: list) -> dict[str, comparison.Comparison]:
    """Compares each other row with no distillation, {name: Comparison}."""
    (baseline,) = (row.result for row in rows if row.name == tuning.NO_DISTILLATION)
    return comparison.compare_all(
        {row.name: (row.result, baseline) for row in rows if row.name != tuning.NO_DISTILLATION}
    )


def table(plan: variants.Plan, rows: list, compared: dict, seconds: Mapping[str, float]) -> str:
    """Renders the rows as a Markdown table.

    Args:
      plan: of the comparison.
      rows: by variants.run.
      compared: by `compare`.
      seconds: variant -> seconds per example of a student.
    """
    adjusted = dict(
        zip(compared, statistics.holm([difference.p_value for difference in compared.values()]), strict=True)
    )
    metric, differences = plan.metric(), [compared.get(row.name) for row in rows]
    own = [statistics.estimate_mean(row.result['values'], comparison.clusters(row.result)) for row in rows]
    columns = [
        ('variant', [row.name for row in rows]),
        ('n', [str(estimate.count) for estimate in own]),
        (
            f'test {metric}',
            [statistics.format_number(estimate.mean, estimate.half_width) for estimate in own],
        ),
        ('Δ to no distillation', [render.write_difference(x) if x else '' for x in differences]),
        ('95% bootstrap', [render.write_bounds(x) if x and x.bootstrap else '' for x in differences]),
        (
            'p (Holm)',
            [statistics.format_p_value(adjusted[row.name]) if row.name in adjusted else '' for row in rows],
        ),
        ('significant', [x.verdict(plan.less_is_better()) if x else '' for x in differences]),
        (f'validation {metric}', [statistics.format_number(row.validation) for row in rows]),
        ('parameters', [f'{row.parameters:,}' for row in rows]),
        ('µs per example', [describe_microseconds(seconds[row.name]) for row in rows]),
    ]
    return '\n'.join([*text_tables.markdown(columns), '', NOTE.format(students=_describe_students(plan))])


def describe_microseconds(seconds: float) -> str:
    """Writes a number of microseconds with three digits, or as a whole number."""
    return f'{1e6 * seconds:.3g}' if seconds < 999.5e-6 else f'{1e6 * seconds:,.0f}'


def _describe_students(plan):
    """Describes the students and teachers that an interval is over."""
    teachers = '1 teacher' if plan.teachers == 1 else f'{plan.teachers} teachers'
    return f'{plan.seeds} students' + (f' of {teachers}' if plan.teachers < plan.seeds else '')


def sentence(plan: variants.Plan, rows: list, compared: dict) -> str:
    """The conclusion from the intervals in one sentence; arguments as for `table`."""
    differences, others = [], []
    for row in rows:
        difference = compared.get(row.name)
        if difference is None:
            continue
        word = _VERDICTS.get(difference.verdict(plan.less_is_better()))
        if word is None:
            others.append(row.name)
            continue
        low, high = sorted(abs(bound) for bound in difference.paired.interval())
        scale, unit = (100, ' percentage points') if plan.metric() == 'accuracy' else (1, '')
        digits = 1 if scale == 100 else 4
        size, low, high = (
            statistics.format_number(scale * value, digits=digits)
            for value in (abs(difference.mean), low, high)
        )
        differences.append(f'{row.name}: {size}{unit} {word} than no distillation (95% CI {low} to {high})')
    if any(
        difference.verdict(plan.less_is_better()) == statistics.TOO_FEW for difference in compared.values()
    ):
        flag = 'seeds' if plan.seeds < statistics.FEWEST else 'teachers'
        return f'Fewer than {statistics.FEWEST} students or teachers support no verdict; raise --{flag}.'
    if not differences:
        return 'No variant differs significantly from no distillation.'
    rest = ''
    if others:
        rest = f'; {", ".join(others)} {"do" if len(others) > 1 else "does"} not differ significantly'
    return f'{"; ".join(differences)}{rest}.'


def record(plan: variants.Plan, rows: list, compared: dict, best: variants.Row) -> dict:
    """The whole comparison for JSON; arguments as for `table`, and the best row."""
    records = []
    for row in rows:
        difference = compared.get(row.name)
        records.append(
            {
                'variant': row.name,
                'seeds': row.result['seeds'],
                f'test_{plan.metric()}': row.result['values'],
                f'validation_{plan.metric()}': row.validation,
                'parameters': row.parameters,
                'config': config_lib.flatten(row.config),
                'runs': row.result['runs'],
                'difference': difference
                and {
                    'mean': difference.mean,
                    't_interval': difference.paired and difference.paired.interval(),
                    'bootstrap_interval': difference.bootstrap and difference.bootstrap.bounds(),
                    'p_value': difference.p_value,
                    'verdict': difference.verdict(plan.less_is_better()),
                },
            }
        )
    return {
        'trials': plan.search.trials if plan.is_searched else 0,
        'best': best.name,
        'sentence': sentence(plan, rows, compared),
        'rows': records,
    }
