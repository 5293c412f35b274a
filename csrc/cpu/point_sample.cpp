// Sampling of tensors at points; see segops/reference/point_sample.py.
#include "segops/point_sample.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::Grid;
using segops::is_channels_last;
using segops::Map;
using segops::MapShape;
using segops::mutable_data;
using segops::Padding;
using segops::require;
using segops::ScalarType;
using segops::Tensor;

Grid parse(const std::string& mode, const std::string& padding, bool align_corners) {
  require(mode == "bilinear" || mode == "nearest", "mode: expected 'bilinear' or 'nearest'");
  require(padding == "zeros" || padding == "border" || padding == "reflection",
          "padding_mode: expected 'zeros', 'border' or 'reflection'");
  return {mode == "nearest",
          padding == "zeros"    ? Padding::kZeros
          : padding == "border" ? Padding::kBorder
                                : Padding::kReflection,
          align_corners};
}

Tensor points_of(const Tensor& points) {
  require(points.dim() == 3 && points.size(2) == 2, "points: expected (N, P, 2)");
  return torch::stable::contiguous(points);
}

// The maps, in memory that the kernels read.
struct Maps {
  std::vector<Tensor> tensors;
  int64_t channels = 0;

  Maps(const std::vector<Tensor>& inputs, const Tensor& points) {
    for (const Tensor& x : inputs) {
      require(x.dim() == 4 && x.size(0) == points.size(0) && x.size(2) > 0 && x.size(3) > 0 &&
                  x.scalar_type() == points.scalar_type(),
              "input: expected maps (N, C, H, W) in the dtype of points, none without cells");
      tensors.push_back(is_channels_last(x) ? x : torch::stable::contiguous(x));
      channels += x.size(1);
    }
  }

  template <class T>
  Map<T> map(size_t i) const {
    const Tensor& x = tensors[i];
    return {data<T>(x), {x.size(1), x.size(2), x.size(3)}, is_channels_last(x)};
  }
};

Tensor point_sample(Tensor points_in, std::vector<Tensor> inputs, std::string mode, std::string padding,
                    bool align_corners) {
  const Tensor points = points_of(points_in);
  const Grid grid = parse(mode, padding, align_corners);
  const Maps maps(inputs, points);
  const int64_t batch = points.size(0), count = points.size(1);
  Tensor out = segops::fresh(points, {batch, maps.channels, count});
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  segops::dispatch(points, "point_sample", [&]<class T>(T) {
    T* to = mutable_data<T>(out);
    for (size_t i = 0; i < maps.tensors.size(); ++i) {
      const Map<T> map = maps.map<T>(i);
      if (map.shape.channels == 0) continue;
      segops::sample_points(data<T>(points), batch, count, map, grid, to, maps.channels * count, parallel);
      to += map.shape.channels * count;
    }
  });
  return out;
}

// As it is if its rows are dense: a part of the channels of a larger gradient comes without a copy.
Tensor rows_of(const Tensor& grad, const Tensor& points, int64_t channels) {
  require(grad.dim() == 3 && grad.size(0) == points.size(0) && grad.size(1) == channels &&
              grad.size(2) == points.size(1) && grad.scalar_type() == points.scalar_type(),
          "grad: expected (N, C, P) in the dtype of points");
  const bool dense = grad.stride(2) == 1 && grad.stride(1) == grad.size(2);
  return dense ? grad : torch::stable::contiguous(grad);
}

Tensor point_sample_backward_input(Tensor grad, Tensor points_in, int64_t height, int64_t width, bool channels_last,
                                   std::string mode, std::string padding, bool align_corners) {
  const Tensor points = points_of(points_in);
  const Grid grid = parse(mode, padding, align_corners);
  require(height > 0 && width > 0, "input: expected cells");
  require(grad.dim() == 3, "grad: expected (N, C, P)");
  grad = rows_of(grad, points, grad.size(1));
  const MapShape shape{grad.size(1), height, width};
  const int64_t batch = points.size(0), count = points.size(1);
  Tensor out = segops::fresh_map(grad, batch, shape.channels, height, width, channels_last);
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  segops::dispatch(points, "point_sample_backward_input", [&]<class T>(T) {
    segops::scatter_points(data<T>(grad), grad.stride(0), data<T>(points), batch, count, shape, channels_last, grid,
                           mutable_data<T>(out), parallel);
  });
  return out;
}

Tensor point_sample_backward_points(Tensor grad, Tensor points_in, std::vector<Tensor> inputs, std::string mode,
                                    std::string padding, bool align_corners) {
  const Tensor points = points_of(points_in);
  const Grid grid = parse(mode, padding, align_corners);
  const Maps maps(inputs, points);
  grad = rows_of(grad, points, maps.channels);
  Tensor out = torch::stable::new_zeros(points, points.sizes());
  if (out.numel() == 0 || grid.nearest) return out;
  segops::TorchParallel parallel;
  segops::dispatch(points, "point_sample_backward_points", [&]<class T>(T) {
    int64_t channel = 0;
    for (size_t i = 0; i < maps.tensors.size(); ++i) {
      const Map<T> map = maps.map<T>(i);
      if (map.shape.channels == 0) continue;
      segops::slope_points(data<T>(grad, channel * points.size(1)), grad.stride(0), data<T>(points), points.size(0),
                           points.size(1), map, grid, mutable_data<T>(out), parallel);
      channel += map.shape.channels;
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("point_sample", SEGOPS_BOX(point_sample));
  m.impl("point_sample_backward_input", SEGOPS_BOX(point_sample_backward_input));
  m.impl("point_sample_backward_points", SEGOPS_BOX(point_sample_backward_points));
}
