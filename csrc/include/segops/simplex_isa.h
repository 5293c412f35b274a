// No include guard: compiled once for each instruction set (see foreach_isa.h).
#include "segops/find_simplex.h"

template <class V, class Dim>
SEGOPS_INLINE bool find_simplices_of(const typename Lanes<V>::Scalar* features, int64_t stride, Dim dim, int count,
                                     typename Lanes<V>::Scalar limit, typename Lanes<V>::Scalar* quotient,
                                     typename Lanes<V>::Scalar* rank, typename Lanes<V>::Scalar* weight) {
  using T = typename Lanes<V>::Scalar;
  constexpr int kCount = Lanes<V>::kCount;
  bool in_range = true;
  for (int first = 0; first < count; first += kCount) {
    V scaled[kMaxDim] = {}, q[kMaxDim + 1], k[kMaxDim + 1], w[kMaxDim + 1];
    for (int i = 0; i < dim; ++i) {
      const T* row = features + i * stride + first;
      const T scale = T(feature_scale(dim, i));
      if (first + kCount <= count) {
        scaled[i] = load<V>(row) * scale;
      } else {  // the last points: the missing ones repeat the first
        for (int lane = 0; lane < kCount; ++lane) scaled[i][lane] = row[first + lane < count ? lane : 0] * scale;
      }
    }
    find_simplex(dim, scaled, q, k, w);
    typename Lanes<V>::Int inside = ~typename Lanes<V>::Int{};
    for (int i = 0; i <= dim; ++i) {
      inside &= (q[i] <= limit) & (q[i] >= -limit);  // false for NaN
      store<V>(quotient + i * kLanes + first, q[i]);
      store<V>(rank + i * kLanes + first, k[i]);
      store<V>(weight + i * kLanes + first, w[i]);
    }
    for (int lane = 0; lane < kCount; ++lane) in_range &= inside[lane] != 0;
  }
  return in_range;
}

// Up to kLanes points: quotient, rank and weight (dim + 1, kLanes); false if a quotient is beyond the limit or NaN.
template <class T>
bool find_simplices(const T* features, int64_t stride, int dim, int count, T limit, T* quotient, T* rank, T* weight) {
#define SEGOPS_WITH_DIM(d) find_simplices_of<Wide<T>>(features, stride, d, count, limit, quotient, rank, weight)
  switch (dim) {
    case 2:
      return SEGOPS_WITH_DIM((std::integral_constant<int, 2>()));
    case 3:
      return SEGOPS_WITH_DIM((std::integral_constant<int, 3>()));
    case 5:
      return SEGOPS_WITH_DIM((std::integral_constant<int, 5>()));
    default:
      return SEGOPS_WITH_DIM(dim);
  }
#undef SEGOPS_WITH_DIM
}
