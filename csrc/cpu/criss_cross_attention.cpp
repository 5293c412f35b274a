// Criss-cross attention of tensors; see segops/reference/criss_cross_attention.py.
#include "segops/criss_cross_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "segops/torch_attention.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::Gradients;
using segops::mutable_data;
using segops::require;
using segops::Tensor;

struct Inputs : segops::QueryKeyValue {
  Inputs(const Tensor& query, const Tensor& key, const Tensor& value)
      : QueryKeyValue("criss_cross_attention", query, key, value) {}

  template <class T>
  segops::criss_cross::Problem<T> problem() const {
    segops::criss_cross::Problem<T> p{query.size(0), query.size(1), value.size(1), value.size(2), value.size(3)};
    point<T>(p);
    return p;
  }
};

Tensor criss_cross_attention(Tensor query, Tensor key, Tensor value) {
  const Inputs in(query, key, value);
  Tensor out = Gradients::like(in.value);
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  segops::dispatch(out, "criss_cross_attention", [&](auto zero) {
    using T = decltype(zero);
    auto p = in.problem<T>();
    p.out = mutable_data<T>(out);
    segops::criss_cross::forward(p, parallel);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> criss_cross_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                                                  Tensor out) {
  const Inputs in(query, key, value);
  grad = torch::stable::contiguous(grad);
  out = torch::stable::contiguous(out);
  require(grad.sizes().equals(in.value.sizes()) && grad.scalar_type() == in.value.scalar_type() &&
              out.sizes().equals(in.value.sizes()) && out.scalar_type() == in.value.scalar_type(),
          "criss_cross_attention_backward: expected grad and out of the shape and dtype of value");
  Gradients gradients(in);
  if (grad.numel() == 0) return {gradients.query, gradients.key, gradients.value};
  segops::TorchParallel parallel;
  segops::dispatch(grad, "criss_cross_attention_backward", [&](auto zero) {
    using T = decltype(zero);
    auto p = in.problem<T>();
    p.grad = data<T>(grad);
    p.result = data<T>(out);
    gradients.point<T>(p);
    segops::criss_cross::backward(p, parallel);
  });
  return {gradients.query, gradients.key, gradients.value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("criss_cross_attention", SEGOPS_BOX(criss_cross_attention));
  m.impl("criss_cross_attention_backward", SEGOPS_BOX(criss_cross_attention_backward));
}
