// The Lovasz hinge loss on a GPU, float32; see segops/reference/lovasz_hinge.py, and lovasz.cu for all but the errors.
#include <torch/csrc/stable/library.h>

#include "segops/lovasz.cuh"
#include "segops/torch_errors.h"

namespace segops::gpu {
namespace {

// `order`, if wanted, is an element's position in its set, which is the batch if `whole`.
__global__ void __launch_bounds__(kThreads)
    hinge_keys(const float* __restrict__ logits, const int64_t* __restrict__ target, Labels labels, int images,
               int points, bool whole, uint32_t* __restrict__ keys, uint32_t* __restrict__ order) {
  const int point = row();
  if (point >= points) return;
  for (int image = blockIdx.y; image < images; image += gridDim.y) {
    const int64_t at = int64_t(image) * points + point, label = target[at];
    const bool valid = labels.valid(label), foreground = label == 1;
    keys[at] = encode(1 - (foreground ? logits[at] : -logits[at]), foreground, valid);
    if (order) order[at] = uint32_t(whole ? at : point);
  }
}

ErrorRows sorted_errors(const Place& place, const Tensor& logits, const Tensor& target, bool per_image,
                        std::optional<int64_t> ignore_index, bool with_order) {
  require(logits.dim() == 2 && logits.scalar_type() == ScalarType::Float, "logits: expected (N, P), float32");
  require(target.dim() == 2 && target.scalar_type() == ScalarType::Long && target.device() == logits.device() &&
              target.size(0) == logits.size(0) && target.size(1) == logits.size(1),
          "target: expected (N, P), int64, like logits");
  const int64_t images = logits.size(0), points = logits.size(1), sets = per_image ? images : 1;
  require(points <= kMaxRows, "logits: expected at most 2^30 pixels");
  const Tensor scores = torch::stable::contiguous(logits), classes = torch::stable::contiguous(target);
  ErrorRows rows(place, sets, 1, images * points / sets, with_order);
  launch(hinge_keys, shape_of(points, 1, images), place, scores.const_data_ptr<float>(),
         classes.const_data_ptr<int64_t>(), Labels(2, ignore_index), int(images), int(points), !per_image,
         rows.keys.data(), rows.order.data());
  sort(place, rows);
  return rows;
}

Tensor lovasz_hinge(Tensor logits, Tensor target, bool per_image, std::optional<int64_t> ignore_index) {
  const Place place(logits);
  const Tensor losses = place.floats({per_image ? logits.size(0) : 1});
  if (logits.numel() == 0) return torch::stable::fill_(losses, 0.0);
  const ErrorRows rows = sorted_errors(place, logits, target, per_image, ignore_index, false);
  write_losses(place, rows, {}, losses.mutable_data_ptr<float>());
  return losses;
}

Tensor lovasz_hinge_backward(Tensor grad, Tensor logits, Tensor target, bool per_image,
                             std::optional<int64_t> ignore_index) {
  const Place place(logits);
  const Tensor out = place.floats(logits.sizes());
  if (logits.numel() == 0) return out;
  require(grad.dim() == 1 && grad.size(0) == (per_image ? logits.size(0) : 1) && grad.device() == logits.device() &&
              grad.scalar_type() == ScalarType::Float,
          "grad: expected (S,), one for each set, float32");
  const ErrorRows rows = sorted_errors(place, logits, target, per_image, ignore_index, true);
  const Tensor above = torch::stable::contiguous(grad);
  write_slopes(place, rows, {}, above.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace
}  // namespace segops::gpu

STABLE_TORCH_LIBRARY_IMPL(segops_cuda, CUDA, m) {
  m.impl("lovasz_hinge", SEGOPS_BOX(segops::gpu::lovasz_hinge));
  m.impl("lovasz_hinge_backward", SEGOPS_BOX(segops::gpu::lovasz_hinge_backward));
}
