// Cross entropy of up-sampled logits, of tensors; see segops/reference/upsample_cross_entropy.py.
#include "segops/upsample_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <numeric>
#include <tuple>

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
using segops::upsample::Problem;

// Contiguous, and checked as far as memory safety asks for it.
struct Inputs {
  Tensor input, target;
  std::optional<Tensor> class_weight;
  bool align_corners;
  std::optional<int64_t> ignore_index;
  double smoothing;

  Inputs(const Tensor& input_in, const Tensor& target_in, const std::optional<Tensor>& weight, bool align_corners_,
         std::optional<int64_t> ignore_index_, double smoothing_)
      : input(torch::stable::contiguous(input_in)),
        target(torch::stable::contiguous(target_in)),
        align_corners(align_corners_),
        ignore_index(ignore_index_),
        smoothing(smoothing_) {
    require(input.dim() == 4 && target.dim() == 3 && input.size(0) == target.size(0) && input.size(1) > 0 &&
                input.size(2) > 0 && input.size(3) > 0 && target.scalar_type() == ScalarType::Long,
            "upsample_cross_entropy: expected input (N, C, h, w) and int64 target (N, H, W)");
    if (!weight) return;
    class_weight = torch::stable::contiguous(*weight);
    require(class_weight->dim() == 1 && class_weight->size(0) == input.size(1) &&
                class_weight->scalar_type() == input.scalar_type(),
            "upsample_cross_entropy: expected class_weight (C,) in the dtype of input");
  }

  template <class T>
  Problem<T> problem() const {
    Problem<T> p{.batch = input.size(0),
                 .channels = input.size(1),
                 .rows = {input.size(2), target.size(1), align_corners},
                 .columns = {input.size(3), target.size(2), align_corners},
                 .labels = {input.size(1), ignore_index},
                 .input = data<T>(input),
                 .target = data<int64_t>(target),
                 .weight = {},
                 .behind = {},
                 .smoothing = T(smoothing),
                 .total_weight = 0};
    p.weight.resize(p.pitch());
    p.behind.resize(p.pitch());
    std::fill(p.behind.begin() + p.channels, p.behind.end(), -std::numeric_limits<T>::infinity());
    if (class_weight) {
      std::copy_n(data<T>(*class_weight), p.channels, p.weight.data());
    } else {
      std::fill_n(p.weight.data(), p.channels, T(1));
    }
    p.total_weight = std::accumulate(p.weight.begin(), p.weight.end(), T(0));
    return p;
  }
};

std::tuple<Tensor, Tensor> upsample_cross_entropy(Tensor input, Tensor target, std::optional<Tensor> class_weight,
                                                  bool align_corners, std::optional<int64_t> ignore_index,
                                                  double smoothing) {
  const Inputs in(input, target, class_weight, align_corners, ignore_index, smoothing);
  Tensor loss = fresh(in.input, {target.size(0), target.size(1), target.size(2)});
  Tensor lse = fresh(in.input, {target.size(0), target.size(1), target.size(2)});
  segops::dispatch(in.input, "upsample_cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::upsample::forward(in.problem<T>(), mutable_data<T>(loss), mutable_data<T>(lse), parallel);
  });
  return {loss, lse};
}

Tensor upsample_cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor lse,
                                       std::optional<Tensor> class_weight, bool align_corners,
                                       std::optional<int64_t> ignore_index, double smoothing) {
  const Inputs in(input, target, class_weight, align_corners, ignore_index, smoothing);
  grad = torch::stable::contiguous(grad);
  lse = torch::stable::contiguous(lse);
  require(grad.sizes().equals(target.sizes()) && lse.sizes().equals(target.sizes()) &&
              grad.scalar_type() == input.scalar_type() && lse.scalar_type() == input.scalar_type(),
          "upsample_cross_entropy_backward: expected grad and lse (N, H, W) in the dtype of input");
  Tensor out = fresh(in.input, {input.size(0), input.size(1), input.size(2), input.size(3)});
  segops::dispatch(in.input, "upsample_cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::upsample::backward(in.problem<T>(), data<T>(grad), data<T>(lse), mutable_data<T>(out), parallel);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("upsample_cross_entropy", SEGOPS_BOX(upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", SEGOPS_BOX(upsample_cross_entropy_backward));
}
