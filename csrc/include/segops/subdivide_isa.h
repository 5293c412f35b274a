// No include guard: compiled once for each instruction set (see foreach_isa.h).
#include "segops/top_two_isa.h"

SEGOPS_INLINE void interleave(F16 even, F16 odd, float* out) {
  store<F16>(out, __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  store<F16>(out + 16,
             __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}
SEGOPS_INLINE void interleave(D8 even, D8 odd, double* out) {
  store<D8>(out, __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11));
  store<D8>(out + 8, __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15));
}

// A new cell lies a quarter of a cell away from the nearest old one, so three quarters of it are that.
template <class V>
SEGOPS_INLINE V blend(V nearest, V other) {
  return 0.75f * nearest + 0.25f * other;
}

// A row of one channel, twice as wide: between the old rows `nearest` and `other` of `width` cells. `between` is room
// for width + 2 numbers.
template <class T>
void upsample_row(const T* nearest, const T* other, int64_t width, T* between, T* out, T* first, T* second) {
  using V = Widest<T>;
  constexpr int kLanes = Lanes<V>::kCount;
  T* row = between + 1;  // with a copy of the border cell at either side
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store<V>(row + i, blend(load<V>(nearest + i), load<V>(other + i)));
  for (; i < width; ++i) row[i] = blend(nearest[i], other[i]);
  row[-1] = row[0];
  row[width] = row[width - 1];
  for (i = 0; i + kLanes <= width; i += kLanes) {
    const V here = load<V>(row + i);
    interleave(blend(here, load<V>(row + i - 1)), blend(here, load<V>(row + i + 1)), out + 2 * i);
    rank_at(out + 2 * i, first + 2 * i, second + 2 * i);
    rank_at(out + 2 * i + kLanes, first + 2 * i + kLanes, second + 2 * i + kLanes);
  }
  for (; i < width; ++i) {
    out[2 * i] = blend(row[i], row[i - 1]);
    out[2 * i + 1] = blend(row[i], row[i + 1]);
    for (int64_t j = 2 * i; j < 2 * i + 2; ++j) rank(out[j], first[j], second[j]);
  }
}
