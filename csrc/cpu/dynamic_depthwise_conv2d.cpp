// Depthwise atrous convolution of tensors; see segops/reference/dynamic_depthwise_conv2d.py.
#include "segops/dynamic_depthwise_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::mutable_data;
using segops::require;
using segops::Tensor;
using segops::depthwise::Axis;
using segops::depthwise::Maps;
using segops::depthwise::Shape;

Shape shape_of(const Tensor& input, int64_t height, int64_t width, int64_t dilation_y, int64_t dilation_x) {
  require(input.dim() == 4 && input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0,
          "input: expected (N, C, H, W), none empty but for N");
  require(height % 2 == 1 && width % 2 == 1 && dilation_y > 0 && dilation_x > 0,
          "kernels: expected odd sizes and dilations of at least 1");
  return {Axis(input.size(2), height, dilation_y), Axis(input.size(3), width, dilation_x), input.size(1)};
}

Tensor dense(const Tensor& map, bool cells) { return cells ? map : torch::stable::contiguous(map); }

Tensor dynamic_depthwise_conv2d(Tensor input, Tensor kernels, int64_t dilation_y, int64_t dilation_x) {
  require(kernels.dim() == 4 && kernels.scalar_type() == input.scalar_type(),
          "kernels: expected (N or 1, C, kh, kw) in the dtype of input");
  const Shape shape = shape_of(input, kernels.size(2), kernels.size(3), dilation_y, dilation_x);
  const int64_t batch = input.size(0);
  require((kernels.size(0) == 1 || kernels.size(0) == batch) && kernels.size(1) == shape.channels,
          "kernels: expected (N or 1, C, kh, kw) to go with input");
  const bool cells = segops::is_channels_last(input);
  input = dense(input, cells);
  kernels = torch::stable::contiguous(kernels);
  Tensor out = segops::fresh_map(input, batch, shape.channels, shape.y.size, shape.x.size, cells);
  segops::dispatch(input, "dynamic_depthwise_conv2d", [&]<class T>(T) {
    segops::TorchParallel parallel;
    const Maps maps{batch, kernels.size(0), cells};
    segops::depthwise::convolve(shape, maps, data<T>(input), data<T>(kernels), mutable_data<T>(out), parallel);
  });
  return out;
}

Tensor dynamic_depthwise_conv2d_backward(Tensor grad, Tensor input, int64_t kernel_batch, int64_t height, int64_t width,
                                         int64_t dilation_y, int64_t dilation_x) {
  const Shape shape = shape_of(input, height, width, dilation_y, dilation_x);
  const int64_t batch = input.size(0);
  require(grad.dim() == 4 && grad.scalar_type() == input.scalar_type() && grad.size(0) == batch &&
              grad.size(1) == shape.channels && grad.size(2) == shape.y.size && grad.size(3) == shape.x.size,
          "grad: expected the shape and dtype of input");
  require(kernel_batch == 1 || kernel_batch == batch, "kernels: expected N or 1 of them");
  const bool cells = segops::is_channels_last(input) && segops::is_channels_last(grad);
  input = dense(input, cells);
  grad = dense(grad, cells);
  Tensor out = segops::fresh(input, {kernel_batch, shape.channels, height, width});
  segops::dispatch(input, "dynamic_depthwise_conv2d_backward", [&]<class T>(T) {
    segops::TorchParallel parallel;
    const Maps maps{batch, kernel_batch, cells};
    segops::depthwise::differentiate(shape, maps, data<T>(grad), data<T>(input), mutable_data<T>(out), parallel);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("dynamic_depthwise_conv2d", SEGOPS_BOX(dynamic_depthwise_conv2d));
  m.impl("dynamic_depthwise_conv2d_backward", SEGOPS_BOX(dynamic_depthwise_conv2d_backward));
}
