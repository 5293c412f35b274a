"""Training, evaluation and prediction on Lightning: what ``python -m segops train``, ``evaluate`` and ``predict`` run.

Needs the extras ``models``, ``train`` and ``cli``.
"""

from .recipe import Recipe

__all__ = ["Recipe"]
