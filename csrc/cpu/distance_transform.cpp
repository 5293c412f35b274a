// The exact Euclidean distance transform of tensors; see segops/reference/distance_transform.py.
#include <torch/csrc/stable/library.h>

#include "segops/distance_transform.h"
#include "segops/torch_errors.h"
#include "segops/torch_labels.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {
namespace {

Tensor distance_transform(Tensor labels) {
  labels = torch::stable::contiguous(labels);
  require(labels.dim() == 3 && labels.size(1) <= 1 << 24 && labels.size(2) <= 1 << 24,
          "distance_transform: expected labels (N, H, W) with sides of at most 2^24");
  const int64_t sizes[] = {labels.size(0), labels.size(1), labels.size(2)};
  Tensor out = torch::stable::new_empty(labels, {sizes, 3}, ScalarType::Float);
  advise_large_pages(out.mutable_data_ptr(), size_t(out.numel()) * sizeof(float));
  TorchParallel parallel;
  dispatch_labels(labels, "distance_transform", [&](auto zero) {
    distance::transform(data<decltype(zero)>(labels), sizes[0], sizes[1], sizes[2], parallel, mutable_data<float>(out));
  });
  return out;
}

}  // namespace
}  // namespace segops

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("distance_transform", SEGOPS_BOX(segops::distance_transform)); }
