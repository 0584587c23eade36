"""joblib's own `test_parallel.py`, with rustdask among its process backends.

The tests are joblib's, word for word; what changes is which backends they run with. The lists of backends in that
module feed its decorators while it is imported, so they are extended in its text: `python joblib_suite.py FOLDER`
writes the module so extended into FOLDER. As a pytest plugin (`-p joblib_suite`) this file skips what `SKIPPED` lists,
for rustdask alone, and nothing else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import joblib
import pytest

MODULE_NAME = "test_joblib_parallel.py"

# Test function -> why it cannot hold for rustdask.
SKIPPED = {
    "test_auto_memmap_on_arrays_from_generator": (
        "asks that arrays over max_nbytes arrive as np.memmap; ours are plain arrays, mapped from anonymous memory"
    ),
    "test_memmapping_leaks": "asks that arrays arrive as np.memmap, and looks for their files",
    "test_error_capture": (
        "reads `_workers`, a private attribute of joblib's own backends; tests/test_errors.py asks the rest"
    ),
    "test_backend_batch_statistics_reset": "reads private attributes of AutoBatchingMixin, which rustdask does not use",
}

# (pattern, replacement, occurrences). A count that is off means that joblib has changed and this table must follow.
EDITS = [
    # rustdask is registered before BACKENDS is read, here and in each script that a test starts.
    (r"^import joblib$", "import joblib\nimport rustdask", 1),
    (r"^from joblib import Parallel, delayed", r"import rustdask\n\g<0>", 4),
    (r"""(PROCESS_BACKENDS = \[.multiprocessing., .loky.)\]""", r"\1, 'rustdask']", 1),
    # The tests of every backend that name them one by one.
    (r"""(\[.loky., .multiprocessing., .threading.)\]""", r"\1, 'rustdask']", 1),
    (r"""(\[None, .loky., .threading.)\]""", r"\1, 'rustdask']", 1),
    (r"""(\[.threading.\] if mp is None else \[.loky., .threading.)\]""", r"\1, 'rustdask']", 1),
]


def extended_source(source: str) -> str:
    """Return joblib's test module with rustdask in its lists of backends."""
    for pattern, replacement, expected in EDITS:
        source, count = re.subn(pattern, replacement, source, flags=re.MULTILINE)
        if count != expected:
            raise LookupError(f"{pattern!r} stands {count} times in joblib {joblib.__version__}, not {expected}")
    return source


def write_module(folder: Path) -> None:
    original = Path(joblib.__file__).parent / "test" / "test_parallel.py"
    (folder / MODULE_NAME).write_text(extended_source(original.read_text()))


def runs_rustdask(item: pytest.Item) -> bool:
    params = getattr(item, "callspec", None) and item.callspec.params.values()
    return any(value == "rustdask" or type(value).__module__.startswith("rustdask") for value in params or ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = SKIPPED.get(getattr(item, "originalname", item.name))
        if reason and runs_rustdask(item):
            item.add_marker(pytest.mark.skip(reason=reason))


if __name__ == "__main__":
    write_module(Path(sys.argv[1]))
