// Sums of segmentation losses over the pixels of tensors; see segops/reference/segmentation_sums.py.
#include "segops/segmentation_sums.h"

#include <torch/csrc/stable/library.h>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::require;
using segops::ScalarType;
using segops::Tensor;
using segops::segmentation_sums::kSums;
using segops::segmentation_sums::Problem;

// Contiguous, and checked as far as memory safety asks for it.
struct Inputs {
  Tensor input, target;
  Problem problem;

  Inputs(const Tensor& input_in, const Tensor& target_in, std::optional<int64_t> ignore_index, double gamma)
      : input(torch::stable::contiguous(input_in)), target(torch::stable::contiguous(target_in)) {
    require(input.dim() == 3 && target.dim() == 2 && input.size(0) == target.size(0) &&
                input.size(2) == target.size(1) && input.size(1) > 0 && target.scalar_type() == ScalarType::Long,
            "segmentation_sums: expected input (N, C, P) and int64 target (N, P)");
    require(gamma >= 0, "segmentation_sums: expected gamma >= 0");
    problem = {input.size(0), input.size(1), input.size(2), {input.size(1), ignore_index}, gamma};
  }
};

Tensor segmentation_sums(Tensor input, Tensor target, std::optional<int64_t> ignore_index, double gamma) {
  const Inputs in(input, target, ignore_index, gamma);
  Tensor out = fresh(in.input, {in.problem.batch, kSums, in.problem.channels});
  segops::dispatch(in.input, "segmentation_sums", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::segmentation_sums::forward(in.problem, data<T>(in.input), data<int64_t>(in.target), mutable_data<T>(out),
                                       parallel);
  });
  return out;
}

Tensor segmentation_sums_backward(Tensor grad, Tensor input, Tensor target, std::optional<int64_t> ignore_index,
                                  double gamma) {
  const Inputs in(input, target, ignore_index, gamma);
  grad = torch::stable::contiguous(grad);
  require(grad.dim() == 3 && grad.size(0) == in.problem.batch && grad.size(1) == kSums &&
              grad.size(2) == in.problem.channels && grad.scalar_type() == in.input.scalar_type(),
          "segmentation_sums_backward: expected grad (N, 6, C) in the dtype of input");
  Tensor out = fresh(in.input, {in.problem.batch, in.problem.channels, in.problem.points});
  segops::dispatch(in.input, "segmentation_sums_backward", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::segmentation_sums::backward(in.problem, data<T>(grad), data<T>(in.input), data<int64_t>(in.target),
                                        mutable_data<T>(out), parallel);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("segmentation_sums", SEGOPS_BOX(segmentation_sums));
  m.impl("segmentation_sums_backward", SEGOPS_BOX(segmentation_sums_backward));
}
