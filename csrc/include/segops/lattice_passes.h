// What the vectorised passes of the lattice are told; the passes themselves are in simplex_isa.h and lattice_isa.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "segops/isa.h"
#include "segops/simplex.h"

namespace segops {

constexpr int kLanes = 16;  // points that go through a pass together

// Whether points lie side by side in memory.
inline bool is_run(const int32_t* order, int count) {
  int32_t gaps = 0;
  for (int i = 1; i < count; ++i) gaps |= order[i] - order[0] - i;
  return gaps == 0;
}

// Where the points of one thread end in the numbering of one lattice: a table of sums need not be larger.
struct VertexRange {
  int32_t begin = 0, end = 0;
};

// One pass over the points. Null pointers leave their step out. Maps are (labels, points), rows (points, width).
template <class T>
struct PointPass {
  const int32_t* order = nullptr;    // the points of the maps, in the order of everything else
  const uint32_t* vertex = nullptr;  // (points, per_point), rows of the tables
  int per_point = 0, width = 0, labels = 0;
  int64_t stride = 0;  // of the maps
  const T *maps_in = nullptr, *table = nullptr, *grad_table = nullptr;
  const T *slice_weight = nullptr, *splat_weight = nullptr;
  T *start = nullptr, *grad = nullptr, *maps_out = nullptr;
  T pad = 0;  // what the labels beyond the last read as
  bool softmax = false, log_softmax = false, grad_is_new = false;
};

// One pass over the vertices of one lattice.
template <class T>
struct RowPass {
  int width = 0, labels = 0, parts = 0;
  const T* in = nullptr;
  T* out = nullptr;
  T* const* sums = nullptr;  // of each thread
  const VertexRange* touched = nullptr;
  const int32_t* neighbour = nullptr;
  const T* energy = nullptr;
  bool matrix = false;
};

#define SEGOPS_ISA_FILE "segops/lattice_isa.h"
#include "segops/foreach_isa.h"

}  // namespace segops
