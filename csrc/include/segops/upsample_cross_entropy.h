// Cross entropy of logits at a higher resolution than they have; see segops/reference/upsample_cross_entropy.py.
//
// Two rows of logits at a time lie in a cache with the channels of a cell side by side. All pixels between the same
// four cells are done together, by vectors over the channels (where these are few, over the pixels), which load the
// cells once and interpolate in registers. Forward keeps the log-sum-exp of each pixel: backward computes each exp
// once.
//
// Backward, a thread owns rows of cells, and goes through all pixels that touch them in their order: no atomics, and no
// number of threads changes a bit. The pixels between rows of two threads are done by both.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "segops/bilinear.h"
#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/labels.h"
#include "segops/parallel.h"

namespace segops::upsample {

constexpr int64_t kLanes = 16;  // channels are padded to whole vectors
constexpr int kGroup = 8;       // pixels that are done together
constexpr int kFewChannels = 4;

template <class T>
struct Problem {
  int64_t batch, channels;
  BilinearAxis<T> rows, columns;
  LabelRange labels;
  const T* input;             // (batch, channels, rows.cells, columns.cells)
  const int64_t* target;      // (batch, rows.size, columns.size)
  std::vector<T> weight;      // (pitch,): of the classes; 0 behind the end
  std::vector<T> behind;      // (pitch,): 0 for the classes, -inf behind the end
  T smoothing, total_weight;  // of all classes

  int64_t pitch() const { return (channels + kLanes - 1) / kLanes * kLanes; }
  int64_t cells() const { return rows.cells * columns.cells; }
  int64_t pixel(int64_t n, int64_t y) const { return (n * rows.size + y) * columns.size; }
  const int64_t* labels_of(int64_t n, int64_t y) const { return target + pixel(n, y); }
  T uniform() const { return smoothing / T(channels); }  // what each class counts beside the own one
};

// Up to kGroup valid pixels between the same cells.
template <class T>
struct Group {
  int count = 0;
  int64_t x[kGroup];
  int64_t label[kGroup];
  T fraction[kGroup] = {};
  T shift[kGroup];  // backward: the log-sum-exp
  T slope[kGroup];  // backward: the gradient by the log-sum-exp

  void add(int64_t at, int64_t label_, T fraction_) {
    x[count] = at;
    label[count] = label_;
    fraction[count++] = fraction_;
  }
};

// The four cells around a group, (pitch,) each, and how far below the upper ones it lies.
template <class C, class T>
struct Corners {
  C *top_left, *top_right, *bottom_left, *bottom_right;
  T fraction;
};

// What forward finds of each pixel of a row: the largest logit, the sum of exp over it, the own logit, and the sum of
// all, weighted.
template <class T>
struct Row {
  T *peak, *total, *own, *weighted;
};

#define SEGOPS_ISA_FILE "segops/upsample_cross_entropy_isa.h"
#include "segops/foreach_isa.h"

// group(group, cell) for the pixels of a row of labels, ignored ones left out; false for a wrong label.
template <class T, class Body>
bool each_group(const Problem<T>& p, const int64_t* labels, const Body& body) {
  for (int64_t j = 0; j < p.columns.cells; ++j) {
    Group<T> group;
    for (int64_t x = p.columns.first[j]; x < p.columns.first[j + 1]; ++x) {
      if (p.labels.is_wrong(labels[x])) return false;
      if (p.labels.is_ignored(labels[x])) continue;
      group.add(x, labels[x], p.columns.fraction[x]);
      if (group.count < kGroup) continue;
      body(group, j);
      group.count = 0;
    }
    if (group.count > 0) body(group, j);
  }
  return true;
}

// Rows of cells with the channels of a cell side by side: the two of last use.
template <class T>
class CellRows {
 public:
  explicit CellRows(const Problem<T>& p) : p_(p) {
    for (Slot& slot : slots_) slot.cells = Buffer<T>(p.columns.cells * p.pitch());
  }
  const T* row(int64_t n, int64_t i) {
    Slot& slot = slots_[i % 2];
    if (slot.image != n || slot.row != i) {
      const T* from = p_.input + n * p_.channels * p_.cells() + i * p_.columns.cells;
      SEGOPS_BY_ISA(gather_channels<T>)(from, p_.cells(), p_.channels, p_.columns.cells, p_.pitch(), slot.cells.data());
      slot.image = n, slot.row = i;
    }
    return slot.cells.data();
  }
  // Around the pixels of row y between cells j and j + 1.
  Corners<const T, T> corners(int64_t n, int64_t y, int64_t j) {
    const int64_t i = p_.rows.cell[y], left = j * p_.pitch(), right = p_.columns.next(j) * p_.pitch();
    const T *top = row(n, i), *bottom = row(n, p_.rows.next(i));
    return {top + left, top + right, bottom + left, bottom + right, p_.rows.fraction[y]};
  }

 private:
  struct Slot {
    int64_t image = -1, row = -1;
    Buffer<T> cells;
  };
  const Problem<T>& p_;
  Slot slots_[2];
};

// loss and lse (batch, rows.size, columns.size)
template <class T>
void forward(const Problem<T>& p, T* loss, T* lse, Parallel& parallel) {
  std::atomic<bool> wrong = false;
  parallel.range(p.batch * p.rows.size, 1, [&](int64_t begin, int64_t end) {
    CellRows<T> cells(p);
    const int64_t width = p.columns.size + kLanes;
    Buffer<T> room(4 * width + 2 * p.pitch());
    const Row<T> row{room.data(), room.data() + width, room.data() + 2 * width, room.data() + 3 * width};
    for (int64_t k = begin; k < end; ++k) {
      const int64_t n = k / p.rows.size, y = k % p.rows.size;
      std::fill_n(row.total, width, T(1));  // ignored pixels get some number, which nobody sees
      const bool right = each_group(p, p.labels_of(n, y), [&](const Group<T>& group, int64_t j) {
        SEGOPS_BY_ISA(softmax_of_group<T>)(p, group, cells.corners(n, y, j), row.own + 2 * width, row);
      });
      if (!right) {
        wrong = true;
        return;
      }
      SEGOPS_BY_ISA(losses_of_row<T>)(p, p.labels_of(n, y), row, loss + p.pixel(n, y), lse + p.pixel(n, y));
    }
  });
  if (wrong) p.labels.check(p.target, p.pixel(p.batch, 0));
}

// The gradients of two neighbouring rows of cells, of which finished ones are written.
template <class T>
class GradientRows {
 public:
  // Rows [first, last) of image n are written, the row before the first is only passed.
  GradientRows(const Problem<T>& p, int64_t n, int64_t first, int64_t last, T* out)
      : p_(p),
        out_(out + n * p.channels * p.cells()),
        first_(first),
        last_(last),
        at_(std::max<int64_t>(first - 1, 0)),
        upper_(size()),
        lower_(size()) {
    std::fill_n(upper_.data(), size(), T(0));
    std::fill_n(lower_.data(), size(), T(0));
  }
  void advance(int64_t i) {
    for (; at_ < i; ++at_) {
      if (at_ >= first_) {
        T* to = out_ + at_ * p_.columns.cells;
        SEGOPS_BY_ISA(scatter_channels<T>)(upper_.data(), p_.cells(), p_.channels, p_.columns.cells, p_.pitch(), to);
      }
      std::swap(upper_, lower_);
      std::fill_n(lower_.data(), size(), T(0));
    }
  }
  void finish() { advance(last_); }
  Corners<T, T> corners(int64_t y, int64_t j) {
    const int64_t left = j * p_.pitch(), right = p_.columns.next(j) * p_.pitch();
    T *top = upper_.data(), *bottom = lower_.data();
    return {top + left, top + right, bottom + left, bottom + right, p_.rows.fraction[y]};
  }

 private:
  int64_t size() const { return p_.columns.cells * p_.pitch(); }

  const Problem<T>& p_;
  T* out_;
  int64_t first_, last_, at_;  // the row that is the upper one
  Buffer<T> upper_, lower_;
};

// Gradients of rows [first, last) of cells of image n.
template <class T>
bool differentiate_rows(const Problem<T>& p, const T* grad, const T* lse, int64_t n, int64_t first, int64_t last,
                        CellRows<T>& cells, T* out) {
  GradientRows<T> gradients(p, n, first, last, out);
  for (int64_t y = p.rows.first[std::max<int64_t>(first - 1, 0)]; y < p.rows.first[last]; ++y) {
    gradients.advance(p.rows.cell[y]);
    const T *slope = grad + p.pixel(n, y), *shift = lse + p.pixel(n, y);
    const bool right = each_group(p, p.labels_of(n, y), [&](Group<T>& group, int64_t j) {
      SEGOPS_BY_ISA(differentiate_group<T>)(p, group, cells.corners(n, y, j), gradients.corners(y, j), slope, shift);
    });
    if (!right) return false;
  }
  gradients.finish();
  return true;
}

// grad and lse (batch, rows.size, columns.size), out like input
template <class T>
void backward(const Problem<T>& p, const T* grad, const T* lse, T* out, Parallel& parallel) {
  std::atomic<bool> wrong = false;
  const int64_t height = p.rows.cells;
  parallel.range(p.batch * height, 1, [&](int64_t begin, int64_t end) {
    CellRows<T> cells(p);
    for (int64_t n = begin / height; n * height < end; ++n) {
      const int64_t first = std::max<int64_t>(begin - n * height, 0), last = std::min(end - n * height, height);
      if (!differentiate_rows(p, grad, lse, n, first, last, cells, out)) wrong = true;
    }
  });
  if (wrong) p.labels.check(p.target, p.pixel(p.batch, 0));
}

}  // namespace segops::upsample
