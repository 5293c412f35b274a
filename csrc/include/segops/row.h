// No include guard: compiled once for each instruction set (see foreach_isa.h). A row holds the labels of one point or
// vertex, padded to a multiple of 8; narrow rows live in registers.

template <int kWidth>
struct FloatRow {
  static constexpr int kWide = kWidth / 16;
  static constexpr bool kTail = kWidth % 16 != 0;
  F16 wide[kWide > 0 ? kWide : 1];
  F8 tail;

  explicit FloatRow(int, float*) {}
  SEGOPS_INLINE_MEMBER void fill(float x) {
    for (int i = 0; i < kWide; ++i) wide[i] = splat<F16>(x);
    if (kTail) tail = splat<F8>(x);
  }
  SEGOPS_INLINE_MEMBER void read(const float* p) {
    for (int i = 0; i < kWide; ++i) wide[i] = load<F16>(p + 16 * i);
    if (kTail) tail = load<F8>(p + 16 * kWide);
  }
  SEGOPS_INLINE_MEMBER void write(float* p) const {
    for (int i = 0; i < kWide; ++i) store<F16>(p + 16 * i, wide[i]);
    if (kTail) store<F8>(p + 16 * kWide, tail);
  }
  // this += x * p
  SEGOPS_INLINE_MEMBER void add(float x, const float* p) {
    for (int i = 0; i < kWide; ++i) wide[i] = fma(splat<F16>(x), load<F16>(p + 16 * i), wide[i]);
    if (kTail) tail = fma(splat<F8>(x), load<F8>(p + 16 * kWide), tail);
  }
  // p += x * this
  SEGOPS_INLINE_MEMBER void add_to(float x, float* p) const {
    for (int i = 0; i < kWide; ++i) store<F16>(p + 16 * i, fma(splat<F16>(x), wide[i], load<F16>(p + 16 * i)));
    if (kTail) store<F8>(p + 16 * kWide, fma(splat<F8>(x), tail, load<F8>(p + 16 * kWide)));
  }
  SEGOPS_INLINE_MEMBER void add(float x, const FloatRow& other) {
    for (int i = 0; i < kWide; ++i) wide[i] = fma(splat<F16>(x), other.wide[i], wide[i]);
    if (kTail) tail = fma(splat<F8>(x), other.tail, tail);
  }
  SEGOPS_INLINE_MEMBER void multiply(const FloatRow& other) {
    for (int i = 0; i < kWide; ++i) wide[i] *= other.wide[i];
    if (kTail) tail *= other.tail;
  }
  SEGOPS_INLINE_MEMBER void multiply(const float* p) {
    for (int i = 0; i < kWide; ++i) wide[i] *= load<F16>(p + 16 * i);
    if (kTail) tail *= load<F8>(p + 16 * kWide);
  }
  SEGOPS_INLINE_MEMBER void scale(float x) {
    for (int i = 0; i < kWide; ++i) wide[i] *= x;
    if (kTail) tail *= x;
  }
  SEGOPS_INLINE_MEMBER void shift(float x) {
    for (int i = 0; i < kWide; ++i) wide[i] += x;
    if (kTail) tail += x;
  }
  template <class Op>
  SEGOPS_INLINE_MEMBER float reduce(Op op) const {
    if (kWide == 0) return fold(tail, op);
    F16 all = wide[0];
    for (int i = 1; i < kWide; ++i) all = op(all, wide[i]);
    if (!kTail) return fold(all, op);
    return fold(op(op(low_half(all), high_half(all)), tail), op);
  }
  SEGOPS_INLINE_MEMBER void exponentiate(float shift) {
    for (int i = 0; i < kWide; ++i) wide[i] = exp(wide[i] - shift);
    if (kTail) tail = exp(tail - shift);
  }
};

// A row of any width, or of doubles: in memory, a vector at a time.
template <class T>
struct WideRow {
  using V = std::conditional_t<std::is_same_v<T, float>, F8, D8>;
  int width;
  T* row;

  WideRow(int width, T* scratch) : width(width), row(scratch) {}
#define SEGOPS_EACH_VECTOR for (int i = 0; i < width; i += 8)
  SEGOPS_INLINE_MEMBER void fill(T x) { SEGOPS_EACH_VECTOR store<V>(row + i, splat<V>(x)); }
  SEGOPS_INLINE_MEMBER void read(const T* p) { SEGOPS_EACH_VECTOR store<V>(row + i, load<V>(p + i)); }
  SEGOPS_INLINE_MEMBER void write(T* p) const { SEGOPS_EACH_VECTOR store<V>(p + i, load<V>(row + i)); }
  SEGOPS_INLINE_MEMBER void add(T x, const T* p) {
    SEGOPS_EACH_VECTOR store<V>(row + i, fma(splat<V>(x), load<V>(p + i), load<V>(row + i)));
  }
  SEGOPS_INLINE_MEMBER void add_to(T x, T* p) const {
    SEGOPS_EACH_VECTOR store<V>(p + i, fma(splat<V>(x), load<V>(row + i), load<V>(p + i)));
  }
  SEGOPS_INLINE_MEMBER void add(T x, const WideRow& other) { add(x, other.row); }
  SEGOPS_INLINE_MEMBER void multiply(const WideRow& other) { multiply(other.row); }
  SEGOPS_INLINE_MEMBER void multiply(const T* p) { SEGOPS_EACH_VECTOR store<V>(row + i, load<V>(row + i) * load<V>(p + i)); }
  SEGOPS_INLINE_MEMBER void scale(T x) { SEGOPS_EACH_VECTOR store<V>(row + i, load<V>(row + i) * x); }
  SEGOPS_INLINE_MEMBER void shift(T x) { SEGOPS_EACH_VECTOR store<V>(row + i, load<V>(row + i) + x); }
  template <class Op>
  SEGOPS_INLINE_MEMBER T reduce(Op op) const {
    V all = load<V>(row);
    for (int i = 8; i < width; i += 8) all = op(all, load<V>(row + i));
    return fold(all, op);
  }
  SEGOPS_INLINE_MEMBER void exponentiate(T shift) { SEGOPS_EACH_VECTOR store<V>(row + i, exp(load<V>(row + i) - shift)); }
#undef SEGOPS_EACH_VECTOR
};

// Calls function<Row>(arguments) with the row that fits.
#define SEGOPS_WITH_ROW(T, width, function, ...)                                  \
  do {                                                                            \
    if constexpr (std::is_same_v<T, float>) {                                     \
      if (width == 8) return function<FloatRow<8>>(__VA_ARGS__);                  \
      if (width == 16) return function<FloatRow<16>>(__VA_ARGS__);                \
      if (width == 24) return function<FloatRow<24>>(__VA_ARGS__);                \
      if (width == 32) return function<FloatRow<32>>(__VA_ARGS__);                \
    }                                                                             \
    return function<WideRow<T>>(__VA_ARGS__);                                     \
  } while (0)
