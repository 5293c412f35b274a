// No include guard: #define SEGOPS_ISA_FILE "segops/x_isa.h", then include this inside namespace segops. The file is
// compiled once for each instruction set, in a namespace of its own, so that no inline function of one can be linked in
// place of another's. It must include nothing but "segops/simd.h" itself.
#define SEGOPS_ISA_LEVEL 0
namespace base {
#include "segops/simd.h"
#include SEGOPS_ISA_FILE
}  // namespace base
#undef SEGOPS_ISA_LEVEL

#if SEGOPS_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define SEGOPS_ISA_LEVEL 1
namespace avx2 {
#include "segops/simd.h"
#include SEGOPS_ISA_FILE
}  // namespace avx2
#undef SEGOPS_ISA_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512")
#endif
#define SEGOPS_ISA_LEVEL 2
namespace avx512 {
#include "segops/simd.h"
#include SEGOPS_ISA_FILE
}  // namespace avx512
#undef SEGOPS_ISA_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // SEGOPS_X86
#undef SEGOPS_ISA_FILE
