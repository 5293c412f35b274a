"""What tests, opcheck and benchmarks share: the case table, tolerances, poisoned memory."""

from .cases import CASES, Case
from .compare import assert_as_good_as, assert_gradients_match, poisoned_memory

__all__ = ["CASES", "Case", "assert_as_good_as", "assert_gradients_match", "poisoned_memory"]
