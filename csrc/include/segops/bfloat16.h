// bfloat16 as products read it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "segops/isa.h"

namespace segops {

// Two numbers that are multiplied with two others and summed at once; the first has the low half of the bits.
struct Pair {
  uint32_t bits;
};

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
