// The most uncertain of random points, in one pass over the logits; see segops/reference/uncertain_points.py.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "segops/grid_point.h"
#include "segops/isa.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"
#include "segops/uncertain.h"

namespace {

#define SEGOPS_ISA_FILE "segops/uncertain_points_isa.h"
#include "segops/foreach_isa.h"

using segops::data;
using segops::mutable_data;
using segops::Tensor;

constexpr int64_t kChunk = 8192;  // points at once: their taps and largest logits stay in the second cache

struct Shape {
  int64_t channels, height, width;
};

// As in grid_sample, nothing can be sampled at other points; to the taps, an infinite one is outside, where zeros are.
template <class T>
bool finite(const T* point) {
  return std::isfinite(point[0]) && std::isfinite(point[1]);
}

// Margins of points of one image, channel by channel, so that one plane after the other is in cache. Where that pays,
// points go in the order of their cells, which makes random reads run through the plane. Nearly all lie between four
// cells; the few at the border are sampled one by one.
template <class T>
class PlanarMargins {
 public:
  PlanarMargins(Shape shape, int64_t most) : shape_(shape), sorts_(shape.channels >= kWorthSorting) {
    const int64_t room = padded(std::min(most, kChunk));
    for (auto* x : {&values_, &first_, &second_, &columns_, &rows_}) *x = segops::Buffer<T>(room);
    for (auto* x : {&cells_, &corners_, &places_}) *x = segops::Buffer<int64_t>(room);
    weights_ = segops::Buffer<T>(4 * room);
    while ((shape_.height * shape_.width - 1) >> shift_ >= kBuckets) ++shift_;
  }

  // points (count, 2) with count <= kChunk; margins go where the points stand.
  void operator()(const T* logits, const T* points, int64_t count, T* margins) {
    place(points, count);
    const int64_t all = padded(count);
    std::fill_n(first_.data(), all, -std::numeric_limits<T>::infinity());
    std::fill_n(second_.data(), all, -std::numeric_limits<T>::infinity());
    for (int64_t c = 0; c < shape_.channels; ++c) {
      const T* map = logits + c * shape_.height * shape_.width;
      if (int64_t(border_.size()) < count)
        sample_quads_(map, shape_.width, corners_.data(), weights_.data(), all, values_.data());
      for (const auto& [i, taps] : border_) values_[i] = segops::sample(taps, map);
      rank_values_(values_.data(), all, first_.data(), second_.data());
    }
    settle_(shape_.channels, count, first_.data(), second_.data());
    for (const auto& [i, taps] : border_)
      if (!finite(points + 2 * places_[i])) first_[i] = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < count; ++i) margins[places_[i]] = first_[i];
  }

 private:
  static constexpr int64_t kLanes = 16, kBuckets = 512, kWorthSorting = 4;
  static int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

  // Corners and weights of all points, and which of them stands where: a counting sort.
  void place(const T* points, int64_t count) {
    find_cells_(points, count, shape_.height, shape_.width, cells_.data(), columns_.data(), rows_.data());
    int64_t starts[kBuckets + 1] = {};
    if (sorts_) {
      for (int64_t i = 0; i < count; ++i) ++starts[(std::max<int64_t>(0, cells_[i]) >> shift_) + 1];
      for (int64_t b = 0; b < kBuckets; ++b) starts[b + 1] += starts[b];
    }
    border_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t cell = std::max<int64_t>(0, cells_[i]), to = sorts_ ? starts[cell >> shift_]++ : i;
      const T x = columns_[i], y = rows_[i], weights[4] = {(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x};
      places_[to] = i;
      corners_[to] = cell;
      std::copy_n(weights, 4, weights_.data() + 4 * to);
      if (cells_[i] < 0)
        border_.push_back({to, segops::taps(points[2 * i], points[2 * i + 1], shape_.height, shape_.width, {})});
    }
    for (int64_t i = count; i < padded(count); ++i) {
      corners_[i] = 0;
      std::fill_n(weights_.data() + 4 * i, 4, T(0));
    }
  }

  struct Border {
    int64_t to;
    segops::Taps<T> taps;
  };

  Shape shape_;
  bool sorts_;
  int shift_ = 0;
  std::vector<Border> border_;
  segops::Buffer<T> values_, first_, second_, columns_, rows_, weights_;
  segops::Buffer<int64_t> cells_, corners_, places_;
  void (*find_cells_)(const T*, int64_t, int64_t, int64_t, int64_t*, T*, T*) = SEGOPS_BY_ISA(find_cells<T>);
  void (*sample_quads_)(const T*, int64_t, const int64_t*, const T*, int64_t, T*) = SEGOPS_BY_ISA(sample_quads<T>);
  void (*rank_values_)(const T*, int64_t, T*, T*) = SEGOPS_BY_ISA(rank_values<T>);
  void (*settle_)(int64_t, int64_t, T*, const T*) = SEGOPS_BY_ISA(settle<T>);
};

// The same for channels_last: a few points after the other, their samples transposed to planes. `values` is room for
// (kGroup + 1) * channels numbers.
constexpr int64_t kGroup = 16;

template <class T>
void margins_of_last(const T* logits, Shape shape, const T* points, int64_t count, T* values, T* margins) {
  const auto sample = SEGOPS_BY_ISA(sample_cells<T>);
  const auto rank = SEGOPS_BY_ISA(margins_of_planes<T>);
  for (int64_t begin = 0; begin < count; begin += kGroup) {
    const int64_t group = std::min(kGroup, count - begin);
    for (int64_t i = 0; i < group; ++i) {
      const T* point = points + 2 * (begin + i);
      const auto taps = segops::taps(point[0], point[1], shape.height, shape.width, {});
      sample(logits, shape.channels, taps.count, taps.index, taps.weight, values + kGroup * shape.channels, kGroup,
             values + i);
    }
    rank(values, kGroup, shape.channels, group, margins + begin);
    for (int64_t i = begin; i < begin + group; ++i)
      if (!finite(points + 2 * i)) margins[i] = std::numeric_limits<T>::infinity();
  }
}

bool channels_last(const Tensor& x) {
  return x.size(1) > 1 && x.stride(1) == 1 && x.stride(3) == x.size(1) && x.stride(2) == x.size(3) * x.size(1) &&
         x.stride(0) == x.size(2) * x.stride(2);
}

template <class T>
void select(const Tensor& logits, bool last, const Tensor& candidates, const Tensor& others, int64_t important,
            Tensor& out) {
  const Shape shape{logits.size(1), logits.size(2), logits.size(3)};
  const int64_t image = shape.channels * shape.height * shape.width, drawn = candidates.size(1);
  const int64_t rest = others.size(1), all = important + rest;
  segops::TorchParallel parallel;
  const auto feed = [&](segops::Smallest<T>& found, int64_t n, int64_t begin, int64_t end) {
    if (important == 0) return;
    constexpr int64_t kBlock = segops::Smallest<T>::kBlock;
    segops::Buffer<T> margins(std::min(kChunk, end - begin)), values(last ? (kGroup + 1) * shape.channels : 0);
    PlanarMargins<T> planar(shape, last ? 0 : end - begin);
    for (int64_t i = begin; i < end; i += kChunk) {
      const int64_t count = std::min(kChunk, end - i);
      const T* points = data<T>(candidates, 2 * (n * drawn + i));
      if (last)
        margins_of_last(data<T>(logits, n * image), shape, points, count, values.data(), margins.data());
      else
        planar(data<T>(logits, n * image), points, count, margins.data());
      for (int64_t j = 0; j < count; j += kBlock) found.push(margins.data() + j, std::min(kBlock, count - j), i + j);
    }
  };
  const auto take = [&](int64_t n, const auto* chosen, int64_t count) {
    T* to = mutable_data<T>(out, 2 * n * all);
    for (int64_t i = 0; i < count; ++i, to += 2)
      std::copy_n(data<T>(candidates, 2 * (n * drawn + chosen[i].place)), 2, to);
    std::copy_n(data<T>(others, 2 * n * rest), 2 * rest, to);
  };
  segops::uncertain::select<T>(logits.size(0), drawn, 1, important, parallel, feed, take);
}

Tensor uncertain_points(Tensor logits, Tensor candidates, Tensor others, int64_t important) {
  const auto holds = [&](const Tensor& points) {
    return points.dim() == 3 && points.size(0) == logits.size(0) && points.size(2) == 2 &&
           points.scalar_type() == logits.scalar_type();
  };
  segops::require(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0 &&
                      holds(candidates) && holds(others) && important >= 0 && important <= candidates.size(1),
                  "uncertain_points: expected logits (N, C, H, W) with C, H, W >= 1, candidates (N, M, 2) and others "
                  "(N, R, 2) of one dtype, and important from 0 to M");
  const bool last = channels_last(logits);
  if (!last) logits = torch::stable::contiguous(logits);
  candidates = torch::stable::contiguous(candidates);
  others = torch::stable::contiguous(others);
  Tensor out = segops::fresh(logits, {logits.size(0), important + others.size(1), 2});
  segops::dispatch(logits, "uncertain_points",
                   [&](auto zero) { select<decltype(zero)>(logits, last, candidates, others, important, out); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("uncertain_points", SEGOPS_BOX(uncertain_points)); }
