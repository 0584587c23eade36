"""All rows, in the order in which they run."""

from benchmarks.futures import FUTURES_ROWS
from benchmarks.graphs import GRAPH_ROWS
from benchmarks.joblib_rows import JOBLIB_ROWS
from benchmarks.machine import MACHINE_ROWS
from benchmarks.web import WEB_ROWS

ROWS = [*JOBLIB_ROWS, *FUTURES_ROWS, *GRAPH_ROWS, *WEB_ROWS, *MACHINE_ROWS]
