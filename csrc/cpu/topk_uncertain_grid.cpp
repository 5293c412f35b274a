// The most uncertain cells of a map of logits in one pass over it; see segops/reference/topk_uncertain_grid.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "segops/isa.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"
#include "segops/uncertain.h"

namespace {

#define SEGOPS_ISA_FILE "segops/top_two_isa.h"
#include "segops/foreach_isa.h"

using segops::data;
using segops::mutable_data;
using segops::ScalarType;
using segops::Tensor;

template <class T>
void select(const Tensor& logits, int64_t k, Tensor& indices, Tensor& points) {
  const int64_t channels = logits.size(1), height = logits.size(2), width = logits.size(3), plane = height * width;
  segops::TorchParallel parallel;
  const auto margins = SEGOPS_BY_ISA(margins_of_planes<T>);
  const auto feed = [&](segops::Smallest<T>& found, int64_t n, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = segops::Smallest<T>::kBlock;
    T margin[kBlock];
    for (int64_t cell = begin * width; cell < end * width; cell += kBlock) {
      const int64_t count = std::min(kBlock, end * width - cell);
      margins(data<T>(logits, n * channels * plane + cell), plane, channels, count, margin);
      found.push(margin, count, cell);
    }
  };
  const auto take = [&](int64_t n, const auto* cells, int64_t count) {
    segops::uncertain::write_cells<T>(cells, count, height, width, mutable_data<int64_t>(indices, n * k),
                                      mutable_data<T>(points, 2 * n * k));
  };
  segops::uncertain::select<T>(logits.size(0), height, width, k, parallel, feed, take);
}

std::tuple<Tensor, Tensor> topk_uncertain_grid(Tensor logits, int64_t k) {
  logits = torch::stable::contiguous(logits);
  segops::require(logits.dim() == 4 && logits.size(1) > 0 && k >= 0 && k <= logits.size(2) * logits.size(3),
                  "topk_uncertain_grid: expected logits (N, C, H, W) with C >= 1 and k from 0 to H W");
  const int64_t sizes[] = {logits.size(0), k, 2};
  Tensor indices = torch::stable::new_empty(logits, {sizes, 2}, ScalarType::Long);
  Tensor points = torch::stable::new_empty(logits, {sizes, 3});
  segops::dispatch(logits, "topk_uncertain_grid",
                   [&](auto zero) { select<decltype(zero)>(logits, k, indices, points); });
  return {indices, points};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("topk_uncertain_grid", SEGOPS_BOX(topk_uncertain_grid)); }
