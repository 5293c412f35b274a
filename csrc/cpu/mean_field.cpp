// Mean-field inference in the fully connected CRF; see segops/reference/mean_field.py.
#include "segops/mean_field.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::Compatibility;
using segops::data;
using segops::MeanField;
using segops::mutable_data;
using segops::Normalization;
using segops::ScalarType;
using segops::Tensor;

Normalization parse(const std::string& name) {
  if (name == "symmetric") return Normalization::kSymmetric;
  if (name == "before") return Normalization::kBefore;
  if (name == "after") return Normalization::kAfter;
  STD_TORCH_CHECK(name == "none", "mean_field: expected normalization symmetric, before, after or none, got ", name);
  return Normalization::kNone;
}

struct Problem {
  Tensor logits, compatibility;
  std::vector<Tensor> features;
  Normalization normalization;

  Problem(Tensor logits_in, std::vector<Tensor> features_in, Tensor compatibility_in, const std::string& norm)
      : normalization(parse(norm)) {
    // Before anything is copied: a tensor with stride 0 may be larger than the machine.
    if (logits_in.dim() == 3)
      segops::require_memory(
          2.0 * double(logits_in.numel()) * logits_in.element_size(),
          std::to_string(logits_in.size(2)) + " points with " + std::to_string(logits_in.size(1)) + " labels");
    logits = torch::stable::contiguous(logits_in);
    compatibility = torch::stable::contiguous(compatibility_in);
    STD_TORCH_CHECK(logits.dim() == 3, "mean_field: expected logits (N, L, P)");
    const auto dtype = logits.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "mean_field: expected float32 or float64");
    STD_TORCH_CHECK(compatibility.dim() >= 2 && compatibility.dim() <= 3 && compatibility.scalar_type() == dtype &&
                        compatibility.size(0) == int64_t(features_in.size()) &&
                        compatibility.size(1) == logits.size(1) &&
                        (compatibility.dim() == 2 || compatibility.size(2) == logits.size(1)),
                    "mean_field: expected compatibility (K, L) or (K, L, L) of the dtype of logits");
    for (auto& f : features_in) {
      features.push_back(torch::stable::contiguous(f));
      STD_TORCH_CHECK(f.dim() == 3 && f.scalar_type() == dtype && (f.size(0) == 1 || f.size(0) == logits.size(0)) &&
                          f.size(1) >= 1 && f.size(1) <= segops::kMaxDim && f.size(2) == logits.size(2),
                      "mean_field: expected features (N or 1, D, P) of the dtype of logits, D at most ",
                      segops::kMaxDim);
    }
  }

  // body(n, mean_field, compatibility) for each image, its lattices built; those shared by all images only once, as
  // long as no lattice before them changes.
  template <class T, class Body>
  void each_image(const Body& body) const {
    segops::TorchParallel parallel;
    std::vector<int> dims;
    for (const auto& f : features) dims.push_back(int(f.size(1)));
    const int64_t points = logits.size(2);
    MeanField<T> mean_field(points, int(logits.size(1)), dims, parallel);
    for (int64_t n = 0; n < logits.size(0); ++n) {
      bool shared = n > 0;
      for (size_t k = 0; k < features.size(); ++k) {
        const bool one = features[k].size(0) == 1;
        shared = shared && one;
        if (!shared)
          mean_field.build(int(k), data<T>(features[k], one ? 0 : n * dims[k] * points), points, normalization);
      }
      body(n * logits.size(1) * points, mean_field, Compatibility<T>{data<T>(compatibility), compatibility.dim() == 3});
    }
  }
};

template <class T>
void forward(const Problem& problem, Tensor& out, int iterations, bool return_logits) {
  problem.each_image<T>([&](int64_t image, MeanField<T>& mean_field, Compatibility<T> compatibility) {
    mean_field.forward(data<T>(problem.logits, image), mutable_data<T>(out, image), compatibility, iterations,
                       return_logits);
  });
}

Tensor mean_field(Tensor logits, std::vector<Tensor> features, Tensor compatibility, int64_t iterations,
                  std::string normalization, bool return_logits) {
  const Problem problem(logits, features, compatibility, normalization);
  Tensor out = torch::stable::empty_like(problem.logits);
  if (out.numel() == 0) return out;
  if (out.scalar_type() == ScalarType::Double)
    forward<double>(problem, out, int(iterations), return_logits);
  else
    forward<float>(problem, out, int(iterations), return_logits);
  return out;
}

template <class T>
void backward(const Problem& problem, const Tensor& grad, Tensor& grad_logits, Tensor& grad_compatibility,
              int iterations, bool return_logits) {
  problem.each_image<T>([&](int64_t image, MeanField<T>& mean_field, Compatibility<T> compatibility) {
    mean_field.backward(data<T>(grad, image), data<T>(problem.logits, image), mutable_data<T>(grad_logits, image),
                        mutable_data<T>(grad_compatibility), compatibility, iterations, return_logits);
  });
}

std::tuple<Tensor, Tensor> mean_field_backward(Tensor grad, Tensor logits, std::vector<Tensor> features,
                                               Tensor compatibility, int64_t iterations, std::string normalization,
                                               bool return_logits) {
  const Problem problem(logits, features, compatibility, normalization);
  grad = torch::stable::contiguous(grad);
  STD_TORCH_CHECK(grad.numel() == problem.logits.numel() && grad.scalar_type() == problem.logits.scalar_type(),
                  "mean_field_backward: expected grad like logits");
  Tensor grad_logits = torch::stable::empty_like(problem.logits);
  Tensor grad_compatibility = torch::stable::empty_like(problem.compatibility);
  torch::stable::zero_(grad_compatibility);
  if (grad.numel() == 0) return {grad_logits, grad_compatibility};
  if (grad.scalar_type() == ScalarType::Double)
    backward<double>(problem, grad, grad_logits, grad_compatibility, int(iterations), return_logits);
  else
    backward<float>(problem, grad, grad_logits, grad_compatibility, int(iterations), return_logits);
  return {grad_logits, grad_compatibility};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("mean_field", SEGOPS_BOX(mean_field));
  m.impl("mean_field_backward", SEGOPS_BOX(mean_field_backward));
}
