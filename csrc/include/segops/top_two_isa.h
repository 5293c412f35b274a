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

// Margins of kCount vectors of cells, which stay in registers while the channels pass.
template <class V, int kCount, class T>
SEGOPS_INLINE void tile(const T* cells, int64_t plane, int64_t channels, T* out) {
  constexpr int kLanes = Lanes<V>::kCount;
  V first[kCount], second[kCount];
  for (int i = 0; i < kCount; ++i) first[i] = second[i] = V{} - __builtin_inff();
  for (int64_t c = 0; c < channels; ++c)
    for (int i = 0; i < kCount; ++i) rank(load<V>(cells + c * plane + i * kLanes), first[i], second[i]);
  for (int i = 0; i < kCount; ++i)
    store<V>(out + i * kLanes, channels == 1 ? margin_of_one(first[i]) : margin(first[i], second[i]));
}

template <class T>
SEGOPS_INLINE void one(const T* cell, int64_t plane, int64_t channels, T* out) {
  T first = -__builtin_inff(), second = first;
  for (int64_t c = 0; c < channels; ++c) rank(cell[c * plane], first, second);
  *out = channels == 1 ? margin_of_one(first) : margin(first, second);
}

// Margins of `count` neighbouring cells; a cell's channels lie `plane` apart.
template <class T>
void margins_of_planes(const T* cells, int64_t plane, int64_t channels, int64_t count, T* out) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount, kCount = SEGOPS_ISA_LEVEL == 2 ? 4 : 1;
  int64_t i = 0;
  for (; i + kCount * kLanes <= count; i += kCount * kLanes) tile<V, kCount>(cells + i, plane, channels, out + i);
  for (; i + kLanes <= count; i += kLanes) tile<V, 1>(cells + i, plane, channels, out + i);
  for (; i < count; ++i) one(cells + i, plane, channels, out + i);
}

// One more channel for as many cells as the widest vector has lanes, whose two largest so far lie in memory.
template <class T>
SEGOPS_INLINE void rank_at(const T* values, T* first, T* second) {
  using V = Wide<T>;
  for (int i = 0; i < Lanes<Widest<T>>::kCount; i += kWidth<T>) {
    V a = load<V>(first + i), b = load<V>(second + i);
    rank(load<V>(values + i), a, b);
    store<V>(first + i, a);
    store<V>(second + i, b);
  }
}

// The margins of cells of which all channels have passed, in place of `first`.
template <class T>
void settle(int64_t channels, int64_t count, T* first, const T* second) {
  for (int64_t i = 0; i < count; ++i) first[i] = channels == 1 ? margin_of_one(first[i]) : margin(first[i], second[i]);
}
