// Convolutions with holes of tensors; see segops/reference/atrous_conv2d.py.
#include "segops/atrous_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "segops/torch_convolution.h"
#include "segops/torch_errors.h"
#include "segops/torch_map.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::Convolution;
using segops::data;
using segops::in_layout;
using segops::map_of;
using segops::mutable_data;
using segops::mutable_map_of;
using segops::require;
using segops::Tensor;
using segops::atrous::Map;
using segops::atrous::Taps;
using segops::atrous::Target;
using segops::atrous::Term;
using segops::atrous::WeightGradient;

bool is_single(const Tensor& t) { return t.scalar_type() == segops::ScalarType::Float; }

Taps taps_of(const Convolution& c) {
  return {c.kernel[0], c.kernel[1], -c.padding[0], -c.padding[1], c.dilation[0], c.dilation[1]};
}

Tensor atrous_conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, std::vector<int64_t> stride,
                     std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, std::string method) {
  const Convolution c(x, weight.sizes(), stride, padding, dilation, groups);
  require(weight.scalar_type() == x.scalar_type() &&
              (!bias || (bias->scalar_type() == x.scalar_type() && bias->numel() == c.results())),
          "atrous_conv2d: expected tensors of one dtype, and a bias for each result");
  const bool last = segops::is_channels_last(x);
  if (c.is_dense(method, Convolution::kForward, x)) {
    const bool inside = last || (is_single(x) && c.prefers_channels_last());
    return in_layout(c.forward(in_layout(x, inside), inside ? in_layout(weight, true) : weight, bias), last);
  }
  Tensor out = segops::fresh_map(x, c.batch, c.results(), c.out_height(), c.out_width(), last);
  if (out.numel() == 0) return out;
  x = segops::readable(x);
  weight = torch::stable::contiguous(weight);
  if (bias) bias = torch::stable::contiguous(*bias);
  segops::dispatch(x, "atrous_conv2d", [&]<class T>(T) {
    const int64_t depth = c.channels / groups, count = c.results() / groups, step = depth * c.taps();
    std::vector<Target<T>> targets;
    for (int64_t g = 0; g < groups; ++g)
      targets.push_back(
          {g * count, count, {{taps_of(c), data<T>(weight, g * count * step), step, c.taps(), g * depth, depth}}});
    segops::TorchParallel parallel;
    segops::atrous::convolve<T>(map_of<T>(x), targets, bias ? data<T>(*bias) : nullptr, mutable_map_of<T>(out, last),
                                parallel);
  });
  return out;
}

Tensor atrous_conv2d_backward_input(Tensor grad, Tensor weight, int64_t height, int64_t width,
                                    std::vector<int64_t> stride, std::vector<int64_t> padding,
                                    std::vector<int64_t> dilation, int64_t groups, bool channels_last,
                                    std::string method) {
  require(grad.dim() == 4 && weight.dim() == 4 && groups > 0 && weight.scalar_type() == grad.scalar_type(),
          "atrous_conv2d_backward_input: expected grad and weight with 4 dimensions, of one dtype");
  const Convolution c(grad.size(0), weight.size(1) * groups, height, width, weight.sizes(), stride, padding, dilation,
                      groups);
  require(c.is_output(grad), "atrous_conv2d_backward_input: expected grad like the result");
  if (c.is_dense(method, Convolution::kBackwardInput, grad)) {
    const bool inside = channels_last || (is_single(grad) && c.prefers_channels_last());
    return in_layout(c.backward_input(in_layout(grad, inside), weight, inside), channels_last);
  }
  Tensor out = segops::fresh_map(grad, c.batch, c.channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  if (grad.numel() == 0) return torch::stable::zero_(out);
  grad = segops::readable(grad);
  weight = torch::stable::contiguous(weight);
  segops::dispatch(grad, "atrous_conv2d_backward_input", [&]<class T>(T) {
    const int64_t count = c.channels / groups, depth = c.results() / groups, step = count * c.taps();
    std::vector<Target<T>> targets;
    for (int64_t g = 0; g < groups; ++g)
      targets.push_back({g * count,
                         count,
                         {{taps_of(c).turned(), data<T>(weight, g * depth * step), c.taps(), step, g * depth, depth}}});
    segops::TorchParallel parallel;
    segops::atrous::convolve<T>(map_of<T>(grad), targets, nullptr, mutable_map_of<T>(out, channels_last), parallel);
  });
  return out;
}

Tensor atrous_conv2d_backward_weight(Tensor grad, Tensor x, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                                     std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                                     std::string method) {
  require(grad.dim() == 4 && x.dim() == 4 && kernel.size() == 2 && groups > 0 && grad.scalar_type() == x.scalar_type(),
          "atrous_conv2d_backward_weight: expected grad and x with 4 dimensions, of one dtype");
  const std::vector<int64_t> sizes{grad.size(1), x.size(1) / groups, kernel[0], kernel[1]};
  const Convolution c(x, sizes, stride, padding, dilation, groups);
  require(c.is_output(grad), "atrous_conv2d_backward_weight: expected grad like the result");
  if (c.is_dense(method, Convolution::kBackwardWeight, x)) {
    const bool inside = segops::is_channels_last(x) && !(is_single(x) && c.prefers_planes_for_weight());
    return torch::stable::contiguous(c.backward_weight(in_layout(grad, inside), in_layout(x, inside)));
  }
  Tensor out = segops::fresh(x, {sizes[0], sizes[1], sizes[2], sizes[3]});
  if (out.numel() == 0) return out;
  if (grad.numel() == 0 || x.numel() == 0) return torch::stable::zero_(out);
  grad = segops::readable(grad);
  x = segops::readable(x);
  segops::dispatch(x, "atrous_conv2d_backward_weight", [&]<class T>(T) {
    const int64_t count = sizes[0] / groups, depth = sizes[1];
    std::vector<std::vector<WeightGradient<T>>> families;
    for (int64_t g = 0; g < groups; ++g)
      families.push_back(
          {{taps_of(c), g * count, count, g * depth, depth, mutable_data<T>(out, g * count * depth * c.taps())}});
    segops::TorchParallel parallel;
    segops::atrous::weight_gradients<T>(map_of<T>(x), map_of<T>(grad), families, parallel);
  });
  return out;
}

std::vector<std::string> atrous_conv2d_methods(Tensor x, Tensor weight, std::vector<int64_t> stride,
                                               std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                               int64_t groups) {
  const Convolution c(x, weight.sizes(), stride, padding, dilation, groups);
  std::vector<std::string> methods;
  for (const auto product : {Convolution::kForward, Convolution::kBackwardInput, Convolution::kBackwardWeight})
    methods.push_back(c.is_dense("auto", product, x) ? "dense" : "skip");
  return methods;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("atrous_conv2d", SEGOPS_BOX(atrous_conv2d));
  m.impl("atrous_conv2d_backward_input", SEGOPS_BOX(atrous_conv2d_backward_input));
  m.impl("atrous_conv2d_backward_weight", SEGOPS_BOX(atrous_conv2d_backward_weight));
  m.impl("atrous_conv2d_methods", SEGOPS_BOX(atrous_conv2d_methods));
}
