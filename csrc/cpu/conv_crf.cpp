// Messages of a convolutional CRF, of tensors; see segops/reference/conv_crf.py.
#include "segops/conv_crf.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("conv_crf_message", SEGOPS_BOX(conv_crf_message));
  m.impl("conv_crf_message_backward", SEGOPS_BOX(conv_crf_message_backward));
}
