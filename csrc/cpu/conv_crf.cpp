// A convolutional CRF, of tensors: its messages and what is between them; see segops/reference/conv_crf.py.
#include "segops/conv_crf.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "segops/conv_crf_update.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::require;
using segops::Tensor;
using segops::conv_crf::Shape;

Shape shape_of(const Tensor& values, const Tensor& colors, const Tensor& table) {
  require(values.dim() == 4 && values.size(1) > 0 && values.size(2) > 0 && values.size(3) > 0,
          "values: expected (N, C, H, W), none empty but for N");
  require(colors.dim() == 4 && colors.size(0) == values.size(0) && colors.size(2) == values.size(2) &&
              colors.size(3) == values.size(3) && colors.scalar_type() == values.scalar_type(),
          "colors: expected (N, D, H, W) to go with values, in their dtype");
  require(table.dim() == 2 && table.size(0) % 2 == 1 && table.size(1) % 2 == 1 &&
              table.scalar_type() == values.scalar_type(),
          "weights of the window: expected odd sizes, in the dtype of values");
  return {values.size(0), values.size(1), colors.size(1), values.size(2), values.size(3), table.size(0), table.size(1)};
}

Tensor conv_crf_message(Tensor values, Tensor colors, Tensor spatial, Tensor bilateral) {
  const Shape shape = shape_of(values, colors, spatial);
  require(bilateral.dim() == 2 && bilateral.size(0) == shape.window_height && bilateral.size(1) == shape.window_width &&
              bilateral.scalar_type() == values.scalar_type(),
          "bilateral: expected the shape and dtype of spatial");
  values = torch::stable::contiguous(values);
  colors = torch::stable::contiguous(colors);
  spatial = torch::stable::contiguous(spatial);
  bilateral = torch::stable::contiguous(bilateral);
  Tensor out = fresh(values, {shape.batch, shape.channels, shape.height, shape.width});
  segops::dispatch(values, "conv_crf_message", [&]<class T>(T) {
    segops::TorchParallel parallel;
    segops::conv_crf::message<T>(shape, data<T>(values), data<T>(colors), {data<T>(spatial), data<T>(bilateral)},
                                 mutable_data<T>(out), parallel);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> conv_crf_message_backward(Tensor grad, Tensor values, Tensor colors,
                                                             Tensor bilateral) {
  const Shape shape = shape_of(values, colors, bilateral);
  require(grad.dim() == 4 && grad.size(0) == shape.batch && grad.size(1) == shape.channels &&
              grad.size(2) == shape.height && grad.size(3) == shape.width && grad.scalar_type() == values.scalar_type(),
          "grad: expected the shape and dtype of values");
  grad = torch::stable::contiguous(grad);
  values = torch::stable::contiguous(values);
  colors = torch::stable::contiguous(colors);
  bilateral = torch::stable::contiguous(bilateral);
  Tensor grad_colors = fresh(colors, {shape.batch, shape.depth, shape.height, shape.width});
  Tensor grad_spatial = fresh(bilateral, {shape.window_height, shape.window_width});
  Tensor grad_bilateral = fresh(bilateral, {shape.window_height, shape.window_width});
  segops::dispatch(values, "conv_crf_message_backward", [&]<class T>(T) {
    segops::TorchParallel parallel;
    segops::conv_crf::message_backward<T>(shape, data<T>(grad), data<T>(values), data<T>(colors), data<T>(bilateral),
                                          mutable_data<T>(grad_colors), mutable_data<T>(grad_spatial),
                                          mutable_data<T>(grad_bilateral), parallel);
  });
  return {grad_colors, grad_spatial, grad_bilateral};
}

void check_update(const Tensor& logits, const Tensor& message, const Tensor& weight, int64_t blur) {
  require(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
          "logits: expected (N, L, H, W), none empty but for N");
  require(blur >= 1 && blur <= int64_t(1) << 31, "blur: expected 1 to 2^31");
  require(message.dim() == 4 && message.size(0) == logits.size(0) && message.size(1) == logits.size(1) &&
              message.size(2) == (logits.size(2) + blur - 1) / blur &&
              message.size(3) == (logits.size(3) + blur - 1) / blur && message.scalar_type() == logits.scalar_type(),
          "message: expected (N, L, H / blur, W / blur), rounded up, in the dtype of logits");
  require(weight.dim() == 1 && (weight.size(0) == 1 || weight.size(0) == logits.size(1)) &&
              weight.scalar_type() == logits.scalar_type(),
          "weight: expected one or one for each label, in the dtype of logits");
}

template <class T>
segops::conv_crf_update::Update<T> update_of(const Tensor& logits, const Tensor& weight, int64_t blur, bool softmax,
                                             bool means) {
  return {logits.size(0), logits.size(1), logits.size(2),  logits.size(3),     blur,
          softmax,        means,          data<T>(weight), weight.size(0) == 1};
}

Tensor conv_crf_update(Tensor logits, Tensor message, Tensor weight, int64_t blur, bool softmax, bool means) {
  check_update(logits, message, weight, blur);
  logits = torch::stable::contiguous(logits);
  message = torch::stable::contiguous(message);
  weight = torch::stable::contiguous(weight);
  const Tensor& like = means ? message : logits;
  Tensor out = fresh(like, {like.size(0), like.size(1), like.size(2), like.size(3)});
  segops::dispatch(logits, "conv_crf_update", [&]<class T>(T) {
    segops::TorchParallel parallel;
    segops::conv_crf_update::update(update_of<T>(logits, weight, blur, softmax, means), data<T>(logits),
                                    data<T>(message), mutable_data<T>(out), parallel);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> conv_crf_update_backward(Tensor grad, Tensor logits, Tensor message, Tensor weight,
                                                            int64_t blur, bool softmax, bool means) {
  check_update(logits, message, weight, blur);
  const Tensor& like = means ? message : logits;
  require(grad.dim() == 4 && grad.size(0) == like.size(0) && grad.size(1) == like.size(1) &&
              grad.size(2) == like.size(2) && grad.size(3) == like.size(3) &&
              grad.scalar_type() == logits.scalar_type(),
          "grad: expected the shape and dtype of the result");
  grad = torch::stable::contiguous(grad);
  logits = torch::stable::contiguous(logits);
  message = torch::stable::contiguous(message);
  weight = torch::stable::contiguous(weight);
  Tensor grad_logits = fresh(logits, {logits.size(0), logits.size(1), logits.size(2), logits.size(3)});
  Tensor grad_message = fresh(message, {message.size(0), message.size(1), message.size(2), message.size(3)});
  Tensor grad_weight = fresh(weight, {weight.size(0)});
  segops::dispatch(logits, "conv_crf_update_backward", [&]<class T>(T) {
    segops::TorchParallel parallel;
    segops::Buffer<double> sums(logits.size(1));
    segops::conv_crf_update::update_backward(update_of<T>(logits, weight, blur, softmax, means), data<T>(grad),
                                             data<T>(logits), data<T>(message), mutable_data<T>(grad_logits),
                                             mutable_data<T>(grad_message), sums.data(), parallel);
    T* to = mutable_data<T>(grad_weight);
    if (weight.size(0) == 1)
      to[0] = T(std::accumulate(sums.data(), sums.data() + sums.size(), 0.0));
    else
      std::copy_n(sums.data(), sums.size(), to);
  });
  return {grad_logits, grad_message, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("conv_crf_message", SEGOPS_BOX(conv_crf_message));
  m.impl("conv_crf_message_backward", SEGOPS_BOX(conv_crf_message_backward));
  m.impl("conv_crf_update", SEGOPS_BOX(conv_crf_update));
  m.impl("conv_crf_update_backward", SEGOPS_BOX(conv_crf_update_backward));
}
