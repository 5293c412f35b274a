// Non-local attention of tensors; see segops/reference/nonlocal_attention.py.
#include "segops/nonlocal_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "segops/torch_bfloat16.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::Parallel;
using segops::require;
using segops::ScalarType;
using segops::Tensor;

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor query, key, value;
  double scale;

  Inputs(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, double scale)
      : query(torch::stable::contiguous(query_in)),
        key(torch::stable::contiguous(key_in)),
        value(torch::stable::contiguous(value_in)),
        scale(scale) {
    require(query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && key.size(0) == query.size(0) &&
                value.size(0) == query.size(0) && key.size(1) == query.size(1) && value.size(2) == key.size(2),
            "nonlocal_attention: expected query (N, D, P), key (N, D, K) and value (N, C, K)");
    require(query.size(1) > 0 && value.size(1) > 0 && query.size(2) > 0 && key.size(2) > 0,
            "nonlocal_attention: expected at least one channel and one position");
    require(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
            "nonlocal_attention: expected one dtype");
  }

  int64_t batch() const { return query.size(0); }

  template <class S>
  segops::nonlocal::Problem<S> problem(int64_t n) const {
    segops::nonlocal::Problem<S> p{query.size(1), value.size(1), query.size(2), key.size(2), scale};
    p.query = data<S>(query, n * p.dims * p.queries);
    p.key = data<S>(key, n * p.dims * p.keys);
    p.value = data<S>(value, n * p.channels * p.keys);
    return p;
  }

  // body(S{}, E{}) for the dtype S of the tensors and what its products multiply.
  template <class Body>
  void dispatch(const Body& body) const {
    switch (query.scalar_type()) {
      case ScalarType::Double:
        return body(double{}, double{});
      case ScalarType::Float:
        return body(float{}, float{});
      case ScalarType::BFloat16:
        if (segops::bfloat16_pairs()) return body(torch::headeronly::BFloat16{}, segops::Pair{});
        return body(torch::headeronly::BFloat16{}, float{});
      case ScalarType::Half:
        return body(torch::headeronly::Half{}, float{});
      default:
        require(false, "nonlocal_attention: expected float64, float32, bfloat16 or float16");
    }
  }

  // one(n, parallel) for every image: threads take one each as long as there are enough, and share what is left.
  template <class One>
  void each(const One& one) const {
    segops::TorchParallel parallel;
    const int64_t apart = batch() - batch() % parallel.threads();
    if (apart)
      parallel.range(apart, 1, [&](int64_t begin, int64_t end) {
        segops::Serial serial;
        for (int64_t n = begin; n < end; ++n) one(n, serial);
      });
    for (int64_t n = apart; n < batch(); ++n) one(n, parallel);
  }
};

Tensor fresh_like(const Tensor& t) { return fresh(t, {t.size(0), t.size(1), t.size(2)}); }

std::tuple<Tensor, Tensor> nonlocal_attention(Tensor query, Tensor key, Tensor value, double scale) {
  const Inputs in(query, key, value, scale);
  const int64_t channels = in.value.size(1), queries = in.query.size(2);
  Tensor out = fresh(in.query, {in.batch(), channels, queries});
  Tensor lse = torch::stable::new_empty(in.query, {in.batch(), queries}, segops::sum_type(in.query));
  in.dispatch([&](auto zero, auto element) {
    using S = decltype(zero);
    using E = decltype(element);
    S* to = mutable_data<S>(out);
    auto* sums = mutable_data<segops::Sum<S>>(lse);
    in.each([&](int64_t n, Parallel& parallel) {
      auto p = in.problem<S>(n);
      p.out = to + n * channels * queries;
      p.lse = sums + n * queries;
      segops::nonlocal::forward<E>(p, parallel);
    });
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> nonlocal_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                                               Tensor out, Tensor lse, double scale) {
  const Inputs in(query, key, value, scale);
  grad = torch::stable::contiguous(grad);
  out = torch::stable::contiguous(out);
  lse = torch::stable::contiguous(lse);
  const int64_t channels = in.value.size(1), queries = in.query.size(2);
  require(grad.dim() == 3 && grad.size(0) == in.batch() && grad.size(1) == channels && grad.size(2) == queries &&
              out.sizes().equals(grad.sizes()) && lse.dim() == 2 && lse.size(0) == in.batch() && lse.size(1) == queries,
          "nonlocal_attention_backward: expected grad and out (N, C, P) and lse (N, P)");
  require(grad.scalar_type() == in.query.scalar_type() && out.scalar_type() == in.query.scalar_type() &&
              lse.scalar_type() == segops::sum_type(in.query),
          "nonlocal_attention_backward: expected grad and out of the inputs' dtype, and lse of that of the sums");
  Tensor grad_query = fresh_like(in.query), grad_key = fresh_like(in.key), grad_value = fresh_like(in.value);
  in.dispatch([&](auto zero, auto element) {
    using S = decltype(zero);
    using E = decltype(element);
    S *to_query = mutable_data<S>(grad_query), *to_key = mutable_data<S>(grad_key),
      *to_value = mutable_data<S>(grad_value);
    auto* sums = mutable_data<segops::Sum<S>>(lse);
    in.each([&](int64_t n, Parallel& parallel) {
      auto p = in.problem<S>(n);
      p.grad = data<S>(grad, n * channels * queries);
      p.result = data<S>(out, n * channels * queries);
      p.lse = sums + n * queries;
      p.grad_query = to_query + n * p.dims * queries;
      p.grad_key = to_key + n * p.dims * p.keys;
      p.grad_value = to_value + n * channels * p.keys;
      segops::nonlocal::backward<E>(p, parallel);
    });
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("nonlocal_attention", SEGOPS_BOX(nonlocal_attention));
  m.impl("nonlocal_attention_backward", SEGOPS_BOX(nonlocal_attention_backward));
}
