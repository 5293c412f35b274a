// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
// Pixels side by side, and their labels.

template <class V>
using Mask = typename Lanes<V>::Int;  // -1 where it holds, else 0

// The first `count` lanes; the others are 0, and nobody looks at them.
template <class V>
SEGOPS_INLINE V load_some(const typename Lanes<V>::Scalar* p, int64_t count) {
  if (count >= Lanes<V>::kCount) return load<V>(p);
  V v{};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
template <class V>
SEGOPS_INLINE void store_some(typename Lanes<V>::Scalar* p, V v, int64_t count) {
  if (count >= Lanes<V>::kCount) return store<V>(p, v);
  for (int i = 0; i < count; ++i) p[i] = v[i];
}

template <class M>
SEGOPS_INLINE void load_labels(const int32_t* p, M& v) {
  if constexpr (sizeof(v[0]) == sizeof(int32_t)) {
    __builtin_memcpy(&v, p, sizeof(v));
  } else {
    for (unsigned i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = p[i];
  }
}
SEGOPS_INLINE void load_labels(const int32_t* p, L8& v) {
  I8 narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  v = __builtin_convertvector(narrow, L8);
}

// Labels in a narrow form, -1 where ignored; returns whether all are right.
inline bool narrow_labels(const int64_t* from, int64_t count, int64_t labels, bool ignores, int64_t ignored,
                          int32_t* to) {
  int32_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool skip = ignores & (from[i] == ignored);
    wrong |= (!skip) & ((from[i] < 0) | (from[i] >= labels));
    to[i] = skip ? -1 : int32_t(from[i]);
  }
  return !wrong;
}
