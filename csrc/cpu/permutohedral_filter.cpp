// Gaussian filtering on the permutohedral lattice; see segops/reference/permutohedral_filter.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "segops/lattice_filter.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::LatticeFilter;
using segops::mutable_data;
using segops::ScalarType;
using segops::Tensor;

constexpr int64_t kChannels = 32;  // at a time: a row that stays in registers, and tables that stay in cache

template <class T>
void filter_image(LatticeFilter<T>& filter, const T* values, T* out, int64_t channels, bool reverse) {
  const int64_t points = filter.points();
  const T alpha = filter.lattice(0).alpha();
  for (int64_t c = 0; c < channels; c += kChannels) {
    const int count = int(std::min(kChannels, channels - c));
    filter.reserve(count);
    segops::PointPass<T> splat = filter.pass(count);
    splat.maps_in = values + c * points;
    filter.forward(splat, true);
    segops::Buffer<T> table(filter.rows() * filter.width());
    filter.merge_and_blur(table.data(), reverse);
    std::vector<segops::Buffer<T>> scale;
    scale.emplace_back(filter.width());
    std::fill_n(scale[0].data(), filter.width(), alpha);
    filter.couple(table.data(), table.data(), scale, false, count);
    segops::PointPass<T> slice = filter.pass(count);
    slice.table = table.data();
    slice.maps_out = out + c * points;
    filter.forward(slice, false);
  }
}

template <class T>
void filter_batch(const Tensor& values, const Tensor& features, Tensor& out, bool reverse) {
  const int64_t channels = values.size(1), points = values.size(2), dim = features.size(1);
  segops::TorchParallel parallel;
  LatticeFilter<T> filter(points, {int(dim)}, int(std::min(channels, kChannels)), parallel);
  for (int64_t n = 0; n < values.size(0); ++n) {
    if (n < features.size(0))
      filter.build(0, data<T>(features, n * dim * points), points, segops::Normalization::kNone);
    filter_image(filter, data<T>(values, n * channels * points), mutable_data<T>(out, n * channels * points), channels,
                 reverse);
  }
}

Tensor permutohedral_filter(Tensor values, Tensor features, bool reverse) {
  values = torch::stable::contiguous(values);
  features = torch::stable::contiguous(features);
  STD_TORCH_CHECK(values.dim() == 3 && features.dim() == 3 && values.size(2) == features.size(2) &&
                      (features.size(0) == 1 || features.size(0) == values.size(0)) &&
                      values.scalar_type() == features.scalar_type(),
                  "permutohedral_filter: expected values (N, V, P) and features (N or 1, D, P) of one dtype");
  STD_TORCH_CHECK(features.size(1) >= 1 && features.size(1) <= segops::kMaxDim, "permutohedral_filter: expected 1 to ",
                  segops::kMaxDim, " features");
  Tensor out = torch::stable::empty_like(values);
  if (out.numel() == 0) return out;
  if (values.scalar_type() == ScalarType::Double) {
    filter_batch<double>(values, features, out, reverse);
  } else {
    STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float, "permutohedral_filter: expected float32 or float64");
    filter_batch<float>(values, features, out, reverse);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("permutohedral_filter", SEGOPS_BOX(permutohedral_filter)); }
