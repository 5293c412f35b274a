// The exact Gaussian filter of P points in D dimensions: P^2 kernel values, none of them stored. No torch in here.
//
// The points are put in the order of a k-d tree and cut into blocks of kBlock, which are cut into leaves of kLeaf. Every
// array of C channels is kept as (blocks, C, kBlock): queries then fill the lanes of vectors and keys are broadcast, both
// from consecutive addresses. A leaf of queries skips a block of keys where the kernel is exactly 0 between their bounding
// boxes, so the order of the points decides how much is skipped and nothing else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <numeric>
#include <vector>

#include "segops/isa.h"

namespace segops {

constexpr int kBlock = 128, kLeaf = 32, kLeaves = kBlock / kLeaf;

// Beyond this squared distance the kernel is 0: floats' exp below -87.3, doubles' below -745.2, and a little more.
template <class T>
constexpr T kFar = sizeof(T) == 4 ? T(175) : T(1492);

template <class T>
struct ExactProblem {
  int64_t points, blocks, dims, channels;
  const T *features, *values, *grad;  // padded: features by copies of the last point, values and grad by zeros
  const T *leaf_boxes, *block_boxes;  // (.., 2, dims): the least and the largest coordinates
  T *out, *grad_features;             // added to; out is the filter of values, or of grad where there is one

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
using Buffer = std::vector<T, CacheLineAllocator<T>>;

template <class T>
struct Extent {
  T low, high;
};

// Of coordinate d of the points listed.
template <class T>
Extent<T> extent(const T* coordinate, const int64_t* begin, const int64_t* end) {
  Extent<T> e{coordinate[*begin], coordinate[*begin]};
  for (const int64_t* i = begin; i != end; ++i) {
    e.low = std::min(e.low, coordinate[*i]);
    e.high = std::max(e.high, coordinate[*i]);
  }
  return e;
}

// Halves the points across the longest side of their box until they fit a leaf.
template <class T>
void sort_into_leaves(const T* features, int64_t points, int64_t dims, int64_t* begin, int64_t* end) {
  const int64_t count = end - begin, unit = count > kBlock ? kBlock : kLeaf;
  if (count <= kLeaf) return;
  const T* widest = nullptr;
  T width = 0;
  for (const T* f = features; f != features + dims * points; f += points) {
    const Extent<T> e = extent(f, begin, end);
    if (e.high - e.low > width) width = e.high - e.low, widest = f;
  }
  if (!widest) return;  // copies of one point
  int64_t* middle = begin + (count / 2 + unit - 1) / unit * unit;
  std::nth_element(begin, middle, end, [=](int64_t a, int64_t b) { return widest[a] < widest[b]; });
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

// The points in their new order, and what goes in and out of it. parallel(count, grain, f) calls f(begin, end).
template <class T, class Parallel>
class ExactFilter {
 public:
  ExactFilter(const T* features, int64_t points, int64_t dims, int64_t channels, Parallel parallel)
      : points_(points), blocks_((points + kBlock - 1) / kBlock), parallel_(parallel),
        order_(order_points(features, points, dims)), features_(gather(features, dims, /*repeat_last=*/true)),
        leaf_boxes_(boxes(dims, kLeaf)), block_boxes_(boxes(dims, kBlock)) {
    problem_ = {points, blocks_, dims, channels, features_.data(), nullptr, nullptr, leaf_boxes_.data(),
                block_boxes_.data(), nullptr, nullptr};
  }

  void forward(const T* values, T* out) {
    const Buffer<T> packed = gather(values, problem_.channels);
    Buffer<T> sums(packed.size());
    problem_.values = packed.data();
    problem_.out = sums.data();
    run(SEGOPS_BY_ISA(filter_leaves<T>));
    scatter(sums, problem_.channels, out);
  }

  void backward(const T* grad, const T* values, T* grad_values, T* grad_features) {
    const Buffer<T> packed_grad = gather(grad, problem_.channels), packed = gather(values, problem_.channels);
    Buffer<T> sums(packed.size()), feature_sums(features_.size());
    problem_.values = packed.data();
    problem_.grad = packed_grad.data();
    problem_.out = sums.data();
    problem_.grad_features = feature_sums.data();
    run(SEGOPS_BY_ISA(differentiate_leaves<T>));
    scatter(sums, problem_.channels, grad_values);
    scatter(feature_sums, problem_.dims, grad_features);
  }

 private:
  // A leaf's sums come from one thread, in one order: they do not depend on the number of threads.
  void run(void (*visit)(const ExactProblem<T>&, int64_t, int64_t)) {
    const int64_t leaves = (points_ + kLeaf - 1) / kLeaf;
    const int64_t grain = 1 + (1 << 18) / (points_ * (problem_.channels + problem_.dims + 16) + 1);
    parallel_(leaves, grain, [&](int64_t begin, int64_t end) { visit(problem_, begin, end); });
  }

  int64_t grain(int64_t channels) const { return 1 + 16384 / (kBlock * (channels + 1)); }

  Buffer<T> gather(const T* from, int64_t channels, bool repeat_last = false) {
    Buffer<T> to(blocks_ * channels * kBlock);
    parallel_(blocks_, grain(channels), [&](int64_t begin, int64_t end) {
      T* at = to.data() + begin * channels * kBlock;
      for (int64_t block = begin; block < end; ++block)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i, ++at) {
            if (i < points_ || repeat_last) *at = from[c * points_ + order_[std::min(i, points_ - 1)]];
          }
    });
    return to;
  }

  void scatter(const Buffer<T>& from, int64_t channels, T* to) {
    parallel_(blocks_, grain(channels), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        for (int64_t c = 0; c < channels; ++c) {
          const T* at = from.data() + (block * channels + c) * kBlock;
          for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, points_); ++i) to[c * points_ + order_[i]] = *at++;
        }
    });
  }

  Buffer<T> boxes(int64_t dims, int64_t size) const {
    const int64_t count = blocks_ * kBlock / size;
    Buffer<T> result(count * 2 * dims);
    for (int64_t box = 0; box < count; ++box)
      for (int64_t d = 0; d < dims; ++d) {
        const int64_t first = box * size, block = first / kBlock;
        const T* at = features_.data() + (block * dims + d) * kBlock + first % kBlock;
        const auto [low, high] = std::minmax_element(at, at + size);
        result[(box * 2) * dims + d] = *low;
        result[(box * 2 + 1) * dims + d] = *high;
      }
    return result;
  }

  int64_t points_, blocks_;
  Parallel parallel_;
  std::vector<int64_t> order_;
  Buffer<T> features_, leaf_boxes_, block_boxes_;
  ExactProblem<T> problem_;
};

}  // namespace segops
