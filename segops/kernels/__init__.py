"""Triton kernels, one module per operator.

Their sources are in the top-level folder ``kernels/``. Wheels carry them inside this package; in a checkout this
package looks for them there. ``kernels/`` itself has no ``__init__.py``, because another project publishes an
import package of that name and must not be shadowed.
"""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parents[2]

# In site-packages, parents[2] / "kernels" can be that other package: look for our own neighbours first.
if (_root / "setup.py").is_file() and (_root / "csrc").is_dir():
    __path__.append(str(_root / "kernels"))
