"""A heat map of CKA by class, as in the paper's Figure 3."""

import pathlib

import numpy as np

# With more classes, a heat map labels only some of them.
NAMED_CLASSES = 20


def draw(values: dict[str, dict[str, dict[str, float]]], path: pathlib.Path, label: str):
    """Draws a heat map per run, side by side: rows are classes and student states, columns teacher states.

    Args:
      values: {run: {class: {'s_g,s_h': at most 1, ...}}}, the same classes for every run.
      path: a PNG file, made or replaced.
      label: of the colour bar.
    """
    # Imported here, because only drawing needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = list(next(iter(values.values())))
    names = [_make_drawable(name[:20]) for name in classes]
    sides = {run: _split_pairs(rows) for run, rows in values.items()}
    tallest = max(len(ours) for ours, _ in sides.values())
    in_detail = len(classes) <= NAMED_CLASSES
    width = 1.2 + sum(1.4 + 0.8 * len(theirs) for _, theirs in sides.values())
    height = 1.2 + min(0.28 * tallest * len(classes), 30)
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    lowest = min(0.0, *(x for rows in values.values() for row in rows.values() for x in row.values()))
    all_axes = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (run, rows) in zip(all_axes, values.items(), strict=True):
        ours, theirs = sides[run]
        # [classes * ours, theirs]
        grid = np.array([[rows[c][f'{g},{h}'] for h in theirs] for c in classes for g in ours])
        image = axes.imshow(grid, vmin=lowest, vmax=1, cmap='viridis', aspect='auto', interpolation='nearest')
        axes.set_title(_make_drawable(run), fontsize=9, parse_math=False)
        axes.set_xticks(range(len(theirs)), theirs)
        if in_detail:
            labels = [f'{c}  {g}' if g == ours[0] else g for c in names for g in ours]
            axes.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
            for i in range(1, len(classes)):
                axes.axhline(i * len(ours) - 0.5, color='white', linewidth=1.5)
            for (i, j), value in np.ndenumerate(grid):
                shade = 'black' if value > 0.6 else 'white'
                axes.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=6, color=shade)
        else:
            labelled = range(0, len(classes), -(-len(classes) // 60))
            middles = [i * len(ours) + (len(ours) - 1) / 2 for i in labelled]
            axes.set_yticks(middles, [names[i] for i in labelled], fontsize=7, parse_math=False)
    figure.colorbar(image, ax=list(all_axes), label=label)
    figure.supxlabel('teacher', fontsize=9)
    figure.supylabel('student, by class', fontsize=9)
    figure.savefig(path, dpi=150, format='png')


def _make_drawable(name):
    """Replaces what Python could not decode in the name of a file or a folder, and no font has."""
    return name.encode(errors='surrogateescape').decode(errors='replace')


def _split_pairs(rows):
    """Splits the pairs of a run into names of the student's and of the teacher's representations."""
    pairs = [pair.split(',') for pair in next(iter(rows.values()))]
    return [list(dict.fromkeys(names)) for names in zip(*pairs, strict=True)]
