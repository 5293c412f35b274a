// Instruction sets chosen at run time: what ships is built for the base of its architecture, and the kernels that
// deserve it are compiled once more for AVX2 and AVX-512 (see foreach_isa.h).
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#define SEGOPS_X86 1
#include <immintrin.h>
#else
#define SEGOPS_X86 0
#endif

namespace segops {

enum class Isa { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

inline Isa detect_isa() {
#if SEGOPS_X86
  __builtin_cpu_init();
  Isa best = Isa::kBase;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::kAvx2;
  if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    best = Isa::kAvx512;
  // SEGOPS_ISA=base|avx2 holds it down, for tests and comparisons.
  if (const char* wish = std::getenv("SEGOPS_ISA")) {
    if (!std::strcmp(wish, "base")) return Isa::kBase;
    if (!std::strcmp(wish, "avx2") && best == Isa::kAvx512) return Isa::kAvx2;
  }
  return best;
#else
  return Isa::kBase;
#endif
}

inline Isa isa() {
  static const Isa chosen = detect_isa();
  return chosen;
}

inline const char* isa_name() {
  constexpr const char* kNames[] = {"base", "avx2", "avx512"};
  return kNames[int(isa())];
}

}  // namespace segops

// SEGOPS_BY_ISA(function)(arguments): the function of the chosen instruction set's namespace.
#if SEGOPS_X86
#define SEGOPS_BY_ISA(...)                                          \
  (::segops::isa() == ::segops::Isa::kAvx512 ? &avx512::__VA_ARGS__ \
   : ::segops::isa() == ::segops::Isa::kAvx2 ? &avx2::__VA_ARGS__   \
                                             : &base::__VA_ARGS__)
#else
#define SEGOPS_BY_ISA(...) (&base::__VA_ARGS__)
#endif
