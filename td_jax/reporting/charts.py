"""Charts as SVG in the page, which take its colours, light or dark, and its width.

Lines differ in colour, in the lightness of their colours, and in their dashes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from td_jax.reporting.curves import Curve
from td_jax.reporting.markup import element

# Lines that one chart tells apart, as page.css has them.
MOST_LINES = 6
# Points that a line is drawn with at most; of more, the lowest and the highest of each part of it.
_MOST_POINTS = 400
# Pixels of a chart, at the width of a phone.
_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 8, 34
# Between the lowest point and the axis.
_INSET = 6
# Positive numbers that differ by more than this are drawn on a logarithmic scale.
_LOGARITHMIC = 50
_TICKS = 5
# Letters that a chart has room for.
_MOST_LETTERS = 50


class _Axis(NamedTuple):
    place: Callable[[float], float]  # value -> pixel
    ticks: list[float]


def lines(title: str, curves: list[Curve], more: str = '', ends=None):
    """Curves over steps, with their names below; at most MOST_LINES.

    Args:
      title: what their numbers are.
      curves: each of one point or more.
      more: what else is to be said of them.
      ends: (lowest, highest) of the axis, where they are not those of the curves.
    """
    values = [value for curve in curves for _, value in curve.points]
    values += [value for curve in curves for _, *ends in curve.band for value in ends]
    steps = [step for curve in curves for step, _ in curve.points]
    low, high = ends or (min(values), max(values))
    is_logarithmic = low > 0 and high / low > _LOGARITHMIC
    across = _axis(min(steps), max(steps), _LEFT, _WIDTH - _RIGHT, whole=True)
    up = _axis(low, high, _HEIGHT - _BOTTOM - _INSET, _TOP, is_logarithmic)
    last = '; '.join(f'{curve.label} ends at {_short(curve.points[-1][1])}' for curve in curves)
    drawing = element(
        'svg',
        element('title', f'{title} over steps: {last}.'),
        *_grid(across, up),
        *(_band(curve, i, across, up) for i, curve in enumerate(curves)),
        *(mark for i, curve in enumerate(curves) for mark in _line(curve, i, across, up)),
        element('text', 'step', x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor='middle'),
        viewBox=f'0 0 {_WIDTH} {_HEIGHT}',
        role='img',
    )
    said = f'{title}, logarithmic' if is_logarithmic else title
    return element(
        'figure',
        element('figcaption', element('strong', said), f' {more}' if more else None),
        drawing,
        _legend(curves),
    )


def _legend(curves):
    def sample(i):
        stroke = element('line', x1=0, x2=34, y1=6, y2=6, class_=f'line s{i}')
        return element('svg', stroke, viewBox='0 0 34 12', class_='sample', aria_hidden='true')

    return element(
        'ul', *(element('li', sample(i), curve.label) for i, curve in enumerate(curves)), class_='legend'
    )


def _axis(low, high, start, end, is_logarithmic=False, whole=False):
    """A scale from start to end in pixels, with ticks at round numbers."""
    # Only those who draw need it.
    from matplotlib import ticker

    is_range, alone = low < high, low
    if is_logarithmic:
        # 1, 2 and 5 of every power of ten, where there are few of these.
        subs = (1, 2, 5) if high / low < 1000 else (1,)
        locator = ticker.LogLocator(subs=subs, numticks=_TICKS + 3)
        scale = math.log10
    else:
        if not is_range:
            margin = abs(low) / 10 or 1
            low, high = low - margin, high + margin
        locator = ticker.MaxNLocator(nbins=_TICKS, steps=[1, 2, 2.5, 5, 10], integer=whole)
        scale = float
    # Halves first: the difference of two large numbers may be none.
    span = scale(high) / 2 - scale(low) / 2

    def place(value):
        return start + (end - start) * (scale(value) / 2 - scale(low) / 2) / span

    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return _Axis(place, ticks if is_range else [alone])


def _grid(across, up):
    for tick in up.ticks:
        y = _pixels(up.place(tick))
        yield element('line', x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_='grid')
        yield element('text', _short(tick), x=_LEFT - 5, y=y, dy='0.35em', text_anchor='end')
    floor = _HEIGHT - _BOTTOM
    yield element('line', x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_='axis')
    for tick in across.ticks:
        x = _pixels(across.place(tick))
        yield element('line', x1=x, x2=x, y1=floor, y2=floor + 4, class_='axis')
        yield element('text', _short(tick), x=x, y=floor + 15, text_anchor='middle')


def _line(curve, i, across, up):
    places = [(_pixels(across.place(x)), _pixels(up.place(y))) for x, y in thinned(curve.points)]
    if len(places) > 1:
        yield element('polyline', points=' '.join(f'{x},{y}' for x, y in places), class_=f'line s{i}')
    else:
        ((x, y),) = places
        yield element('circle', cx=x, cy=y, r=3.5, class_=f'dot s{i}')


def _band(curve, i, across, up):
    band = curve.band[:: -(-len(curve.band) // _MOST_POINTS) or 1]
    if len(band) < 2:
        return None
    lower = [(step, low) for step, low, _ in band]
    upper = [(step, high) for step, _, high in reversed(band)]
    corners = ' '.join(f'{_pixels(across.place(x))},{_pixels(up.place(y))}' for x, y in lower + upper)
    return element('polygon', points=corners, class_=f'band s{i}')


def thinned(points):
    """Points of which a chart shows no more than the eye sees, in their order, ends and extremes among them.

    Args:
      points: [(x, y)] in the order of x.
    """
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = -(-2 * len(points) // (_MOST_POINTS - 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


class Span(NamedTuple):
    """A difference with its intervals."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    wide: tuple[float, float] | None  # of the bootstrap


def spans(title: str, found: list[Span], note: str):
    """Differences one below the other, with a line at 0.

    Args:
      title: what they are.
      found: the differences, one or more.
      note: which side is the better one.
    """
    numbers = [0.0, *(span.mean for span in found)]
    numbers += [end for span in found for ends in (span.interval, span.wide) if ends for end in ends]
    step, top = 34, 6
    floor = top + step * len(found)
    axis = _axis(min(numbers), max(numbers), 20, _WIDTH - 20)
    marks, zero = [], _pixels(axis.place(0))
    for tick in axis.ticks:
        x = _pixels(axis.place(tick))
        marks.append(element('line', x1=x, x2=x, y1=top, y2=floor, class_='grid'))
        marks.append(element('text', _short(tick), x=x, y=floor + 14, text_anchor='middle'))
    marks.append(element('line', x1=zero, x2=zero, y1=top, y2=floor, class_='axis'))
    for i, span in enumerate(found):
        y = top + step * i + 24
        name = span.label if len(span.label) <= _MOST_LETTERS else f'{span.label[: _MOST_LETTERS - 1]}…'
        marks.append(element('text', name, x=12, y=y - 11, class_='name'))
        for ends, kind in ((span.wide, 'wide'), (span.interval, 'interval')):
            if ends:
                x1, x2 = (_pixels(axis.place(end)) for end in ends)
                marks.append(element('line', x1=x1, x2=x2, y1=y, y2=y, class_=kind))
        marks.append(element('circle', cx=_pixels(axis.place(span.mean)), cy=y, r=3.5, class_='mean'))
    said = '; '.join(f'{span.label} {span.mean:+.4f}' for span in found)
    drawing = element(
        'svg', element('title', f'{title}: {said}.'), *marks, viewBox=f'0 0 {_WIDTH} {floor + 20}', role='img'
    )
    return element('figure', element('figcaption', element('strong', title), f' {note}'), drawing)


def _pixels(place):
    return f'{place:.1f}'


def _short(value):
    """A number of few letters."""
    return f'{value:.4g}'
