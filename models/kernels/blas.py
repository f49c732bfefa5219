"""The BLAS that compiled products call, SciPy's, kept to the thread of its caller.

OpenBLAS shares a product of more than 2^18 multiplications among threads, which then wait for each other:
what a search multiplies is little above that, and the other cores have work of their own. Cut into pieces
below that bound, a product is five times slower where OpenBLAS packs the weights anew for each piece, as it
does without AVX-512.
"""

import scipy.linalg.cython_blas  # noqa: F401  (loads the library that is looked for below)
from threadpoolctl import ThreadpoolController


def use_one_thread() -> None:
    """From now on SciPy's BLAS, and NumPy's, which is of the same kind, use the caller's thread alone."""
    ThreadpoolController().select(prefix="libscipy_openblas").limit(limits=1)
