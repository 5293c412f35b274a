// The Lovasz-softmax loss of tensors; see segops/reference/lovasz_softmax.py.
#include <torch/csrc/stable/library.h>

#include "segops/lovasz.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {
namespace {

using lovasz::Link;

struct Arguments {
  Tensor input, target;
  std::optional<Tensor> class_weight;
  std::vector<int64_t> classes;
  bool present, per_image;
  std::optional<int64_t> ignore_index;
  bool from_logits;

  template <class T>
  lovasz::Problem<T> problem() {
    input = torch::stable::contiguous(input);
    target = torch::stable::contiguous(target);
    require(input.dim() == 3 && target.dim() == 2 && input.size(0) == target.size(0) &&
                input.size(2) == target.size(1) && input.size(1) > 0 && target.scalar_type() == ScalarType::Long,
            "lovasz_softmax: expected input (N, C, P) and int64 target (N, P)");
    for (const int64_t c : classes) require(c >= 0 && c < input.size(1), "lovasz_softmax: expected classes below C");
    if (class_weight) {
      class_weight = torch::stable::contiguous(*class_weight);
      require(class_weight->dim() == 1 && class_weight->size(0) == input.size(1) &&
                  class_weight->scalar_type() == input.scalar_type(),
              "lovasz_softmax: expected class_weight (C,) in the dtype of input");
    }
    return {.input = data<T>(input),
            .target = data<int64_t>(target),
            .batch = input.size(0),
            .channels = input.size(1),
            .points = input.size(2),
            .link = !from_logits         ? Link::kNone
                    : input.size(1) == 1 ? Link::kSigmoid
                                         : Link::kSoftmax,
            .classes = classes,
            .present = present,
            .per_image = per_image,
            .ignore_index = ignore_index,
            .class_weight = class_weight ? data<T>(*class_weight) : nullptr};
  }
};

Tensor lovasz_softmax(Tensor input, Tensor target, std::optional<Tensor> class_weight, std::vector<int64_t> classes,
                      bool present, bool per_image, std::optional<int64_t> ignore_index, bool from_logits) {
  Arguments a{input, target, class_weight, classes, present, per_image, ignore_index, from_logits};
  return dispatch(input, "lovasz_softmax", [&](auto real) {
    using T = decltype(real);
    const lovasz::Problem<T> problem = a.problem<T>();
    Tensor out = fresh(a.input, {problem.sets()});
    TorchParallel parallel;
    lovasz::Loss<T>(problem, parallel).forward(mutable_data<T>(out));
    return out;
  });
}

Tensor lovasz_softmax_backward(Tensor grad, Tensor input, Tensor target, std::optional<Tensor> class_weight,
                               std::vector<int64_t> classes, bool present, bool per_image,
                               std::optional<int64_t> ignore_index, bool from_logits) {
  Arguments a{input, target, class_weight, classes, present, per_image, ignore_index, from_logits};
  grad = torch::stable::contiguous(grad);
  return dispatch(input, "lovasz_softmax_backward", [&](auto real) {
    using T = decltype(real);
    const lovasz::Problem<T> problem = a.problem<T>();
    require(grad.dim() == 1 && grad.size(0) == problem.sets() && grad.scalar_type() == a.input.scalar_type(),
            "lovasz_softmax_backward: expected grad (S,), one for each set");
    Tensor out = fresh(a.input, {problem.batch, problem.channels, problem.points});
    TorchParallel parallel;
    lovasz::Loss<T>(problem, parallel).backward(data<T>(grad), mutable_data<T>(out));
    return out;
  });
}

}  // namespace
}  // namespace segops

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("lovasz_softmax", SEGOPS_BOX(segops::lovasz_softmax));
  m.impl("lovasz_softmax_backward", SEGOPS_BOX(segops::lovasz_softmax_backward));
}
