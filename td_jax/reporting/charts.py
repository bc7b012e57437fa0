"""Charts as SVG for the page, with its light or dark colours and its width.

Lines differ in colour, lightness and dashes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from td_jax.reporting.curves import Curve
from td_jax.reporting.markup import element

# The number of line styles in page.css.
MOST_LINES = 6
# The most points of a line; of a longer curve, the extremes of each part are drawn.
_MOST_POINTS = 400
# Pixels of a chart, at the width of a phone.
_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 8, 34
# Distance from the lowest point to the axis.
_INSET = 6
# Ratio of positive numbers above which the scale is logarithmic.
_LOGARITHMIC = 50
_TICKS = 5
# The most letters of a label.
_MOST_LETTERS = 50


class _Axis(NamedTuple):
    place: Callable[[float], float]  # value -> pixel
    ticks: list[float]


def draw_lines(title: str, curves: list[Curve], note: str = '', ends=None):
    """Draws curves over steps with a legend, as a figure element.

    Args:
      title: the name of the quantity.
      curves: at most MOST_LINES, each with one point or more.
      note: more text for the caption.
      ends: (lowest, highest) of the vertical axis; None for the range of the curves.
    """
    values = [value for curve in curves for _, value in curve.points]
    values += [value for curve in curves for _, *ends in curve.band for value in ends]
    steps = [step for curve in curves for step, _ in curve.points]
    low, high = ends or (min(values), max(values))
    is_logarithmic = low > 0 and high / low > _LOGARITHMIC
    across = _make_axis(min(steps), max(steps), _LEFT, _WIDTH - _RIGHT, whole=True)
    up = _make_axis(low, high, _HEIGHT - _BOTTOM - _INSET, _TOP, is_logarithmic)
    last = '; '.join(f'{curve.label} ends at {_format_short(curve.points[-1][1])}' for curve in curves)
    drawing = element(
        'svg',
        element('title', f'{title} over steps: {last}.'),
        *_draw_grid(across, up),
        *(_draw_band(curve, i, across, up) for i, curve in enumerate(curves)),
        *(mark for i, curve in enumerate(curves) for mark in _draw_line(curve, i, across, up)),
        element('text', 'step', x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor='middle'),
        viewBox=f'0 0 {_WIDTH} {_HEIGHT}',
        role='img',
    )
    caption = f'{title}, logarithmic' if is_logarithmic else title
    return element(
        'figure',
        element('figcaption', element('strong', caption), f' {note}' if note else None),
        drawing,
        _draw_legend(curves),
    )


def _draw_legend(curves):
    def sample(i):
        stroke = element('line', x1=0, x2=34, y1=6, y2=6, class_=f'line s{i}')
        return element('svg', stroke, viewBox='0 0 34 12', class_='sample', aria_hidden='true')

    return element(
        'ul', *(element('li', sample(i), curve.label) for i, curve in enumerate(curves)), class_='legend'
    )


def _make_axis(low, high, start, end, is_logarithmic=False, whole=False):
    """Makes a scale from `start` to `end` in pixels, with ticks at round numbers."""
    # Imported here, because only charts need it.
    from matplotlib import ticker

    is_range, alone = low < high, low
    if is_logarithmic:
        # Ticks at 1, 2 and 5 times each power of ten if there are few powers.
        subs = (1, 2, 5) if high / low < 1000 else (1,)
        locator = ticker.LogLocator(subs=subs, numticks=_TICKS + 3)
        scale = math.log10
    else:
        if not is_range:
            margin = abs(low) / 10 or 1
            low, high = low - margin, high + margin
        locator = ticker.MaxNLocator(nbins=_TICKS, steps=[1, 2, 2.5, 5, 10], integer=whole)
        scale = float
    # Halved first, because the difference of two large numbers may overflow.
    span = scale(high) / 2 - scale(low) / 2

    def place(value):
        return start + (end - start) * (scale(value) / 2 - scale(low) / 2) / span

    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return _Axis(place, ticks if is_range else [alone])


def _draw_grid(across, up):
    for tick in up.ticks:
        y = _format_pixels(up.place(tick))
        yield element('line', x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_='grid')
        yield element('text', _format_short(tick), x=_LEFT - 5, y=y, dy='0.35em', text_anchor='end')
    floor = _HEIGHT - _BOTTOM
    yield element('line', x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_='axis')
    for tick in across.ticks:
        x = _format_pixels(across.place(tick))
        yield element('line', x1=x, x2=x, y1=floor, y2=floor + 4, class_='axis')
        yield element('text', _format_short(tick), x=x, y=floor + 15, text_anchor='middle')


def _draw_line(curve, i, across, up):
    places = [
        (_format_pixels(across.place(x)), _format_pixels(up.place(y))) for x, y in thin_points(curve.points)
    ]
    if len(places) > 1:
        yield element('polyline', points=' '.join(f'{x},{y}' for x, y in places), class_=f'line s{i}')
    else:
        ((x, y),) = places
        yield element('circle', cx=x, cy=y, r=3.5, class_=f'dot s{i}')


def _draw_band(curve, i, across, up):
    band = curve.band[:: -(-len(curve.band) // _MOST_POINTS) or 1]
    if len(band) < 2:
        return None
    lower = [(step, low) for step, low, _ in band]
    upper = [(step, high) for step, _, high in reversed(band)]
    corners = ' '.join(
        f'{_format_pixels(across.place(x))},{_format_pixels(up.place(y))}' for x, y in lower + upper
    )
    return element('polygon', points=corners, class_=f'band s{i}')


def thin_points(points):
    """Reduces points to at most _MOST_POINTS, keeping both ends and the extremes of each part.

    Args:
      points: [(x, y)] in the order of x.
    """
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = -(-2 * len(points) // (_MOST_POINTS - 2))
    indices = {0, len(points) - 1}
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        indices |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(indices)]


class Span(NamedTuple):
    """A difference with its intervals."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    wide: tuple[float, float] | None  # of the bootstrap


def draw_spans(title: str, differences: list[Span], note: str):
    """Draws differences with their intervals, one below the other, with a line at 0, as a figure element.

    Args:
      title: the name of the differences.
      differences: one or more.
      note: more text for the caption, such as which side is better.
    """
    numbers = [0.0, *(span.mean for span in differences)]
    numbers += [end for span in differences for ends in (span.interval, span.wide) if ends for end in ends]
    step, top = 34, 6
    floor = top + step * len(differences)
    axis = _make_axis(min(numbers), max(numbers), 20, _WIDTH - 20)
    marks, zero = [], _format_pixels(axis.place(0))
    for tick in axis.ticks:
        x = _format_pixels(axis.place(tick))
        marks.append(element('line', x1=x, x2=x, y1=top, y2=floor, class_='grid'))
        marks.append(element('text', _format_short(tick), x=x, y=floor + 14, text_anchor='middle'))
    marks.append(element('line', x1=zero, x2=zero, y1=top, y2=floor, class_='axis'))
    for i, span in enumerate(differences):
        y = top + step * i + 24
        name = span.label if len(span.label) <= _MOST_LETTERS else f'{span.label[: _MOST_LETTERS - 1]}…'
        marks.append(element('text', name, x=12, y=y - 11, class_='name'))
        for ends, kind in ((span.wide, 'wide'), (span.interval, 'interval')):
            if ends:
                x1, x2 = (_format_pixels(axis.place(end)) for end in ends)
                marks.append(element('line', x1=x1, x2=x2, y1=y, y2=y, class_=kind))
        marks.append(element('circle', cx=_format_pixels(axis.place(span.mean)), cy=y, r=3.5, class_='mean'))
    values = '; '.join(f'{span.label} {span.mean:+.4f}' for span in differences)
    drawing = element(
        'svg',
        element('title', f'{title}: {values}.'),
        *marks,
        viewBox=f'0 0 {_WIDTH} {floor + 20}',
        role='img',
    )
    return element('figure', element('figcaption', element('strong', title), f' {note}'), drawing)


def _format_pixels(place):
    return f'{place:.1f}'


def _format_short(value):
    """Formats a number with four significant digits."""
    return f'{value:.4g}'
