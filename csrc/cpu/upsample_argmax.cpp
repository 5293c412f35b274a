// The largest class of up-sampled logits, of tensors; see segops/reference/upsample_argmax.py.
#include "segops/upsample_argmax.h"

#include <torch/csrc/stable/library.h>

#include <type_traits>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::mutable_data;
using segops::require;
using segops::ScalarType;
using segops::Tensor;
using segops::upsample_argmax::Problem;

Tensor upsample_argmax(Tensor input, int64_t height, int64_t width, bool align_corners, bool narrow) {
  input = torch::stable::contiguous(input);
  require(input.dim() == 4 && input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0 && height >= 0 && width >= 0,
          "upsample_argmax: expected input (N, C, h, w), empty in N alone, and a size of at least 0");
  require(!narrow || input.size(1) <= 256, "upsample_argmax: expected at most 256 classes for uint8");
  const int64_t sizes[] = {input.size(0), height, width};
  Tensor out = torch::stable::new_empty(input, {sizes, 3}, narrow ? ScalarType::Byte : ScalarType::Long);
  segops::dispatch(input, "upsample_argmax", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    const auto label = [&](auto* labels) {
      using Label = std::remove_pointer_t<decltype(labels)>;
      segops::upsample_argmax::run(Problem<T, Label>{.batch = input.size(0),
                                                     .channels = input.size(1),
                                                     .rows = {input.size(2), height, align_corners},
                                                     .columns = {input.size(3), width, align_corners},
                                                     .input = data<T>(input),
                                                     .out = labels},
                                   parallel);
    };
    narrow ? label(mutable_data<uint8_t>(out)) : label(mutable_data<int64_t>(out));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("upsample_argmax", SEGOPS_BOX(upsample_argmax)); }
