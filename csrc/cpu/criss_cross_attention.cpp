// Criss-cross attention of tensors; see segops/reference/criss_cross_attention.py.
#include "segops/criss_cross_attention.h"

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

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor query, key, value;

  Inputs(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in)
      : query(torch::stable::contiguous(query_in)),
        key(torch::stable::contiguous(key_in)),
        value(torch::stable::contiguous(value_in)) {
    require(query.dim() == 4 && value.dim() == 4 && key.sizes().equals(query.sizes()) &&
                query.size(0) == value.size(0) && query.size(2) == value.size(2) && query.size(3) == value.size(3),
            "criss_cross_attention: expected query and key (N, D, H, W) and value (N, C, H, W)");
    require(query.size(1) > 0 && value.size(1) > 0, "criss_cross_attention: expected at least one channel");
    require(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
            "criss_cross_attention: expected one dtype");
  }

  template <class T>
  segops::criss_cross::Problem<T> problem() const {
    segops::criss_cross::Problem<T> p{query.size(0), query.size(1), value.size(1), value.size(2), value.size(3)};
    p.query = data<T>(query);
    p.key = data<T>(key);
    p.value = data<T>(value);
    return p;
  }
};

Tensor fresh_like(const Tensor& t) { return fresh(t, {t.size(0), t.size(1), t.size(2), t.size(3)}); }

Tensor criss_cross_attention(Tensor query, Tensor key, Tensor value) {
  const Inputs in(query, key, value);
  Tensor out = fresh_like(in.value);
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
  Tensor grad_query = fresh_like(in.query), grad_key = fresh_like(in.key), grad_value = fresh_like(in.value);
  if (grad_value.numel() == 0) return {grad_query, grad_key, grad_value};
  segops::TorchParallel parallel;
  segops::dispatch(grad, "criss_cross_attention_backward", [&](auto zero) {
    using T = decltype(zero);
    auto p = in.problem<T>();
    p.grad = data<T>(grad);
    p.result = data<T>(out);
    p.grad_query = mutable_data<T>(grad_query);
    p.grad_key = mutable_data<T>(grad_key);
    p.grad_value = mutable_data<T>(grad_value);
    segops::criss_cross::backward(p, parallel);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("criss_cross_attention", SEGOPS_BOX(criss_cross_attention));
  m.impl("criss_cross_attention_backward", SEGOPS_BOX(criss_cross_attention_backward));
}
