// The confusion matrix of tensors; see segops/reference/confusion_matrix.py.
#include <torch/csrc/stable/library.h>

#include "segops/confusion_matrix.h"
#include "segops/torch_errors.h"
#include "segops/torch_labels.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {
namespace {

[[noreturn]] void throw_label(const Tensor& prediction, const Tensor& target, int64_t pixel, int64_t classes,
                              std::optional<int64_t> ignore_index) {
  const std::string range = ": expected labels from 0 to " + std::to_string(classes - 1);
  const int64_t label = label_at(target, pixel);
  if (label >= 0 && label < classes)
    throw std::invalid_argument("prediction" + range + ", got " + std::to_string(label_at(prediction, pixel)));
  const std::string spare = ignore_index ? " or ignore_index = " + std::to_string(*ignore_index) : "";
  throw std::invalid_argument("target" + range + spare + ", got " + std::to_string(label));
}

Tensor confusion_matrix(Tensor prediction, Tensor target, int64_t num_classes, std::optional<int64_t> ignore_index) {
  prediction = torch::stable::contiguous(prediction);
  target = torch::stable::contiguous(target);
  const bool logits = prediction.dim() == 3;
  require(target.dim() == 2 && (logits || prediction.dim() == 2) && prediction.size(0) == target.size(0) &&
              prediction.size(logits ? 2 : 1) == target.size(1) && (!logits || prediction.size(1) == num_classes) &&
              num_classes > 0 && num_classes <= 1 << 15,
          "confusion_matrix: expected prediction (N, P) or (N, C, P) and target (N, P)");
  const int64_t images = target.size(0), points = target.size(1), sizes[] = {num_classes, num_classes};
  const int32_t classes = int32_t(num_classes);
  Tensor out = torch::stable::new_empty(target, {sizes, 2}, ScalarType::Long);
  TorchParallel parallel;
  const auto labels = [&](const auto* from, std::optional<int64_t> ignored) {
    return [=](int64_t image, int64_t first, int64_t count, int32_t* to) {
      confusion::read_labels(from + image * points + first, count, classes, ignored, to);
    };
  };
  const auto count = [&](const auto& predict, const auto& goal) {
    return confusion::count(images, points, classes, parallel, predict, goal, mutable_data<int64_t>(out));
  };
  dispatch_labels(target, "confusion_matrix", [&](auto t) {
    const auto goal = labels(data<decltype(t)>(target), ignore_index);
    const auto check = [&](int64_t wrong) {
      if (wrong >= 0) throw_label(prediction, target, wrong, num_classes, ignore_index);
    };
    if (!logits)
      return dispatch_labels(prediction, "confusion_matrix",
                             [&](auto p) { check(count(labels(data<decltype(p)>(prediction), std::nullopt), goal)); });
    dispatch(prediction, "confusion_matrix", [&](auto real) {
      using Real = decltype(real);
      check(count(
          [&](int64_t image, int64_t first, int64_t n, int32_t* to) {
            const Real* from = data<Real>(prediction, image * num_classes * points + first);
            confusion::read_argmax(from, points, num_classes, n, to);
          },
          goal));
    });
  });
  return out;
}

}  // namespace
}  // namespace segops

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("confusion_matrix", SEGOPS_BOX(segops::confusion_matrix)); }
