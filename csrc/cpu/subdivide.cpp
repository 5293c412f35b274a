// A map of logits twice as large and its most uncertain cells, in one pass; see segops/reference/subdivide.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "segops/isa.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"
#include "segops/uncertain.h"

namespace {

#define SEGOPS_ISA_FILE "segops/subdivide_isa.h"
#include "segops/foreach_isa.h"

using segops::data;
using segops::mutable_data;
using segops::ScalarType;
using segops::Tensor;

// Rows of one image's new map. A row of all channels comes before the next row, so that its largest two stay in cache.
template <class T>
class Rows {
 public:
  Rows(const Tensor& logits, Tensor& out)
      : logits_(data<T>(logits)),
        out_(mutable_data<T>(out)),
        channels_(logits.size(1)),
        height_(logits.size(2)),
        width_(logits.size(3)),
        between_(width_ + 2),
        first_(2 * width_),
        second_(2 * width_) {}

  // Writes row y of image n and returns the margins of its cells.
  const T* write(int64_t n, int64_t y) {
    std::fill_n(first_.data(), 2 * width_, -std::numeric_limits<T>::infinity());
    std::fill_n(second_.data(), 2 * width_, -std::numeric_limits<T>::infinity());
    const int64_t nearest = y / 2, other = std::clamp<int64_t>(nearest + (y % 2 ? 1 : -1), 0, height_ - 1);
    for (int64_t c = n * channels_; c < (n + 1) * channels_; ++c) {
      const T* plane = logits_ + c * height_ * width_;
      upsample_(plane + nearest * width_, plane + other * width_, width_, between_.data(),
                out_ + (c * 2 * height_ + y) * 2 * width_, first_.data(), second_.data());
    }
    settle_(channels_, 2 * width_, first_.data(), second_.data());
    return first_.data();
  }

 private:
  const T* logits_;
  T* out_;
  int64_t channels_, height_, width_;
  segops::Buffer<T> between_, first_, second_;
  void (*upsample_)(const T*, const T*, int64_t, T*, T*, T*, T*) = SEGOPS_BY_ISA(upsample_row<T>);
  void (*settle_)(int64_t, int64_t, T*, const T*) = SEGOPS_BY_ISA(settle<T>);
};

template <class T>
void step(const Tensor& logits, int64_t k, Tensor& out, Tensor& indices, Tensor& points) {
  const int64_t height = 2 * logits.size(2), width = 2 * logits.size(3);
  segops::TorchParallel parallel;
  const auto feed = [&](segops::Smallest<T>& found, int64_t n, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = segops::Smallest<T>::kBlock;
    Rows<T> rows(logits, out);
    for (int64_t y = begin; y < end; ++y) {
      const T* margins = rows.write(n, y);
      for (int64_t x = 0; x < width; x += kBlock) found.push(margins + x, std::min(kBlock, width - x), y * width + x);
    }
  };
  const auto take = [&](int64_t n, const auto* cells, int64_t count) {
    segops::uncertain::write_cells<T>(cells, count, height, width, mutable_data<int64_t>(indices, n * k),
                                      mutable_data<T>(points, 2 * n * k));
  };
  segops::uncertain::select<T>(logits.size(0), height, width, k, parallel, feed, take);
}

std::tuple<Tensor, Tensor, Tensor> subdivide(Tensor logits, int64_t k) {
  logits = torch::stable::contiguous(logits);
  segops::require(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0 && k >= 0 &&
                      k <= 4 * logits.size(2) * logits.size(3),
                  "subdivide: expected logits (N, C, H, W) with C, H, W >= 1 and k from 0 to 4 H W");
  const int64_t n = logits.size(0), sizes[] = {n, k, 2};
  Tensor out = segops::fresh(logits, {n, logits.size(1), 2 * logits.size(2), 2 * logits.size(3)});
  Tensor indices = torch::stable::new_empty(logits, {sizes, 2}, ScalarType::Long);
  Tensor points = torch::stable::new_empty(logits, {sizes, 3});
  segops::dispatch(logits, "subdivide", [&](auto zero) { step<decltype(zero)>(logits, k, out, indices, points); });
  return {out, indices, points};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("subdivide", SEGOPS_BOX(subdivide)); }
