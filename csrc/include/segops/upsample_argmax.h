// The largest class of logits at a higher resolution than they have; see segops/reference/upsample_argmax.py.
//
// Between four cells an interpolated logit is at least the least of its four, and at most the largest. So the greatest
// of all classes' least bounds what can win there: a class whose largest lies below it can not, and mostly one class or
// two are left, which alone are interpolated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segops/bilinear.h"
#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::upsample_argmax {

constexpr int64_t kLanes = 16;  // cells that are looked at together, at the most

template <class T, class L>
struct Problem {
  using Real = T;
  using Label = L;

  int64_t batch, channels;
  BilinearAxis<T> rows, columns;
  const T* input;  // (batch, channels, rows.cells, columns.cells)
  L* out;          // (batch, rows.size, columns.size)

  int64_t pitch() const { return columns.cells + kLanes + 1; }
};

// Two neighbouring rows of cells, (channels, pitch) each: behind the last cell it is repeated.
template <class T>
struct Band {
  const T *top, *bottom;
  int64_t first, last;  // rows of pixels between them
};

// For each of kLanes cells the classes that may win around it.
struct Candidates {
  std::vector<int32_t> classes;  // (kLanes, channels)
  int64_t count[kLanes];
};

#define SEGOPS_ISA_FILE "segops/upsample_argmax_isa.h"
#include "segops/foreach_isa.h"

// Copies of rows: the two of last use.
template <class P, class T = typename P::Real>
class PaddedRows {
 public:
  explicit PaddedRows(const P& p) : p_(p) {
    for (Slot& slot : slots_) slot.values = Buffer<T>(p.channels * p.pitch());
  }
  const T* row(int64_t n, int64_t i) {
    Slot& slot = slots_[i % 2];
    if (slot.image != n || slot.row != i) copy(n, i, slot);
    return slot.values.data();
  }

 private:
  struct Slot {
    int64_t image = -1, row = -1;
    Buffer<T> values;
  };

  void copy(int64_t n, int64_t i, Slot& slot) {
    const int64_t width = p_.columns.cells;
    for (int64_t c = 0; c < p_.channels; ++c) {
      const T* from = p_.input + ((n * p_.channels + c) * p_.rows.cells + i) * width;
      T* to = slot.values.data() + c * p_.pitch();
      std::fill(std::copy_n(from, width, to), to + p_.pitch(), from[width - 1]);
    }
    slot.image = n, slot.row = i;
  }

  const P& p_;
  Slot slots_[2];
};

template <class P>
void run(const P& p, Parallel& parallel) {
  parallel.range(p.batch * p.rows.cells, 1, [&](int64_t begin, int64_t end) {
    PaddedRows<P> cells(p);
    Candidates candidates{std::vector<int32_t>(kLanes * p.channels), {}};
    for (int64_t k = begin; k < end; ++k) {
      const int64_t n = k / p.rows.cells, i = k % p.rows.cells;
      if (p.rows.first[i] == p.rows.first[i + 1]) continue;
      const Band<typename P::Real> band{cells.row(n, i), cells.row(n, p.rows.next(i)), p.rows.first[i],
                                        p.rows.first[i + 1]};
      SEGOPS_BY_ISA(label_band<P>)(p, band, candidates, p.out + n * p.rows.size * p.columns.size);
    }
  });
}

}  // namespace segops::upsample_argmax
