// The arithmetic of the permutohedral lattice, one text for every processor. See
// segops/reference/permutohedral_filter.py for the same in ten lines.
#pragma once

#include <cstdint>

#include "segops/host_device.h"

namespace segops {

constexpr int kMaxDim = 24;  // features per point; 128-bit keys leave 5 bits a coordinate there

// Scalar meanings of the operations that simd.h gives its vectors too.
SEGOPS_HOST_DEVICE float floor_of(float x) { return __builtin_floorf(x); }
SEGOPS_HOST_DEVICE double floor_of(double x) { return __builtin_floor(x); }
// A product that is rounded before it is added to anything: see find_simplex.h.
#if defined(__CUDA_ARCH__)
SEGOPS_HOST_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
SEGOPS_HOST_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
#else
SEGOPS_HOST_DEVICE float product(float a, float b) { return a * b; }
SEGOPS_HOST_DEVICE double product(double a, double b) { return a * b; }
#endif
SEGOPS_HOST_DEVICE float one_if_less(float a, float b) { return a < b ? 1.f : 0.f; }
SEGOPS_HOST_DEVICE double one_if_less(double a, double b) { return a < b ? 1. : 0.; }
SEGOPS_HOST_DEVICE float where_equal(float a, float b, float x) { return a == b ? x : 0.f; }
SEGOPS_HOST_DEVICE double where_equal(double a, double b, double x) { return a == b ? x : 0.; }

// Scale of feature i: unit variance of the blur along every axis, times the norm of the elevation's column.
SEGOPS_HOST_DEVICE double feature_scale(int dim, int i) {
  return 0.81649658092772603 /* sqrt(2/3) */ * (dim + 1) / __builtin_sqrt(double(i + 1) * (i + 2));
}

#include "segops/find_simplex.h"

// A vertex is its remainder r and its quotients q, coordinate i = (dim + 1) * q[i] + r; the last quotient follows from
// the others. A key packs them into one word: the remainder in the low bits, one field of `bits` for each quotient,
// offset by half the field's range.
template <class Key>
struct KeyLayout {
  int dim, remainder_bits, bits;

  SEGOPS_HOST_DEVICE explicit KeyLayout(int dim) : dim(dim), remainder_bits(1), bits(0) {
    while ((1 << remainder_bits) < dim + 1) ++remainder_bits;
    bits = (int(sizeof(Key)) * 8 - 1 - remainder_bits) / dim;
    if (bits > 31) bits = 31;
  }

  // Coordinate i as one unit of the key; the redundant last coordinate has none.
  SEGOPS_HOST_DEVICE Key unit(int i) const { return i < dim ? Key(1) << (remainder_bits + i * bits) : Key(0); }
  SEGOPS_HOST_DEVICE Key all_units() const {
    Key sum = 0;
    for (int i = 0; i < dim; ++i) sum += unit(i);
    return sum;
  }
  // Quotients must keep clear of the field's ends, so that a step to a neighbour never carries; and be small enough for
  // a float to place a point inside its cell: far beyond, rounding leaves ranks that are no permutation.
  SEGOPS_HOST_DEVICE int32_t limit() const {
    const int64_t field = (int64_t(1) << (bits - 1)) - 3, precise = int64_t(1) << 20;
    return int32_t(field < precise ? field : precise);
  }

  template <class Int>
  SEGOPS_HOST_DEVICE Key origin(const Int* quotient) const {
    Key key = 0;
    for (int i = 0; i < dim; ++i)
      key += Key(int64_t(quotient[i]) + (int64_t(1) << (bits - 1))) << (remainder_bits + i * bits);
    return key;
  }

  // The keys of all dim + 1 vertices of a simplex: from one remainder to the next, every coordinate grows by 1 and the
  // one whose turn it is by rank falls by dim + 1.
  template <class Int>
  SEGOPS_HOST_DEVICE void vertices(const Int* quotient, const Int* rank, Key* keys) const {
    Key by_rank[kMaxDim + 1];
    for (int i = 0; i <= dim; ++i) by_rank[int(rank[i])] = unit(i);
    keys[0] = origin(quotient);
    for (int r = 1; r <= dim; ++r) keys[r] = keys[r - 1] + 1 - by_rank[dim - r + 1];
  }

  // One step along an axis: every coordinate -1 (backward) or +1, the axis' own +dim or -dim.
  SEGOPS_HOST_DEVICE Key before(Key key, int axis, Key all) const {
    const Key remainder = key & ((Key(1) << remainder_bits) - 1);
    return remainder > 0 ? key - 1 + unit(axis) : key + Key(dim) - all + unit(axis);
  }
  SEGOPS_HOST_DEVICE Key after(Key key, int axis, Key all) const {
    const Key remainder = key & ((Key(1) << remainder_bits) - 1);
    return remainder < Key(dim) ? key + 1 - unit(axis) : key - Key(dim) + all - unit(axis);
  }
};

}  // namespace segops
