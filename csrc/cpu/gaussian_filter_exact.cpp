// The exact Gaussian filter of tensors; see segops/reference/gaussian_filter_exact.py.
#include "segops/gaussian_filter_exact.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::mutable_data;
using segops::ScalarType;
using segops::Tensor;

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor values, features;
  int64_t batch, channels, dims, points;

  Inputs(const Tensor& values_in, const Tensor& features_in)
      : values(torch::stable::contiguous(values_in)), features(torch::stable::contiguous(features_in)) {
    const auto dtype = values.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "gaussian_filter_exact: expected float32 or float64");
    STD_TORCH_CHECK(values.dim() == 3 && features.dim() == 3 && values.size(2) == features.size(2) &&
                        (features.size(0) == 1 || features.size(0) == values.size(0)) &&
                        features.scalar_type() == dtype,
                    "gaussian_filter_exact: expected values (N, V, P) and features (N or 1, D, P) of one dtype");
    batch = features.size(0);
    channels = values.size(1);
    if (batch != values.size(0)) channels *= values.size(0);  // shared features: the batch is so many more channels
    dims = features.size(1);
    points = features.size(2);
  }
};

// body(filter, first value, first feature) for every sample of the features' batch.
template <class T, class Body>
void each_sample(const Inputs& in, const Body& body) {
  segops::exact::check_finite(data<T>(in.features), in.features.numel());
  if (in.channels == 0 || in.points == 0) return;
  segops::TorchParallel parallel;
  for (int64_t n = 0; n < in.batch; ++n) {
    const int64_t feature = n * in.dims * in.points;
    segops::exact::Filter<T> filter(data<T>(in.features) + feature, in.points, in.dims, in.channels, parallel);
    body(filter, n * in.channels * in.points, feature);
  }
}

template <class T>
void forward(const Inputs& in, Tensor& out) {
  each_sample<T>(in, [&](segops::exact::Filter<T>& filter, int64_t value, int64_t) {
    filter.forward(data<T>(in.values) + value, mutable_data<T>(out) + value);
  });
}

template <class T>
void backward(const Inputs& in, const Tensor& grad, Tensor& grad_values, Tensor& grad_features) {
  each_sample<T>(in, [&](segops::exact::Filter<T>& filter, int64_t value, int64_t feature) {
    filter.backward(data<T>(grad) + value, data<T>(in.values) + value, mutable_data<T>(grad_values) + value,
                    mutable_data<T>(grad_features) + feature);
  });
}

Tensor gaussian_filter_exact(Tensor values, Tensor features) {
  const Inputs in(values, features);
  Tensor out = torch::stable::new_empty(in.values, in.values.sizes());
  in.values.scalar_type() == ScalarType::Float ? forward<float>(in, out) : forward<double>(in, out);
  return out;
}

std::tuple<Tensor, Tensor> gaussian_filter_exact_backward(Tensor grad, Tensor values, Tensor features) {
  const Inputs in(values, features);
  grad = torch::stable::contiguous(grad);
  STD_TORCH_CHECK(grad.sizes().equals(in.values.sizes()) && grad.scalar_type() == in.values.scalar_type(),
                  "gaussian_filter_exact_backward: expected grad of the shape and dtype of values");
  Tensor grad_values = torch::stable::new_empty(in.values, in.values.sizes());
  Tensor grad_features = torch::stable::new_zeros(in.features, in.features.sizes());  // which no channel may add to
  in.values.scalar_type() == ScalarType::Float ? backward<float>(in, grad, grad_values, grad_features)
                                               : backward<double>(in, grad, grad_values, grad_features);
  return {grad_values, grad_features};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("gaussian_filter_exact", SEGOPS_BOX(gaussian_filter_exact));
  m.impl("gaussian_filter_exact_backward", SEGOPS_BOX(gaussian_filter_exact_backward));
}
