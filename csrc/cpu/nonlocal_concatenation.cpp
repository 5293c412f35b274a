// Non-local attention in its concatenation form, of tensors; see segops/reference/nonlocal_concatenation.py.
#include "segops/nonlocal_concatenation.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
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
  int64_t batch, channels, queries, keys;

  Inputs(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in)
      : query(torch::stable::contiguous(query_in)),
        key(torch::stable::contiguous(key_in)),
        value(torch::stable::contiguous(value_in)) {
    require(query.dim() == 2 && key.dim() == 2 && value.dim() == 3 && query.size(0) == value.size(0) &&
                key.size(0) == value.size(0) && key.size(1) == value.size(2),
            "nonlocal_concatenation: expected query_score (N, Q), key_score (N, K) and value (N, C, K)");
    require(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
            "nonlocal_concatenation: expected one dtype");
    batch = value.size(0);
    channels = value.size(1);
    queries = query.size(1);
    keys = key.size(1);
    require(channels > 0 && queries > 0 && keys > 0, "nonlocal_concatenation: expected no empty dimension but N");
    require(queries + keys < std::numeric_limits<int32_t>::max(), "nonlocal_concatenation: expected Q + K below 2^31");
  }
};

Tensor nonlocal_concatenation(Tensor query_score, Tensor key_score, Tensor value) {
  const Inputs in(query_score, key_score, value);
  Tensor out = fresh(in.value, {in.batch, in.channels, in.queries});
  if (in.batch == 0) return out;
  segops::dispatch(out, "nonlocal_concatenation", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::concatenation::Images<T> images(in.channels, in.queries, in.keys, parallel);
    for (int64_t n = 0; n < in.batch; ++n)
      images.forward(data<T>(in.query, n * in.queries), data<T>(in.key, n * in.keys),
                     data<T>(in.value, n * in.channels * in.keys), mutable_data<T>(out, n * in.channels * in.queries));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> nonlocal_concatenation_backward(Tensor grad, Tensor query_score, Tensor key_score,
                                                                   Tensor value) {
  const Inputs in(query_score, key_score, value);
  grad = torch::stable::contiguous(grad);
  require(grad.dim() == 3 && grad.size(0) == in.batch && grad.size(1) == in.channels && grad.size(2) == in.queries &&
              grad.scalar_type() == in.value.scalar_type(),
          "nonlocal_concatenation_backward: expected grad (N, C, Q) in the dtype of value");
  Tensor grad_query = fresh(in.query, {in.batch, in.queries}), grad_key = fresh(in.key, {in.batch, in.keys});
  Tensor grad_value = fresh(in.value, {in.batch, in.channels, in.keys});
  if (in.batch == 0) return {grad_query, grad_key, grad_value};
  segops::dispatch(grad, "nonlocal_concatenation_backward", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    segops::concatenation::Images<T> images(in.channels, in.queries, in.keys, parallel);
    for (int64_t n = 0; n < in.batch; ++n) {
      const int64_t q = n * in.queries, k = n * in.keys, v = n * in.channels * in.keys;
      images.backward(data<T>(grad, n * in.channels * in.queries), data<T>(in.query, q), data<T>(in.key, k),
                      data<T>(in.value, v), mutable_data<T>(grad_query, q), mutable_data<T>(grad_key, k),
                      mutable_data<T>(grad_value, v));
    }
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("nonlocal_concatenation", SEGOPS_BOX(nonlocal_concatenation));
  m.impl("nonlocal_concatenation_backward", SEGOPS_BOX(nonlocal_concatenation_backward));
}
