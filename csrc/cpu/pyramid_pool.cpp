// Pyramid pooling of tensors; see segops/reference/pyramid_pool.py.
#include "segops/pyramid_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::require;
using segops::Tensor;
using segops::pyramid::Pyramid;

Pyramid pyramid(int64_t height, int64_t width, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) {
  require(height > 0 && width > 0, "pyramid_pool: expected at least one row and column");
  require(!rows.empty() && rows.size() == columns.size(), "pyramid_pool: expected rows and columns of each level");
  const auto positive = [](int64_t n) { return n > 0; };
  require(std::all_of(rows.begin(), rows.end(), positive) && std::all_of(columns.begin(), columns.end(), positive),
          "pyramid_pool: expected at least one bin");
  return {{height, rows}, {width, columns}};
}

Tensor pyramid_pool(Tensor x, std::vector<int64_t> rows, std::vector<int64_t> columns) {
  require(x.dim() == 4, "pyramid_pool: expected x (N, C, H, W)");
  x = torch::stable::contiguous(x);
  const Pyramid p = pyramid(x.size(2), x.size(3), rows, columns);
  Tensor out = fresh(x, {x.size(0), x.size(1), p.bins()});
  segops::dispatch(x, "pyramid_pool", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::pyramid::forward(p, data<T>(x), x.size(0) * x.size(1), mutable_data<T>(out), parallel);
  });
  return out;
}

Tensor pyramid_pool_backward(Tensor grad, int64_t height, int64_t width, std::vector<int64_t> rows,
                             std::vector<int64_t> columns) {
  const Pyramid p = pyramid(height, width, rows, columns);
  require(grad.dim() == 3 && grad.size(2) == p.bins(), "pyramid_pool_backward: expected grad (N, C, S)");
  grad = torch::stable::contiguous(grad);
  Tensor grad_x = fresh(grad, {grad.size(0), grad.size(1), height, width});
  segops::dispatch(grad, "pyramid_pool_backward", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::pyramid::backward(p, data<T>(grad), grad.size(0) * grad.size(1), mutable_data<T>(grad_x), parallel);
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("pyramid_pool", SEGOPS_BOX(pyramid_pool));
  m.impl("pyramid_pool_backward", SEGOPS_BOX(pyramid_pool_backward));
}
