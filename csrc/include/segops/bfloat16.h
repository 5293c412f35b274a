// bfloat16 as products read it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "segops/isa.h"

namespace segops {

// A number as it lies in memory: the upper half of a float.
struct Bfloat16 {
  uint16_t bits;
};

// Two numbers that are multiplied with two others and summed at once; the first has the low half of the bits. Numbers
// side by side in memory may be read as one.
struct __attribute__((may_alias)) Pair {
  uint32_t bits;
};

// Of what lies in memory: the type of sums, and what products multiply.
template <class S>
using Sum = std::conditional_t<std::is_same_v<S, double>, double, float>;
template <class S>
using Element = std::conditional_t<std::is_same_v<S, Bfloat16>, Pair, S>;

// From memory to sums and back, to the nearest number, ties to even; NaN stays NaN.
template <class S>
S widen(S x) {
  return x;
}
inline float widen(Bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
template <class S>
S narrow(Sum<S> x) {
  if constexpr (std::is_same_v<S, Bfloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return {uint16_t(x == x ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FC0)};
  } else {
    return x;
  }
}

// How many numbers an element of a packed matrix holds, how many elements `count` of them take, and the type of sums.
template <class E>
constexpr int kNumbers = std::is_same_v<E, Pair> ? 2 : 1;
template <class E>
constexpr int64_t elements(int64_t count) {
  return (count + kNumbers<E> - 1) / kNumbers<E>;
}
template <class E>
using Total = std::conditional_t<std::is_same_v<E, Pair>, float, E>;

// Whether pairs are multiplied as fast as floats are. SEGOPS_BFLOAT16_PAIRS=0|1 says otherwise, for tests and
// comparisons; it cannot ask AVX-512 for an instruction that the processor lacks.
inline bool bfloat16_pairs() {
#if SEGOPS_X86
  static const bool fast = [] {
    const bool has = __builtin_cpu_supports("avx512bf16");
    const char* wish = std::getenv("SEGOPS_BFLOAT16_PAIRS");
    if (wish && !std::strcmp(wish, "0")) return false;
    if (wish && !std::strcmp(wish, "1")) return has || isa() != Isa::kAvx512;
    return has && isa() == Isa::kAvx512;
  }();
  return fast;
#else
  return false;
#endif
}

}  // namespace segops
