"""Import joblib and compute one result: the whole life of a small script, timed from outside."""

import sys

from joblib import Parallel, delayed

from benchmarks.backends import JOBLIB


def noop(i):
    return i


if __name__ == "__main__":
    import numpy  # noqa: F401  (as any script that needs speed does)

    with JOBLIB[sys.argv[1]]():
        assert Parallel()(delayed(noop)(i) for i in range(4)) == [0, 1, 2, 3]
