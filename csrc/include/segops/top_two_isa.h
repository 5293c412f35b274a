// No include guard: compiled once for each instruction set (see foreach_isa.h). The two largest of a cell's logits and
// the margin between them; V is a vector of cells, or the scalar of one.

// A NaN stays in `first`, so that the margin is NaN.
template <class V>
SEGOPS_INLINE void rank(V x, V& first, V& second) {
  const V lower = x < first ? x : first;
  second = lower > second ? lower : second;
  const V higher = x > first ? x : first;
  first = x == x ? higher : x;
}

// Without a margin (NaN, or infinities that cancel) a cell is the least uncertain.
template <class V>
SEGOPS_INLINE V margin(V first, V second) {
  const V apart = first - second;
  return apart == apart ? apart : V{} + __builtin_inff();
}

// One channel alone is the logit of a mask: the margin is its distance from 0, where both sides are alike.
template <class V>
SEGOPS_INLINE V margin_of_one(V x) {
  const V size = x < 0 ? -x : x + 0;  // -0 becomes 0: keys are bits
  return size == size ? size : V{} + __builtin_inff();
}
