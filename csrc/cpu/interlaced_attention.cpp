// Interlaced attention of tensors; see segops/reference/interlaced_attention.py.
#include "segops/interlaced_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
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
using segops::Tensor;
using segops::widened;

struct Inputs : segops::QueryKeyValue {
  std::vector<int64_t> down_factor;
  bool local;
  double scale;

  Inputs(const Tensor& query, const Tensor& key, const Tensor& value, const std::vector<int64_t>& down_factor,
         const std::string& relation, double scale)
      : QueryKeyValue("interlaced_attention", query, key, value),
        down_factor(down_factor),
        local(relation == "local"),
        scale(scale) {
    require(down_factor.size() == 2 && down_factor[0] > 0 && down_factor[1] > 0,
            "interlaced_attention: expected down_factor of two numbers above 0");
    require(local || relation == "global", "interlaced_attention: expected relation 'global' or 'local'");
  }

  template <class S>
  segops::interlaced::Problem<S> problem() const {
    segops::interlaced::Problem<S> p{query.size(0), query.size(1), value.size(1)};
    p.y = {value.size(2), std::min(down_factor[0], value.size(2)), local};  // a larger one means the same
    p.x = {value.size(3), std::min(down_factor[1], value.size(3)), local};
    p.scale = segops::Sum<S>(scale);
    point<S>(p);
    return p;
  }
};

Tensor interlaced_attention(Tensor query, Tensor key, Tensor value, std::vector<int64_t> down_factor,
                            std::string relation, double scale) {
  const Inputs in(query, key, value, down_factor, relation, scale);
  if (segops::is_widened(value))
    return narrowed(interlaced_attention(widened(query), widened(key), widened(value), down_factor, relation, scale),
                    value);
  Tensor out = Gradients::like(in.value);
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  segops::dispatch_pairs(out, "interlaced_attention", [&](auto zero) {
    using S = decltype(zero);
    auto p = in.problem<S>();
    p.out = mutable_data<S>(out);
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
  if (segops::is_widened(value)) {
    const auto [of_query, of_key, of_value] = interlaced_attention_backward(
        widened(grad), widened(query), widened(key), widened(value), down_factor, relation, scale);
    return {narrowed(of_query, query), narrowed(of_key, key), narrowed(of_value, value)};
  }
  Gradients gradients(in);
  if (grad.numel() == 0) return {gradients.query, gradients.key, gradients.value};
  segops::TorchParallel parallel;
  segops::dispatch_pairs(grad, "interlaced_attention_backward", [&](auto zero) {
    using S = decltype(zero);
    auto p = in.problem<S>();
    p.grad = data<S>(grad);
    gradients.point<S>(p);
    segops::interlaced::backward(p, parallel);
  });
  return {gradients.query, gradients.key, gradients.value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("interlaced_attention", SEGOPS_BOX(interlaced_attention));
  m.impl("interlaced_attention_backward", SEGOPS_BOX(interlaced_attention_backward));
}
