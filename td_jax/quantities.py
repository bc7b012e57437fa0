"""How messages write numbers with a unit, and how long the numbers are that people write."""

# The most digits of a count in a text. Python refuses to convert thousands of them.
MOST_DIGITS = 18
# The most trials of a method, and the most students of a run; every run of a search is planned in advance.
MOST_TRIALS, MOST_SEEDS = 10_000, 1_000


def describe_rate(per_second: float) -> str:
    """Writes a rate as a whole number, or with two digits below 10."""
    return f'{per_second:.0f}' if per_second >= 10 else f'{per_second:.2g}'


def describe_duration(seconds: float) -> str:
    """Writes a duration in seconds, minutes or hours, whichever fits."""
    if seconds < 59.5:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'
