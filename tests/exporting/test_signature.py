"""The JSON files next to an exported program."""

import json
import os

from td_jax.exporting import signature
from td_jax.predicting.program import Program


def test_a_name_that_is_no_text_comes_back(tmp_path):
    """A class may have the name of a folder, which is bytes."""
    labels = os.fsdecode(b'b\xc3\xaar'), os.fsdecode(b'b\xear')
    program = Program({}, {}, labels, run=None)
    signature.write(tmp_path, program, {})
    content = (tmp_path / signature.SIGNATURE).read_bytes()
    assert [os.fsencode(name) for name in json.loads(content)['labels']] == [b'b\xc3\xaar', b'b\xear']
    # What is text is written as it is.
    assert b'b\xc3\xaar' in content
