// Criss-cross attention of tensors; see segops/reference/criss_cross_attention.py.
#include "segops/criss_cross_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "segops/torch_attention.h"
#include "segops/torch_bfloat16.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::Gradients;
using segops::mutable_data;
using segops::narrowed;
using segops::require;
using segops::sum_type;
using segops::Tensor;
using segops::widened;

struct Inputs : segops::QueryKeyValue {
  Inputs(const Tensor& query, const Tensor& key, const Tensor& value)
      : QueryKeyValue("criss_cross_attention", query, key, value) {}

  template <class S>
  segops::criss_cross::Problem<S> problem() const {
    segops::criss_cross::Problem<S> p{query.size(0), query.size(1), value.size(1), value.size(2), value.size(3)};
    point<S>(p);
    return p;
  }

  std::vector<int64_t> pixels() const { return {value.size(0), value.size(2), value.size(3)}; }
};

std::tuple<Tensor, Tensor> criss_cross_attention(Tensor query, Tensor key, Tensor value) {
  const Inputs in(query, key, value);
  if (segops::is_widened(value)) {
    const auto [out, lse] = criss_cross_attention(widened(query), widened(key), widened(value));
    return {narrowed(out, value), lse};
  }
  Tensor out = Gradients::like(in.value), lse = torch::stable::new_empty(in.value, in.pixels(), sum_type(in.value));
  if (out.numel() == 0) return {out, lse};
  segops::TorchParallel parallel;
  segops::dispatch_pairs(out, "criss_cross_attention", [&](auto zero) {
    using S = decltype(zero);
    auto p = in.problem<S>();
    p.out = mutable_data<S>(out);
    p.lse = mutable_data<segops::Sum<S>>(lse);
    segops::criss_cross::forward(p, parallel);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> criss_cross_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                                                  Tensor out, Tensor lse) {
  const Inputs in(query, key, value);
  grad = torch::stable::contiguous(grad);
  out = torch::stable::contiguous(out);
  lse = torch::stable::contiguous(lse);
  require(grad.sizes().equals(in.value.sizes()) && grad.scalar_type() == in.value.scalar_type() &&
              out.sizes().equals(in.value.sizes()) && out.scalar_type() == in.value.scalar_type(),
          "criss_cross_attention_backward: expected grad and out of the shape and dtype of value");
  require(lse.sizes().equals(in.pixels()) && lse.scalar_type() == sum_type(in.value),
          "criss_cross_attention_backward: expected lse (N, H, W), of the dtype of the sums");
  if (segops::is_widened(value)) {
    const auto [of_query, of_key, of_value] =
        criss_cross_attention_backward(widened(grad), widened(query), widened(key), widened(value), widened(out), lse);
    return {narrowed(of_query, query), narrowed(of_key, key), narrowed(of_value, value)};
  }
  Gradients gradients(in);
  if (grad.numel() == 0) return {gradients.query, gradients.key, gradients.value};
  segops::TorchParallel parallel;
  segops::dispatch_pairs(grad, "criss_cross_attention_backward", [&](auto zero) {
    using S = decltype(zero);
    auto p = in.problem<S>();
    p.grad = data<S>(grad);
    p.result = data<S>(out);
    p.lse = mutable_data<segops::Sum<S>>(lse);  // read
    gradients.point<S>(p);
    segops::criss_cross::backward(p, parallel);
  });
  return {gradients.query, gradients.key, gradients.value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("criss_cross_attention", SEGOPS_BOX(criss_cross_attention));
  m.impl("criss_cross_attention_backward", SEGOPS_BOX(criss_cross_attention_backward));
}
