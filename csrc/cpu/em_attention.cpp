// Expectation-maximization attention of tensors; see segops/reference/em_attention.py.
#include "segops/em_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>

#include "segops/torch_bfloat16.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::narrowed;
using segops::require;
using segops::ScalarType;
using segops::Tensor;
using segops::widened;

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor x, bases;
  int64_t batch, channels, pixels, count;
  bool added;

  Inputs(const Tensor& x_in, const Tensor& bases_in, const std::string& eps_mode)
      : x(torch::stable::contiguous(x_in)), bases(torch::stable::contiguous(bases_in)), added(eps_mode == "add") {
    require(
        x.dim() == 3 && bases.dim() == 3 && bases.scalar_type() == segops::sum_type(x) && x.size(1) == bases.size(1) &&
            (bases.size(0) == 1 || bases.size(0) == x.size(0)) && x.size(1) > 0 && x.size(2) > 0 && bases.size(2) > 0,
        "em_attention: expected x (N, C, P) and bases (N or 1, C, K) of the dtype of sums, neither empty but for N");
    require(added || eps_mode == "clamp", "em_attention: expected eps_mode 'add' or 'clamp'");
    batch = x.size(0);
    channels = x.size(1);
    pixels = x.size(2);
    count = bases.size(2);
  }

  template <class S>
  segops::em::Image<S> image(segops::Parallel& parallel) const {
    return {channels, pixels, count, added, parallel};
  }
  int64_t map(int64_t n) const { return n * channels * pixels; }
  int64_t table(int64_t n) const { return n * channels * count; }
  int64_t norm(int64_t n) const { return n * 2 * count; }
  int64_t first(int64_t n) const { return bases.size(0) == 1 ? 0 : table(n); }
};

std::tuple<Tensor, Tensor, Tensor> em_attention(Tensor x, Tensor bases, int64_t iterations, std::string eps_mode) {
  const Inputs in(x, bases, eps_mode);
  require(iterations > 0, "em_attention: expected at least one iteration");
  if (segops::is_widened(x)) {
    const auto [out, history, norms] = em_attention(widened(x), bases, iterations, eps_mode);
    return {narrowed(out, x), history, norms};
  }
  Tensor out = fresh(in.x, {in.batch, in.channels, in.pixels});
  Tensor history = fresh(in.bases, {iterations, in.batch, in.channels, in.count});
  Tensor norms = fresh(in.bases, {iterations, in.batch, 2, in.count});
  if (in.batch == 0) return {out, history, norms};
  segops::dispatch_pairs(in.x, "em_attention", [&](auto zero) {
    using S = decltype(zero);
    using T = segops::Sum<S>;
    segops::TorchParallel parallel;
    auto image = in.image<S>(parallel);
    for (int64_t n = 0; n < in.batch; ++n)
      image.forward(data<S>(in.x, in.map(n)), data<T>(in.bases, in.first(n)), int(iterations),
                    mutable_data<S>(out, in.map(n)), mutable_data<T>(history, in.table(n)), in.table(in.batch),
                    mutable_data<T>(norms, in.norm(n)), in.norm(in.batch));
  });
  return {out, history, norms};
}

std::tuple<Tensor, Tensor> em_attention_backward(Tensor grad, Tensor grad_history, Tensor x, Tensor bases,
                                                 Tensor history, Tensor norms, std::string eps_mode) {
  const Inputs in(x, bases, eps_mode);
  grad = torch::stable::contiguous(grad);
  grad_history = torch::stable::contiguous(grad_history);
  history = torch::stable::contiguous(history);
  norms = torch::stable::contiguous(norms);
  const auto dtype = in.x.scalar_type();
  require(grad.sizes().equals(in.x.sizes()) && history.dim() == 4 && norms.dim() == 4 && history.size(0) > 0 &&
              history.size(0) == norms.size(0) && history.size(1) == in.batch && history.size(2) == in.channels &&
              history.size(3) == in.count && grad_history.sizes().equals(history.sizes()) &&
              norms.size(1) == in.batch && norms.size(2) == 2 && norms.size(3) == in.count,
          "em_attention_backward: expected grad like x, grad_history and history (T, N, C, K), norms (T, N, 2, K)");
  const auto sums = segops::sum_type(in.x);
  require(grad.scalar_type() == dtype && grad_history.scalar_type() == sums && history.scalar_type() == sums &&
              norms.scalar_type() == sums,
          "em_attention_backward: expected grad of the dtype of x, and all others of that of sums");
  if (segops::is_widened(x)) {
    const auto [of_x, of_bases] =
        em_attention_backward(widened(grad), grad_history, widened(x), bases, history, norms, eps_mode);
    return {narrowed(of_x, x), of_bases};
  }
  Tensor grad_x = fresh(in.x, {in.batch, in.channels, in.pixels});
  Tensor grad_bases = torch::stable::new_zeros(in.bases, in.bases.sizes());
  if (in.batch == 0) return {grad_x, grad_bases};
  segops::dispatch_pairs(in.x, "em_attention_backward", [&](auto zero) {
    using S = decltype(zero);
    using T = segops::Sum<S>;
    segops::TorchParallel parallel;
    auto image = in.image<S>(parallel);
    segops::Buffer<T> one(in.table(1));
    for (int64_t n = 0; n < in.batch; ++n) {
      image.backward(data<S>(grad, in.map(n)), data<T>(grad_history, in.table(n)), data<S>(in.x, in.map(n)),
                     data<T>(in.bases, in.first(n)), int(history.size(0)), data<T>(history, in.table(n)),
                     in.table(in.batch), data<T>(norms, in.norm(n)), in.norm(in.batch),
                     mutable_data<S>(grad_x, in.map(n)), one.data());
      T* sum = mutable_data<T>(grad_bases, in.first(n));
      for (int64_t i = 0; i < one.size(); ++i) sum[i] += one[i];
    }
  });
  return {grad_x, grad_bases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("em_attention", SEGOPS_BOX(em_attention));
  m.impl("em_attention_backward", SEGOPS_BOX(em_attention_backward));
}
