// No include guard: compiled once for each instruction set (see foreach_isa.h).
#include "segops/top_two_isa.h"

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
void grid_margins(const T* cells, int64_t plane, int64_t channels, int64_t count, T* out) {
  using V = std::conditional_t<std::is_same_v<T, float>, F16, D8>;
  constexpr int kLanes = Lanes<V>::kCount, kCount = SEGOPS_ISA_LEVEL == 2 ? 4 : 1;
  int64_t i = 0;
  for (; i + kCount * kLanes <= count; i += kCount * kLanes) tile<V, kCount>(cells + i, plane, channels, out + i);
  for (; i + kLanes <= count; i += kLanes) tile<V, 1>(cells + i, plane, channels, out + i);
  for (; i < count; ++i) one(cells + i, plane, channels, out + i);
}
