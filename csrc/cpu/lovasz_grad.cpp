// The steps of the Jaccard loss along rows of sorted elements; see segops/reference/lovasz_grad.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "segops/jaccard_step.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {
namespace {

template <class T>
void steps_of_row(const T* in, int64_t points, T* out) {
  const int64_t total = std::count(in, in + points, T(1));
  int64_t foreground = 0;
  for (int64_t i = 0; i < points; ++i) {
    out[i] = T(jaccard_step<double>(in[i] != 0, total, foreground, i - foreground));
    foreground += in[i] != 0;
  }
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
      for (const T* x = in + begin * points; x != in + end * points; ++x)
        if (*x != 0 && *x != 1) binary = false;
      for (int64_t r = begin; r < end; ++r) steps_of_row(in + r * points, points, to + r * points);
    });
  });
  require(binary, "sorted_foreground: expected zeros and ones, got other values");
  return out;
}

}  // namespace
}  // namespace segops

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("lovasz_grad", SEGOPS_BOX(segops::lovasz_grad)); }
