// No include guard: compiled once for each instruction set (see foreach_isa.h). A chunk is up to 32 labels of one point
// or vertex, in registers.

template <class T, int kLabels>
struct Chunk {
  using V = Wide<T>;
  static constexpr int kStep = Lanes<V>::kCount, kParts = kLabels / kStep;
  static constexpr bool kTail = kLabels % kStep != 0;  // half a vector of AVX-512, in float32
  V part[kParts > 0 ? kParts : 1];
  F8 tail;

  SEGOPS_INLINE_MEMBER void read(const T* p) {
    for (int i = 0; i < kParts; ++i) part[i] = load<V>(p + kStep * i);
    if constexpr (kTail) tail = load<F8>(p + kStep * kParts);
  }
  SEGOPS_INLINE_MEMBER void write(T* p) const {
    for (int i = 0; i < kParts; ++i) store<V>(p + kStep * i, part[i]);
    if constexpr (kTail) store<F8>(p + kStep * kParts, tail);
  }
  SEGOPS_INLINE_MEMBER void clear() {
    for (int i = 0; i < kParts; ++i) part[i] = V{};
    tail = F8{};
  }
  // this += x * p
  SEGOPS_INLINE_MEMBER void add(T x, const T* p) {
    for (int i = 0; i < kParts; ++i) part[i] = fma(splat<V>(x), load<V>(p + kStep * i), part[i]);
    if constexpr (kTail) tail = fma(splat<F8>(x), load<F8>(p + kStep * kParts), tail);
  }
  // p += x * this
  SEGOPS_INLINE_MEMBER void add_to(T x, T* p) const {
    for (int i = 0; i < kParts; ++i) store<V>(p + kStep * i, fma(splat<V>(x), part[i], load<V>(p + kStep * i)));
    if constexpr (kTail) store<F8>(p + kStep * kParts, fma(splat<F8>(x), tail, load<F8>(p + kStep * kParts)));
  }
  SEGOPS_INLINE_MEMBER void multiply(const T* p) {
    for (int i = 0; i < kParts; ++i) part[i] *= load<V>(p + kStep * i);
    if constexpr (kTail) tail *= load<F8>(p + kStep * kParts);
  }
};

// function<Chunk<T, n>>(offset, width, arguments) for each chunk of rows of `width` labels. Where one chunk is the row,
// its width is a constant.
#define SEGOPS_EACH_CHUNK(T, width, function, ...)                                                   \
  do {                                                                                               \
    if (width == 8) {                                                                                \
      function<Chunk<T, 8>>(0, 8, __VA_ARGS__);                                                      \
    } else if (width == 16) {                                                                        \
      function<Chunk<T, 16>>(0, 16, __VA_ARGS__);                                                    \
    } else if (width == 24) {                                                                        \
      function<Chunk<T, 24>>(0, 24, __VA_ARGS__);                                                    \
    } else {                                                                                         \
      int offset = 0;                                                                                \
      for (; offset + 32 <= width; offset += 32) function<Chunk<T, 32>>(offset, width, __VA_ARGS__); \
      for (; offset < width; offset += 8) function<Chunk<T, 8>>(offset, width, __VA_ARGS__);         \
    }                                                                                                \
  } while (0)
