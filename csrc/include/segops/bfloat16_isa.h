// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
//
// Elements of packed matrices as vectors: numbers of the type that they are summed in, or pairs of bfloat16 (see
// bfloat16.h). The two instructions are written in assembly: intrinsics would ask for an instruction set of their own.
// Without them pairs come to the same sums, slowly.

using WidePairs = typename Lanes<Wide<float>>::Bits;

SEGOPS_INLINE Wide<float> load_elements(const float* p) { return load<Wide<float>>(p); }
SEGOPS_INLINE Wide<double> load_elements(const double* p) { return load<Wide<double>>(p); }
SEGOPS_INLINE WidePairs load_elements(const Pair* p) {
  WidePairs v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

SEGOPS_INLINE Wide<float> spread(float x) { return splat<Wide<float>>(x); }
SEGOPS_INLINE Wide<double> spread(double x) { return splat<Wide<double>>(x); }
SEGOPS_INLINE WidePairs spread(Pair x) { return WidePairs{} + x.bits; }

// sum + a b, with pairs both products of a lane.
SEGOPS_INLINE Wide<float> multiply_add(Wide<float> a, Wide<float> b, Wide<float> sum) { return fma(a, b, sum); }
SEGOPS_INLINE Wide<double> multiply_add(Wide<double> a, Wide<double> b, Wide<double> sum) { return fma(a, b, sum); }
SEGOPS_INLINE Wide<float> multiply_add(WidePairs a, WidePairs b, Wide<float> sum) {
#if SEGOPS_ISA_LEVEL == 2
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#else
  sum = fma((Wide<float>)(a << 16), (Wide<float>)(b << 16), sum);
  return fma((Wide<float>)(a & 0xFFFF0000u), (Wide<float>)(b & 0xFFFF0000u), sum);
#endif
}

// The bits of the nearest bfloat16, ties to even, in the low half of each lane; NaN stays NaN.
template <class V>
SEGOPS_INLINE typename Lanes<V>::Bits bfloat16_bits(V x) {
  using Bits = typename Lanes<V>::Bits;
  const Bits bits = (Bits)x, nearest = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return x == x ? nearest : Bits{} + 0x7FC0u;
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
#endif

// Two rows of numbers as one of pairs.
SEGOPS_INLINE void store_pairs(Pair* p, Wide<float> first, Wide<float> second) {
  const WidePairs pairs = bfloat16_bits(first) | bfloat16_bits(second) << 16;
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
