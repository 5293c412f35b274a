// No include guard: compiled once for each instruction set (see foreach_isa.h). A chunk is up to 32 labels of one point
// or vertex, in registers.

template <class T, int kWidth>
struct Chunk;

template <int kWidth>
struct Chunk<float, kWidth> {
  static constexpr int kWide = kWidth / 16;
  static constexpr bool kTail = kWidth % 16 != 0;
  F16 wide[kWide > 0 ? kWide : 1];
  F8 tail;

  SEGOPS_INLINE_MEMBER void read(const float* p) {
    for (int i = 0; i < kWide; ++i) wide[i] = load<F16>(p + 16 * i);
    if (kTail) tail = load<F8>(p + 16 * kWide);
  }
  SEGOPS_INLINE_MEMBER void write(float* p) const {
    for (int i = 0; i < kWide; ++i) store<F16>(p + 16 * i, wide[i]);
    if (kTail) store<F8>(p + 16 * kWide, tail);
  }
  SEGOPS_INLINE_MEMBER void clear() {
    for (int i = 0; i < kWide; ++i) wide[i] = F16{};
    tail = F8{};
  }
  // this += x * p
  SEGOPS_INLINE_MEMBER void add(float x, const float* p) {
    const F16 factor = splat<F16>(x);
    for (int i = 0; i < kWide; ++i) wide[i] = fma(factor, load<F16>(p + 16 * i), wide[i]);
    if (kTail) tail = fma(low_half(factor), load<F8>(p + 16 * kWide), tail);
  }
  // p += x * this
  SEGOPS_INLINE_MEMBER void add_to(float x, float* p) const {
    const F16 factor = splat<F16>(x);
    for (int i = 0; i < kWide; ++i) store<F16>(p + 16 * i, fma(factor, wide[i], load<F16>(p + 16 * i)));
    if (kTail) store<F8>(p + 16 * kWide, fma(low_half(factor), tail, load<F8>(p + 16 * kWide)));
  }
  SEGOPS_INLINE_MEMBER void multiply(const float* p) {
    for (int i = 0; i < kWide; ++i) wide[i] *= load<F16>(p + 16 * i);
    if (kTail) tail *= load<F8>(p + 16 * kWide);
  }
};

template <int kWidth>
struct Chunk<double, kWidth> {
  static constexpr int kCount = kWidth / 8;
  D8 part[kCount];

  SEGOPS_INLINE_MEMBER void read(const double* p) {
    for (int i = 0; i < kCount; ++i) part[i] = load<D8>(p + 8 * i);
  }
  SEGOPS_INLINE_MEMBER void write(double* p) const {
    for (int i = 0; i < kCount; ++i) store<D8>(p + 8 * i, part[i]);
  }
  SEGOPS_INLINE_MEMBER void clear() {
    for (int i = 0; i < kCount; ++i) part[i] = D8{};
  }
  SEGOPS_INLINE_MEMBER void add(double x, const double* p) {
    for (int i = 0; i < kCount; ++i) part[i] = fma(splat<D8>(x), load<D8>(p + 8 * i), part[i]);
  }
  SEGOPS_INLINE_MEMBER void add_to(double x, double* p) const {
    for (int i = 0; i < kCount; ++i) store<D8>(p + 8 * i, fma(splat<D8>(x), part[i], load<D8>(p + 8 * i)));
  }
  SEGOPS_INLINE_MEMBER void multiply(const double* p) {
    for (int i = 0; i < kCount; ++i) part[i] *= load<D8>(p + 8 * i);
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
