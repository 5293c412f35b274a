// No include guard: compiled once for each instruction set (see foreach_isa.h). Vectors are the compiler's own
// (vector_size), which it splits where the processor has narrower ones; intrinsics stand only where the language has no
// word: fused multiply-add, which -ffp-contract=off keeps explicit.

typedef float F8 __attribute__((vector_size(32), may_alias));
typedef float F16 __attribute__((vector_size(64), may_alias));
typedef double D8 __attribute__((vector_size(64), may_alias));
typedef int32_t I8 __attribute__((vector_size(32), may_alias));
typedef int32_t I16 __attribute__((vector_size(64), may_alias));
typedef uint32_t U8 __attribute__((vector_size(32), may_alias));
typedef uint32_t U16 __attribute__((vector_size(64), may_alias));
typedef int64_t L8 __attribute__((vector_size(64), may_alias));

#undef SEGOPS_INLINE
#undef SEGOPS_INLINE_MEMBER
#define SEGOPS_INLINE static inline __attribute__((always_inline))
#define SEGOPS_INLINE_MEMBER inline __attribute__((always_inline))

// The integers of a vector's lane width.
template <class V>
struct Lanes;
template <>
struct Lanes<F8> {
  using Scalar = float;
  using Int = I8;
  using Bits = U8;
  static constexpr int kCount = 8;
};
template <>
struct Lanes<F16> {
  using Scalar = float;
  using Int = I16;
  using Bits = U16;
  static constexpr int kCount = 16;
};
template <>
struct Lanes<D8> {
  using Scalar = double;
  using Int = L8;
  static constexpr int kCount = 8;
};

template <class V>
SEGOPS_INLINE V load(const typename Lanes<V>::Scalar* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
SEGOPS_INLINE void store(typename Lanes<V>::Scalar* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
template <class V>
SEGOPS_INLINE V splat(typename Lanes<V>::Scalar x) {
  return x - V{};  // which folds away; 0 + x would not, because of x = -0
}

// Vectors as wide as the registers, for loops that keep many, compare or select: the compiler keeps wider ones in
// memory, and GCC 12 compares the double of AVX2's lane by lane.
#if SEGOPS_ISA_LEVEL == 2
typedef F16 WideFloat;
typedef D8 WideDouble;
#elif SEGOPS_ISA_LEVEL == 1
typedef F8 WideFloat;
typedef double WideDouble __attribute__((vector_size(32), may_alias));
typedef int64_t WideLong __attribute__((vector_size(32), may_alias));
#else
typedef float WideFloat __attribute__((vector_size(16), may_alias));
typedef double WideDouble __attribute__((vector_size(16), may_alias));
typedef int64_t WideLong __attribute__((vector_size(16), may_alias));
typedef int32_t WideInt __attribute__((vector_size(16), may_alias));
typedef uint32_t WideBits __attribute__((vector_size(16), may_alias));
template <>
struct Lanes<WideFloat> {
  using Scalar = float;
  using Int = WideInt;
  using Bits = WideBits;
  static constexpr int kCount = 4;
};
#endif
#if SEGOPS_ISA_LEVEL < 2
template <>
struct Lanes<WideDouble> {
  using Scalar = double;
  using Int = WideLong;
  static constexpr int kCount = sizeof(WideDouble) / sizeof(double);
};
#endif

#if SEGOPS_ISA_LEVEL == 2
SEGOPS_INLINE F16 fma(F16 a, F16 b, F16 c) { return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
SEGOPS_INLINE F8 fma(F8 a, F8 b, F8 c) { return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
SEGOPS_INLINE D8 fma(D8 a, D8 b, D8 c) { return (D8)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif SEGOPS_ISA_LEVEL == 1
SEGOPS_INLINE F8 fma(F8 a, F8 b, F8 c) { return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
SEGOPS_INLINE WideDouble fma(WideDouble a, WideDouble b, WideDouble c) {
  return (WideDouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
SEGOPS_INLINE D8 fma(D8 a, D8 b, D8 c) {
  struct Halves {
    WideDouble low, high;
  };
  const Halves x = __builtin_bit_cast(Halves, a), y = __builtin_bit_cast(Halves, b), z = __builtin_bit_cast(Halves, c);
  return __builtin_bit_cast(D8, Halves{fma(x.low, y.low, z.low), fma(x.high, y.high, z.high)});
}
#else
template <class V>
SEGOPS_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
#endif

template <class V>
SEGOPS_INLINE V max(V a, V b) {
  return a > b ? a : b;
}

SEGOPS_INLINE F8 low_half(F16 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
SEGOPS_INLINE F8 high_half(F16 v) { return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }

template <class V, class Op>
SEGOPS_INLINE V fold_eight(V v, Op op) {  // every lane holds the result
  v = op(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = op(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  return op(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
}
struct Max {
  template <class V>
  inline __attribute__((always_inline)) V operator()(V a, V b) const {
    return max(a, b);
  }
};
struct Plus {
  template <class V>
  inline __attribute__((always_inline)) V operator()(V a, V b) const {
    return a + b;
  }
};
template <class Op>
SEGOPS_INLINE float fold(F8 v, Op op) {
  return fold_eight(v, op)[0];
}
template <class Op>
SEGOPS_INLINE float fold(F16 v, Op op) {
  return fold_eight(op(low_half(v), high_half(v)), op)[0];
}
template <class Op>
SEGOPS_INLINE double fold(D8 v, Op op) {
  return fold_eight(v, op)[0];
}

// exp for x <= 88: 2^n times a polynomial of degree 7 on [-ln2/2, ln2/2], relative error 1e-7 or less; exactly 0
// below -87.3, where floats lose their precision.
template <class V>
SEGOPS_INLINE V exp_float(V x) {
  using Bits = typename Lanes<V>::Bits;  // unsigned: far below the cut-off they wrap
  const V magic = splat<V>(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = fma(x, splat<V>(1.44269504f), magic);
  const V n = shifted - magic;
  V r = fma(n, splat<V>(-0.693359375f), x);
  r = fma(n, splat<V>(2.12194440e-4f), r);
  V p = splat<V>(1.9875691500e-4f);
  p = fma(p, r, splat<V>(1.3981999507e-3f));
  p = fma(p, r, splat<V>(8.3334519073e-3f));
  p = fma(p, r, splat<V>(4.1665795894e-2f));
  p = fma(p, r, splat<V>(1.6666665459e-1f));
  p = fma(p, r, splat<V>(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.f);
  const Bits bits = ((Bits)shifted + (127u - 0x4B400000u)) << 23;  // the biased exponent n + 127
  return x < -87.3f ? V{} : p * (V)bits;
}
// log, relative error 1e-7 or less: of the exponent, and a polynomial of the mantissa m in [sqrt(1/2), sqrt(2)). -inf
// for x <= 0, NaN for NaN; numbers below the normal ones are taken for the least of these.
template <class V>
SEGOPS_INLINE V log_float(V x) {
  using Bits = typename Lanes<V>::Bits;
  using Int = typename Lanes<V>::Int;
  const V least = splat<V>(1.17549435e-38f);
  const V y = x < least ? least : x;
  const Bits up =
      (Bits)y + (0x3F800000u - 0x3F3504F3u);  // counts sqrt(1/2) and what is above it to the next power of 2
  const V power = __builtin_convertvector((Int)(up >> 23) - 127, V);
  const V m = (V)((up & 0x007FFFFFu) + 0x3F3504F3u) - 1.f;
  V p = splat<V>(7.0376836292e-2f);
  p = fma(p, m, splat<V>(-1.1514610310e-1f));
  p = fma(p, m, splat<V>(1.1676998740e-1f));
  p = fma(p, m, splat<V>(-1.2420140846e-1f));
  p = fma(p, m, splat<V>(1.4249322787e-1f));
  p = fma(p, m, splat<V>(-1.6668057665e-1f));
  p = fma(p, m, splat<V>(2.0000714765e-1f));
  p = fma(p, m, splat<V>(-2.4999993993e-1f));
  p = fma(p, m, splat<V>(3.3333331174e-1f));
  const V square = m * m;
  V tail = fma(power, splat<V>(-2.12194440e-4f), p * m * square);
  tail = fma(square, splat<V>(-0.5f), tail);
  const V whole = fma(power, splat<V>(0.693359375f), m + tail);
  const V infinity = splat<V>(__builtin_inff());
  return x > 0 ? (x < infinity ? whole : x) : (x <= 0 ? -infinity : x);
}

template <class V, class Op>
SEGOPS_INLINE V each_lane(V x, Op op) {
  for (int i = 0; i < Lanes<V>::kCount; ++i) x[i] = op(x[i]);
  return x;
}
#define SEGOPS_EXP_LOG_FLOAT(V)                     \
  SEGOPS_INLINE V exp(V x) { return exp_float(x); } \
  SEGOPS_INLINE V log(V x) { return log_float(x); }
#define SEGOPS_EXP_LOG_DOUBLE(V)                                          \
  SEGOPS_INLINE V exp(V x) {                                              \
    return each_lane(x, [](double lane) { return __builtin_exp(lane); }); \
  }                                                                       \
  SEGOPS_INLINE V log(V x) {                                              \
    return each_lane(x, [](double lane) { return __builtin_log(lane); }); \
  }
SEGOPS_EXP_LOG_FLOAT(F8)
SEGOPS_EXP_LOG_DOUBLE(D8)
#if SEGOPS_ISA_LEVEL != 1
SEGOPS_EXP_LOG_FLOAT(WideFloat)
#endif
#if SEGOPS_ISA_LEVEL < 2
SEGOPS_EXP_LOG_DOUBLE(WideDouble)
#endif
#undef SEGOPS_EXP_LOG_FLOAT
#undef SEGOPS_EXP_LOG_DOUBLE

#if SEGOPS_ISA_LEVEL == 0
template <class Op>
SEGOPS_INLINE float fold(WideFloat v, Op op) {
  return op(op(v[0], v[1]), op(v[2], v[3]));
}
#endif
#if SEGOPS_ISA_LEVEL < 2
template <class Op>
SEGOPS_INLINE double fold(WideDouble v, Op op) {
  double result = v[0];
  for (int i = 1; i < Lanes<WideDouble>::kCount; ++i) result = op(result, v[i]);
  return result;
}
#endif

template <class T>
struct VectorsOf;
template <>
struct VectorsOf<float> {
  using Wide = WideFloat;
  using Widest = F16;
  using Eight = F8;
};
template <>
struct VectorsOf<double> {
  using Wide = WideDouble;
  using Widest = D8;
  using Eight = D8;
};
template <class T>
using Wide = typename VectorsOf<T>::Wide;
template <class T>
using Widest = typename VectorsOf<T>::Widest;
template <class T>
using Eight = typename VectorsOf<T>::Eight;
template <class T>
constexpr int kWidth = Lanes<Wide<T>>::kCount;

// Eight vectors of eight, transposed in place.
SEGOPS_INLINE void transpose(F8* v) {
  F8 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    a[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = i; j < i + 2; ++j) {
      b[j] = __builtin_shufflevector(a[j], a[j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      b[j + 2] = __builtin_shufflevector(a[j], a[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    v[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// What simplex.h asks of its T.
template <class V>
SEGOPS_INLINE V floor_vector(V x) {
  using Int = typename Lanes<V>::Int;
  const V whole = __builtin_convertvector(__builtin_convertvector(x, Int), V);  // towards zero; huge x stays huge
  return whole > x ? whole - 1 : whole;
}
#define SEGOPS_SIMPLEX_OPERATIONS(V)                                      \
  SEGOPS_INLINE V floor_of(V x) { return floor_vector(x); }               \
  SEGOPS_INLINE V product(V a, V b) { return a * b; }                     \
  SEGOPS_INLINE V one_if_less(V a, V b) { return a < b ? V{} + 1 : V{}; } \
  SEGOPS_INLINE V where_equal(V a, V b, V x) { return a == b ? x : V{}; }
SEGOPS_SIMPLEX_OPERATIONS(WideFloat)
SEGOPS_SIMPLEX_OPERATIONS(WideDouble)
#undef SEGOPS_SIMPLEX_OPERATIONS
