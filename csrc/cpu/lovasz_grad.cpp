// The steps of the Jaccard loss along rows of sorted elements; see segops/reference/lovasz_grad.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "segops/lovasz.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {
namespace {

// Returns whether the row holds zeros and ones.
template <class T>
bool steps_of_row(const T* in, int64_t points, T* out) {
  using lovasz::kTile;
  const int64_t all = std::count(in, in + points, T(1));
  if (std::count(in, in + points, T(0)) != points - all) return false;
  double steps[kTile];
  int64_t before = 0;  // foreground
  for (int64_t i = 0; i < points; i += kTile) {
    const int64_t count = std::min(kTile, points - i);
    before = lovasz::steps_of(in + i, count, all, before, i - before, steps);
    std::copy_n(steps, count, out + i);
  }
  return true;
}

Tensor lovasz_grad(Tensor sorted_foreground) {
  sorted_foreground = torch::stable::contiguous(sorted_foreground);
  require(sorted_foreground.dim() == 2, "lovasz_grad: expected sorted_foreground (R, P)");
  const int64_t rows = sorted_foreground.size(0), points = sorted_foreground.size(1);
  Tensor out = fresh(sorted_foreground, {rows, points});
  std::atomic<bool> binary = true;
  dispatch(sorted_foreground, "lovasz_grad", [&](auto real) {
    using T = decltype(real);
    const T* in = data<T>(sorted_foreground);
    T* to = mutable_data<T>(out);
    TorchParallel().range(rows, 1 + 16384 / std::max<int64_t>(1, points), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        if (!steps_of_row(in + r * points, points, to + r * points)) binary = false;
    });
  });
  require(binary, "sorted_foreground: expected zeros and ones, got other values");
  return out;
}

}  // namespace
}  // namespace segops

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("lovasz_grad", SEGOPS_BOX(segops::lovasz_grad)); }
