"""Each Python example of the README runs as it stands, in a process of its own, and prints nothing on stderr."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import own

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = {
    text.count("\n", 0, block.start()) + 1: block[1]
    for text in [README.read_text()]
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
}


def test_the_examples_are_found():
    assert len(EXAMPLES) >= 5


@own
@pytest.mark.parametrize("line", EXAMPLES)
def test_example(line, tmp_path):
    if "sklearn" in EXAMPLES[line]:
        pytest.importorskip("sklearn")
    script = tmp_path / f"readme_line_{line}.py"
    script.write_text(EXAMPLES[line])
    ended = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
