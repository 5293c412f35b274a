// gaussian_filter_exact and its backward on tensors (LibTorch stable ABI). The work is in gaussian_filter_exact.h.
#include "segops/gaussian_filter_exact.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <tuple>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kParallel = [](int64_t count, int64_t grain, const auto& body) {
  torch::stable::parallel_for(0, count, grain, body);
};

struct Shape {
  int64_t batch, channels, dims, points;
};

// Python has checked its arguments; this keeps other callers from reading out of bounds.
Shape checked_shape(const Tensor& values, const Tensor& features) {
  STD_TORCH_CHECK(values.dim() == 3 && features.dim() == 3, "values, features: expected three dimensions each");
  STD_TORCH_CHECK(values.scalar_type() == features.scalar_type(), "values, features: expected one dtype");
  STD_TORCH_CHECK(features.size(0) == values.size(0) || features.size(0) == 1,
                  "features: expected a batch of 1 or that of values");
  STD_TORCH_CHECK(features.size(2) == values.size(2), "features: expected as many points as in values");
  // Features shared by the batch make its samples mere channels.
  const int64_t batch = features.size(0);
  return {batch, batch == values.size(0) ? values.size(1) : values.size(0) * values.size(1), features.size(1),
          features.size(2)};
}

template <class T>
void check_finite(const T* x, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= x[i] - x[i] == 0;
  if (!finite) throw std::invalid_argument("features: expected finite values, got NaN or inf");
}

// Calls f(filter, n) with the filter of every sample n.
template <class T, class F>
void for_samples(const Tensor& features, const Shape& shape, F f) {
  const T* points = static_cast<const T*>(features.const_data_ptr());
  check_finite(points, features.numel());
  if (shape.points == 0 || shape.channels == 0) return;
  for (int64_t n = 0; n < shape.batch; ++n) {
    segops::ExactFilter<T, decltype(kParallel)> filter(points + n * shape.dims * shape.points, shape.points, shape.dims,
                                                       shape.channels, kParallel);
    f(filter, n);
  }
}

template <class T>
void forward(const Tensor& values, const Tensor& features, const Shape& shape, Tensor& out) {
  const int64_t step = shape.channels * shape.points;
  const T* from = static_cast<const T*>(values.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  for_samples<T>(features, shape, [&](auto& filter, int64_t n) { filter.forward(from + n * step, to + n * step); });
}

template <class T>
void backward(const Tensor& grad, const Tensor& values, const Tensor& features, const Shape& shape, Tensor& grad_values,
              Tensor& grad_features) {
  const int64_t step = shape.channels * shape.points, feature_step = shape.dims * shape.points;
  const T *g = static_cast<const T*>(grad.const_data_ptr()), *v = static_cast<const T*>(values.const_data_ptr());
  T* to_values = static_cast<T*>(grad_values.mutable_data_ptr());
  T* to_features = static_cast<T*>(grad_features.mutable_data_ptr());
  for_samples<T>(features, shape, [&](auto& filter, int64_t n) {
    filter.backward(g + n * step, v + n * step, to_values + n * step, to_features + n * feature_step);
  });
}

Tensor gaussian_filter_exact(const Tensor& values_in, const Tensor& features_in) {
  const Shape shape = checked_shape(values_in, features_in);
  const Tensor values = torch::stable::contiguous(values_in), features = torch::stable::contiguous(features_in);
  Tensor out = torch::stable::new_empty(values, values.sizes());
  if (values.scalar_type() == ScalarType::Float)
    forward<float>(values, features, shape, out);
  else if (values.scalar_type() == ScalarType::Double)
    forward<double>(values, features, shape, out);
  else
    throw std::invalid_argument("values: expected float32 or float64");
  return out;
}

std::tuple<Tensor, Tensor> gaussian_filter_exact_backward(const Tensor& grad_in, const Tensor& values_in,
                                                          const Tensor& features_in) {
  const Shape shape = checked_shape(values_in, features_in);
  STD_TORCH_CHECK(grad_in.sizes().equals(values_in.sizes()) && grad_in.scalar_type() == values_in.scalar_type(),
                  "grad: expected the shape and dtype of values");
  const Tensor grad = torch::stable::contiguous(grad_in), values = torch::stable::contiguous(values_in);
  const Tensor features = torch::stable::contiguous(features_in);
  Tensor grad_values = torch::stable::new_empty(values, values.sizes());
  // Zeros, for without channels there is nothing to add.
  Tensor grad_features = torch::stable::new_zeros(features, features.sizes());
  if (values.scalar_type() == ScalarType::Float)
    backward<float>(grad, values, features, shape, grad_values, grad_features);
  else if (values.scalar_type() == ScalarType::Double)
    backward<double>(grad, values, features, shape, grad_values, grad_features);
  else
    throw std::invalid_argument("values: expected float32 or float64");
  return {grad_values, grad_features};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("gaussian_filter_exact", TORCH_BOX(&gaussian_filter_exact));
  m.impl("gaussian_filter_exact_backward", TORCH_BOX(&gaussian_filter_exact_backward));
}
