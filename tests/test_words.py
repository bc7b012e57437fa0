"""Phrases that the glossary has replaced stay out of documents, messages, docstrings and comments."""

import ast
import io
import json
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# {retired phrase: what to write instead}, as in docs/glossary.md.
RETIRED = {
    r'not told( apart)?': 'not significantly different, n.s.',
    r'cannot be told': 'inconclusive',
    r'beside(?!:)': 'compared with, next to, in addition to, vs.',
    r'knobs?': 'options, hyperparameters',
    r'(images|examples|trials) a (class|method)': 'per class, per method',
    r'\d+ (images|examples) of (a|each) class': 'per class',
    r'by user(?! id)': 'per-user split',
    r'(split|is|are|scratch) by time': 'temporal split',
    r'(every|each) user is known|users known': 'per-user split',
    r'(CIFAR-10|Tables?( \w+)?|images) in small': 'at reduced scale',
    r'operations of TD': 'compute-matched to TD',
    r"of the student's (own )?size and genre": 'of equal size',
    r'speaks of (an)?other': 'shuffled teacher',
    r'points of percent': 'percentage points',
    r'trained? apart': 'staged training',
    r'the same by bootstrap': 'bootstrap',
    r'p by Holm': "p with Holm's correction",
    r'which is no result': 'sensitivity check (not a result)',
    r'and that is said': 'with a message',
    r'a mistake (in any of this )?is (a |one )?line': 'invalid input produces a one-line error',
    r'(same command|called again, it) goes on': 'the same command resumes',
    r'mend(s|ed)?': 'fix, repair, correct',
    r'(images?|examples?|operations|seconds|rows?|bytes?) an? (second|batch|step|image|example)': 'per',
    r'seed-steps?': 'training steps per second, summed over seeds',
    r'the rooms of': 'code layout, packages',
    r'where to read on': 'documentation',
    r'the least that a run costs': 'a lower bound on the cost',
}
PATTERN = re.compile('|'.join(rf'\b(?:{phrase})(?!\w)' for phrase in RETIRED), re.IGNORECASE)
DOCUMENTS = [
    *(ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
]
CODE = sorted(
    path for folder in ('td_jax', 'benchmarks', 'examples') for path in (ROOT / folder).rglob('*.py')
)


def find_retired(text):
    """The retired phrases in a text, wherever its lines break."""
    return [match.group() for match in PATTERN.finditer(' '.join(text.split()))]


def read_words(path):
    """The strings of a module, docstrings among them, and its comments.

    Placeholders of an f-string are code, and no part of it.
    """
    source = path.read_text()
    nodes = ast.walk(ast.parse(source))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    # A sentence may span several lines.
    comments = ' '.join(token.string.lstrip('#') for token in tokens if token.type == tokenize.COMMENT)
    return [
        comments,
        *(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)),
    ]


def test_documents_are_written_in_the_words_of_the_glossary():
    assert len(DOCUMENTS) > 20
    assert {
        str(path.relative_to(ROOT)): phrases
        for path in DOCUMENTS
        if (phrases := find_retired(path.read_text()))
    } == {}


def test_readme_can_be_read_in_one_go():
    assert len((ROOT / 'README.md').read_text().splitlines()) < 130


def test_code_speaks_in_the_words_of_the_glossary():
    phrases_by_path = {
        path: [phrase for text in read_words(path) for phrase in find_retired(text)] for path in CODE
    }
    assert len(phrases_by_path) > 100
    assert {
        str(path.relative_to(ROOT)): phrases for path, phrases in phrases_by_path.items() if phrases
    } == {}


def test_the_notebook_is_written_in_the_words_of_the_glossary():
    cells = json.loads((ROOT / 'examples' / 'digits.ipynb').read_text())['cells']
    assert find_retired(' '.join(''.join(cell['source']) for cell in cells)) == []


@pytest.mark.parametrize(
    ('text', 'phrases'),
    [
        ('TD beside\n LD is not told apart', ['beside', 'not told apart']),
        ('Knobs: images a class, Table 4 in small', ['Knobs', 'images a class', 'Table 4 in small']),
        # Parts of names and of other words are no phrases.
        ('docs/results/images_in_small.npz, knobs_of, besides, amended', []),
        ('  beside: how a teacher is shown the same images', []),
    ],
)
def test_a_phrase_is_found_wherever_lines_break_and_only_as_words(text, phrases):
    assert find_retired(text) == phrases


def test_every_phrase_is_found():
    examples = [
        'images a second',
        *(
            'not told',
            'cannot be told',
            'beside',
            'a knob',
            'images a class',
            '50 images of a class',
            'by user',
        ),
        *('split by time', 'users known', 'images in small', 'operations of TD', 'points of percent'),
        *("of the student's size and genre", 'speaks of another', 'trained apart', 'the same by bootstrap'),
        *(
            'p by Holm',
            'which is no result',
            'and that is said',
            'a mistake is one line',
            'the same command goes on',
            'mended',
        ),
        *('a seed-step', 'the rooms of', 'where to read on', 'the least that a run costs'),
    ]
    phrases_by_example = [find_retired(example) for example in examples]
    assert [len(phrases) for phrases in phrases_by_example] == [1] * len(examples)
    assert {phrase for phrase in RETIRED if not any(re.search(phrase, text) for text in examples)} == set()
