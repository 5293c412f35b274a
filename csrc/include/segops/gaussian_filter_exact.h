// The exact Gaussian filter of P points in D dimensions: P^2 kernel values, none of them stored. No torch in here.
//
// The points are put in the order of a k-d tree and cut into blocks of kBlock, which are cut into leaves of kLeaf.
// Every array of C channels is kept as (blocks, C, kBlock): queries then fill the lanes of vectors and keys are
// broadcast, both from consecutive addresses. A leaf of queries skips a block of keys where the kernel is exactly 0
// between their bounding boxes: the order of the points decides how often.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::exact {

constexpr int kBlock = 128, kLeaf = 32, kLeaves = kBlock / kLeaf;

// Beyond this squared distance the kernel is 0: floats' from 174.6 on (see gaussian), doubles' exp below -745.2.
template <class T>
constexpr T kFar = sizeof(T) == 4 ? T(175) : T(1492);

template <class T>
struct Problem {
  int64_t points, dims, channels, blocks, leaves;
  // The last block is filled up: features with the last point, values and grad with zeros.
  const T *features = nullptr, *values = nullptr, *grad = nullptr;
  const T *leaf_boxes = nullptr, *block_boxes = nullptr;  // (.., 2, dims): the least and the largest coordinates
  // (leaves, channels or dims, kLeaf), zeros to start with; out is the filter of values, or in the backward of grad.
  double *out = nullptr, *grad_features = nullptr;

  bool far(int64_t leaf, int64_t block) const {
    const T *a = leaf_boxes + leaf * 2 * dims, *b = block_boxes + block * 2 * dims;
    T square = 0;
    for (int64_t d = 0; d < dims; ++d) {
      const T gap = std::max(T(0), std::max(a[d] - b[dims + d], b[d] - a[dims + d]));
      square += gap * gap;
    }
    return square > kFar<T>;
  }
};

#define SEGOPS_ISA_FILE "segops/gaussian_filter_exact_isa.h"
#include "segops/foreach_isa.h"

template <class T>
struct CacheLineAllocator {
  using value_type = T;
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const CacheLineAllocator&) const { return true; }
};
template <class T>
using Aligned = std::vector<T, CacheLineAllocator<T>>;

template <class T>
struct Extent {
  T low, high;
};

// Of one coordinate of the points listed.
template <class T>
Extent<T> extent(const T* coordinate, const int64_t* begin, const int64_t* end) {
  Extent<T> e{coordinate[*begin], coordinate[*begin]};
  for (const int64_t* i = begin; i != end; ++i) {
    e.low = std::min(e.low, coordinate[*i]);
    e.high = std::max(e.high, coordinate[*i]);
  }
  return e;
}

// Halves the points listed across the longest side of their box until they fit a leaf.
template <class T>
void sort_into_leaves(const T* features, int64_t points, int64_t dims, int64_t* begin, int64_t* end) {
  const int64_t count = end - begin, unit = count > kBlock ? kBlock : kLeaf;
  if (count <= kLeaf) return;
  const T* longest = nullptr;
  T length = 0;
  for (const T* f = features; f != features + dims * points; f += points) {
    const Extent<T> e = extent(f, begin, end);
    if (e.high - e.low > length) length = e.high - e.low, longest = f;
  }
  if (!longest) return;  // copies of one point
  int64_t* middle = begin + (count / 2 + unit - 1) / unit * unit;
  std::nth_element(begin, middle, end, [=](int64_t a, int64_t b) { return longest[a] < longest[b]; });
  sort_into_leaves(features, points, dims, begin, middle);
  sort_into_leaves(features, points, dims, middle, end);
}

template <class T>
std::vector<int64_t> order_points(const T* features, int64_t points, int64_t dims) {
  std::vector<int64_t> order(points);
  std::iota(order.begin(), order.end(), 0);
  T diagonal = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const Extent<T> e = extent(features + d * points, order.data(), order.data() + points);
    diagonal += (e.high - e.low) * (e.high - e.low);
  }
  if (diagonal > kFar<T>) sort_into_leaves(features, points, dims, order.data(), order.data() + points);
  return order;
}

template <class T>
void check_finite(const T* features, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= features[i] - features[i] == 0;
  if (!finite) throw std::invalid_argument("features: expected finite values, got NaN or inf");
}

// The filter of one set of features: (dims, points), finite, at least one point.
template <class T>
class Filter {
 public:
  Filter(const T* features, int64_t points, int64_t dims, int64_t channels, Parallel& parallel)
      : parallel_(parallel), order_(order_points(features, points, dims)) {
    p_ = {.points = points,
          .dims = dims,
          .channels = channels,
          .blocks = (points + kBlock - 1) / kBlock,
          .leaves = (points + kLeaf - 1) / kLeaf};
    features_ = gather(features, dims, /*repeat_last=*/true);
    leaf_boxes_ = boxes(kLeaf);
    block_boxes_ = boxes(kBlock);
    p_.features = features_.data();
    p_.leaf_boxes = leaf_boxes_.data();
    p_.block_boxes = block_boxes_.data();
  }

  // values, out: (channels, points)
  void forward(const T* values, T* out) {
    const Aligned<T> packed_values = gather(values, p_.channels);
    Aligned<double> sums(p_.leaves * p_.channels * kLeaf);
    p_.values = packed_values.data();
    p_.out = sums.data();
    run(SEGOPS_BY_ISA(filter_leaves<T>));
    scatter(sums, p_.channels, out);
  }

  void backward(const T* grad, const T* values, T* grad_values, T* grad_features) {
    const Aligned<T> packed_grad = gather(grad, p_.channels), packed_values = gather(values, p_.channels);
    Aligned<double> sums(p_.leaves * p_.channels * kLeaf), feature_sums(p_.leaves * p_.dims * kLeaf);
    p_.grad = packed_grad.data();
    p_.values = packed_values.data();
    p_.out = sums.data();
    p_.grad_features = feature_sums.data();
    run(SEGOPS_BY_ISA(differentiate_leaves<T>));
    scatter(sums, p_.channels, grad_values);
    scatter(feature_sums, p_.dims, grad_features);
  }

 private:
  // Threads take turns with the leaves, since neighbours skip alike. A leaf's sums come from one thread, in one order:
  // they do not depend on the number of threads.
  void run(void (*visit)(const Problem<T>&, int64_t, int64_t)) {
    const int64_t grain = 1 + (1 << 18) / (p_.points * (p_.channels + p_.dims + 16));
    const int tasks = int(std::clamp<int64_t>(p_.leaves / grain, 1, parallel_.threads()));
    parallel_.run(tasks, [&](int i) { visit(p_, i, tasks); });
  }

  // body(row, channel, first point, last point + 1) for the rows of an array of (groups of size points, channels, size)
  template <class Body>
  void each_row(int64_t size, int64_t channels, const Body& body) {
    const int64_t groups = (p_.points + size - 1) / size;
    parallel_.range(groups * channels, 32768 / size, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t first = row / channels * size;
        body(row, row % channels, first, std::min(first + size, p_.points));
      }
    });
  }

  // (channels, points) to (blocks, channels, kBlock)
  Aligned<T> gather(const T* from, int64_t channels, bool repeat_last = false) {
    Aligned<T> to(p_.blocks * channels * kBlock);
    each_row(kBlock, channels, [&](int64_t row, int64_t c, int64_t first, int64_t end) {
      T* at = to.data() + row * kBlock;
      for (int64_t i = first; i < end; ++i) *at++ = from[c * p_.points + order_[i]];
      if (repeat_last) std::fill(at, to.data() + (row + 1) * kBlock, at[-1]);
    });
    return to;
  }

  // (leaves, channels, kLeaf) to (channels, points)
  void scatter(const Aligned<double>& from, int64_t channels, T* to) {
    each_row(kLeaf, channels, [&](int64_t row, int64_t c, int64_t first, int64_t end) {
      const double* at = from.data() + row * kLeaf;
      for (int64_t i = first; i < end; ++i) to[c * p_.points + order_[i]] = T(*at++);
    });
  }

  // Of every size points.
  Aligned<T> boxes(int64_t size) const {
    Aligned<T> result(p_.blocks * kBlock / size * 2 * p_.dims);
    T* to = result.data();
    for (int64_t first = 0; first < p_.blocks * kBlock; first += size, to += 2 * p_.dims)
      for (int64_t d = 0; d < p_.dims; ++d) {
        const T* at = features_.data() + (first / kBlock * p_.dims + d) * kBlock + first % kBlock;
        to[d] = *std::min_element(at, at + size);
        to[p_.dims + d] = *std::max_element(at, at + size);
      }
    return result;
  }

  Parallel& parallel_;
  std::vector<int64_t> order_;
  Problem<T> p_;
  Aligned<T> features_, leaf_boxes_, block_boxes_;
};

}  // namespace segops::exact
