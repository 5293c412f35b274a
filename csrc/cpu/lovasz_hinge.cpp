// The Lovasz hinge loss of tensors; see segops/reference/lovasz_hinge.py.
#include <torch/csrc/stable/library.h>

#include "segops/lovasz.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {
namespace {

// One class, whose errors come of another function.
template <class T>
lovasz::Problem<T> problem_of(Tensor& logits, Tensor& target, bool per_image, std::optional<int64_t> ignore_index) {
  logits = torch::stable::contiguous(logits);
  target = torch::stable::contiguous(target);
  require(logits.dim() == 2 && target.dim() == 2 && logits.sizes().equals(target.sizes()) &&
              target.scalar_type() == ScalarType::Long,
          "lovasz_hinge: expected logits (N, P) and int64 target (N, P)");
  return {.input = data<T>(logits),
          .target = data<int64_t>(target),
          .batch = logits.size(0),
          .channels = 1,
          .points = logits.size(1),
          .link = lovasz::Link::kHinge,
          .classes = {0},
          .present = false,
          .per_image = per_image,
          .ignore_index = ignore_index};
}

Tensor lovasz_hinge(Tensor logits, Tensor target, bool per_image, std::optional<int64_t> ignore_index) {
  return dispatch(logits, "lovasz_hinge", [&](auto real) {
    using T = decltype(real);
    const lovasz::Problem<T> problem = problem_of<T>(logits, target, per_image, ignore_index);
    Tensor out = fresh(logits, {problem.sets()});
    TorchParallel parallel;
    lovasz::Loss<T>(problem, parallel).forward(mutable_data<T>(out));
    return out;
  });
}

Tensor lovasz_hinge_backward(Tensor grad, Tensor logits, Tensor target, bool per_image,
                             std::optional<int64_t> ignore_index) {
  grad = torch::stable::contiguous(grad);
  return dispatch(logits, "lovasz_hinge_backward", [&](auto real) {
    using T = decltype(real);
    const lovasz::Problem<T> problem = problem_of<T>(logits, target, per_image, ignore_index);
    require(grad.dim() == 1 && grad.size(0) == problem.sets() && grad.scalar_type() == logits.scalar_type(),
            "lovasz_hinge_backward: expected grad (S,), one for each set");
    Tensor out = fresh(logits, {problem.batch, problem.points});
    TorchParallel parallel;
    lovasz::Loss<T>(problem, parallel).backward(data<T>(grad), mutable_data<T>(out));
    return out;
  });
}

}  // namespace
}  // namespace segops

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("lovasz_hinge", SEGOPS_BOX(segops::lovasz_hinge));
  m.impl("lovasz_hinge_backward", SEGOPS_BOX(segops::lovasz_hinge_backward));
}
