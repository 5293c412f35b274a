// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
//
// Elements of packed matrices as vectors: numbers of the type that they are summed in, or pairs of bfloat16 (see
// bfloat16.h). The two instructions are written in assembly: intrinsics would ask for an instruction set of their own.
// Without them pairs come to the same sums, slowly.

// Elements for the lanes of a vector V of sums.
template <class E, class V = Wide<Total<E>>>
struct ElementsOf {
  using Type = V;
};
template <class V>
struct ElementsOf<Pair, V> {
  using Type = typename Lanes<V>::Bits;
};
template <class E, class V = Wide<Total<E>>>
using Elements = typename ElementsOf<E, V>::Type;
using WidePairs = Elements<Pair>;

template <class E, class V = Wide<Total<E>>>
SEGOPS_INLINE Elements<E, V> load_elements(const E* p) {
  Elements<E, V> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class E, class V = Wide<Total<E>>>
SEGOPS_INLINE Elements<E, V> spread(E x) {
  if constexpr (kNumbers<E> == 2)
    return Elements<E, V>{} + x.bits;
  else
    return splat<V>(x);
}

// sum + a b, with pairs both products of a lane.
template <class V>
SEGOPS_INLINE V multiply_add(V a, V b, V sum) {
  return fma(a, b, sum);
}
template <class V>
SEGOPS_INLINE V multiply_add(typename Lanes<V>::Bits a, typename Lanes<V>::Bits b, V sum) {
#if SEGOPS_ISA_LEVEL == 2
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#else
  sum = fma((V)(a << 16), (V)(b << 16), sum);
  return fma((V)(a & 0xFFFF0000u), (V)(b & 0xFFFF0000u), sum);
#endif
}

// The bits of the nearest bfloat16, ties to even, in the low half of each lane; NaN stays NaN.
template <class V>
SEGOPS_INLINE typename Lanes<V>::Bits bfloat16_bits(V x) {
  using Bits = typename Lanes<V>::Bits;
  const Bits bits = (Bits)x, nearest = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return x == x ? nearest : Bits{} + 0x7FC0u;
}

// Eight of them, in the low half of each lane.
typedef uint16_t H8 __attribute__((vector_size(16), may_alias));
SEGOPS_INLINE U8 load_bits(const Bfloat16* p) {
  H8 bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return __builtin_convertvector(bits, U8);
}
SEGOPS_INLINE void store_bits(Bfloat16* p, U8 x) {
  const H8 bits = __builtin_convertvector(x, H8);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// Sixteen numbers as eight pairs.
typedef uint16_t H16 __attribute__((vector_size(32), may_alias));
SEGOPS_INLINE H16 bfloat16_of(F16 x) {
#if SEGOPS_ISA_LEVEL == 2
  H16 out;
  __asm__("vcvtneps2bf16 %g1, %t0" : "=v"(out) : "v"(x));
  return out;
#else
  return __builtin_convertvector(bfloat16_bits(x), H16);
#endif
}
#if SEGOPS_ISA_LEVEL == 2
SEGOPS_INLINE U16 bfloat16_bits(F16 x) { return __builtin_convertvector(bfloat16_of(x), U16); }
SEGOPS_INLINE U8 bfloat16_bits(F8 x) {
  H8 out;
  __asm__("vcvtneps2bf16 %t1, %x0" : "=v"(out) : "v"(x));
  return __builtin_convertvector(out, U8);
}
#endif

// Two rows of numbers as one of pairs.
template <class V>
SEGOPS_INLINE void store_pairs(Pair* p, V first, V second) {
  const auto pairs = bfloat16_bits(first) | bfloat16_bits(second) << 16;
  __builtin_memcpy(p, &pairs, sizeof(pairs));
}

// Eight elements of numbers that lie side by side, as a row of a block to be transposed.
template <class E>
SEGOPS_INLINE F8 load_eight(const float* p) {
  if constexpr (kNumbers<E> == 2)
    return (F8)bfloat16_of(load<F16>(p));
  else
    return load<F8>(p);
}

// One element, of a number and with pairs the next.
template <class E, class T>
SEGOPS_INLINE E element(const T* p) {
  if constexpr (kNumbers<E> == 2) {
    const U8 bits = bfloat16_bits(F8{p[0], p[1]});
    return {bits[0] | bits[1] << 16};
  } else {
    return *p;
  }
}

// `count` pairs of what two rows of bfloat16 have in one place.
template <class S>
void join(const S* first, const S* second, int64_t count, Pair* out) {
  static_assert(sizeof(S) == 2);
  for (int64_t i = 0; i < count; ++i) {
    uint16_t low, high;
    __builtin_memcpy(&low, first + i, 2);
    __builtin_memcpy(&high, second + i, 2);
    out[i].bits = low | uint32_t(high) << 16;
  }
}

// The rows of a matrix (rows, columns) as a product reads them that sums over them: pairs of two rows, in `room`, with
// zeros for a missing one; numbers as they are.
template <class T>
const T* paired_rows(const T* x, int64_t, int64_t, T*) {
  return x;
}
inline const Pair* paired_rows(const Bfloat16* x, int64_t rows, int64_t columns, Pair* room) {
  Pair* to = room;
  for (int64_t r = 0; r < rows; r += 2, x += 2 * columns, to += columns)
    if (r + 1 < rows)
      join(x, x + columns, columns, to);
    else
      for (int64_t i = 0; i < columns; ++i) to[i].bits = x[i].bits;
  return room;
}
inline const Pair* paired_rows(const float* x, int64_t rows, int64_t columns, Pair* room) {
  Pair* to = room;
  for (int64_t r = 0; r < rows; r += 2, x += 2 * columns, to += columns) {
    const float* second = r + 1 < rows ? x + columns : nullptr;
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) store_pairs(to + i, load<F8>(x + i), second ? load<F8>(second + i) : F8{});
    for (; i < columns; ++i)
      to[i].bits = narrow<Bfloat16>(x[i]).bits | uint32_t(second ? narrow<Bfloat16>(second[i]).bits : 0) << 16;
  }
  return room;
}
