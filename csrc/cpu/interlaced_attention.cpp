// Interlaced attention of tensors; see segops/reference/interlaced_attention.py.
#include "segops/interlaced_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

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
  std::vector<int64_t> down_factor;
  bool local;
  double scale;

  Inputs(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, const std::vector<int64_t>& down_factor,
         const std::string& relation, double scale)
      : query(torch::stable::contiguous(query_in)),
        key(torch::stable::contiguous(key_in)),
        value(torch::stable::contiguous(value_in)),
        down_factor(down_factor),
        local(relation == "local"),
        scale(scale) {
    require(query.dim() == 4 && value.dim() == 4 && key.sizes().equals(query.sizes()) &&
                query.size(0) == value.size(0) && query.size(2) == value.size(2) && query.size(3) == value.size(3),
            "interlaced_attention: expected query and key (N, D, H, W) and value (N, C, H, W)");
    require(query.size(1) > 0 && value.size(1) > 0, "interlaced_attention: expected at least one channel");
    require(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
            "interlaced_attention: expected one dtype");
    require(down_factor.size() == 2 && down_factor[0] > 0 && down_factor[1] > 0,
            "interlaced_attention: expected down_factor of two numbers above 0");
    require(local || relation == "global", "interlaced_attention: expected relation 'global' or 'local'");
  }

  template <class T>
  segops::interlaced::Problem<T> problem() const {
    segops::interlaced::Problem<T> p{query.size(0), query.size(1), value.size(1)};
    p.y = {value.size(2), std::min(down_factor[0], value.size(2)), local};  // a larger one means the same
    p.x = {value.size(3), std::min(down_factor[1], value.size(3)), local};
    p.scale = T(scale);
    p.query = data<T>(query);
    p.key = data<T>(key);
    p.value = data<T>(value);
    return p;
  }
};

Tensor fresh_like(const Tensor& t) { return fresh(t, {t.size(0), t.size(1), t.size(2), t.size(3)}); }

Tensor interlaced_attention(Tensor query, Tensor key, Tensor value, std::vector<int64_t> down_factor,
                            std::string relation, double scale) {
  const Inputs in(query, key, value, down_factor, relation, scale);
  Tensor out = fresh_like(in.value);
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  segops::dispatch(out, "interlaced_attention", [&](auto zero) {
    using T = decltype(zero);
    auto p = in.problem<T>();
    p.out = mutable_data<T>(out);
    segops::interlaced::forward(p, parallel);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> interlaced_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                                                 std::vector<int64_t> down_factor, std::string relation,
                                                                 double scale) {
  const Inputs in(query, key, value, down_factor, relation, scale);
  grad = torch::stable::contiguous(grad);
  require(grad.sizes().equals(in.value.sizes()) && grad.scalar_type() == in.value.scalar_type(),
          "interlaced_attention_backward: expected grad of the shape and dtype of value");
  Tensor grad_query = fresh_like(in.query), grad_key = fresh_like(in.key), grad_value = fresh_like(in.value);
  if (grad_value.numel() == 0) return {grad_query, grad_key, grad_value};
  segops::TorchParallel parallel;
  segops::dispatch(grad, "interlaced_attention_backward", [&](auto zero) {
    using T = decltype(zero);
    auto p = in.problem<T>();
    p.grad = data<T>(grad);
    p.grad_query = mutable_data<T>(grad_query);
    p.grad_key = mutable_data<T>(grad_key);
    p.grad_value = mutable_data<T>(grad_value);
    segops::interlaced::backward(p, parallel);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("interlaced_attention", SEGOPS_BOX(interlaced_attention));
  m.impl("interlaced_attention_backward", SEGOPS_BOX(interlaced_attention_backward));
}
