// The encoding layer of tensors; see segops/reference/encoding.py.
#include "segops/encoding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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
using segops::Sum;
using segops::Tensor;
using segops::widened;

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor x, codewords, scale;
  int64_t batch, channels, pixels, count;

  Inputs(const Tensor& x_in, const Tensor& codewords_in, const Tensor& scale_in)
      : x(torch::stable::contiguous(x_in)),
        codewords(torch::stable::contiguous(codewords_in)),
        scale(torch::stable::contiguous(scale_in)) {
    require(
        x.dim() == 3 && codewords.dim() == 2 && scale.dim() == 1 && codewords.size(1) == x.size(1) &&
            codewords.size(0) == scale.size(0) && codewords.scalar_type() == segops::sum_type(x) &&
            scale.scalar_type() == segops::sum_type(x) && x.size(1) > 0 && x.size(2) > 0 && scale.size(0) > 0,
        "encoding: expected x (N, D, P), codewords (K, D) and scale (K) of the dtype of sums, none empty but for N");
    batch = x.size(0);
    channels = x.size(1);
    pixels = x.size(2);
    count = scale.size(0);
  }

  template <class S>
  segops::encoding::Encoder<S> encoder(bool backward, segops::Parallel& parallel) const {
    return {channels, pixels, count, data<Sum<S>>(codewords), data<Sum<S>>(scale), backward, parallel};
  }
};

Tensor encoding(Tensor x, Tensor codewords, Tensor scale) {
  const Inputs in(x, codewords, scale);
  if (segops::is_widened(x)) return narrowed(encoding(widened(x), codewords, scale), x);
  Tensor out = fresh(in.x, {in.batch, in.count, in.channels});
  segops::dispatch_pairs(in.x, "encoding", [&](auto zero) {
    using S = decltype(zero);
    segops::TorchParallel parallel;
    auto encoder = in.encoder<S>(false, parallel);
    for (int64_t n = 0; n < in.batch; ++n)
      encoder.forward(data<S>(in.x, n * in.channels * in.pixels), mutable_data<S>(out, n * in.count * in.channels));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> encoding_backward(Tensor grad, Tensor x, Tensor codewords, Tensor scale) {
  const Inputs in(x, codewords, scale);
  grad = torch::stable::contiguous(grad);
  require(grad.dim() == 3 && grad.size(0) == in.batch && grad.size(1) == in.count && grad.size(2) == in.channels &&
              grad.scalar_type() == in.x.scalar_type(),
          "encoding_backward: expected grad (N, K, D) of the dtype of x");
  if (segops::is_widened(x)) {
    const auto [of_x, of_codewords, of_scale] = encoding_backward(widened(grad), widened(x), codewords, scale);
    return {narrowed(of_x, x), of_codewords, of_scale};
  }
  Tensor grad_x = fresh(in.x, {in.batch, in.channels, in.pixels});
  Tensor grad_codewords = torch::stable::new_zeros(in.codewords, in.codewords.sizes());
  Tensor grad_scale = torch::stable::new_zeros(in.scale, in.scale.sizes());
  segops::dispatch_pairs(in.x, "encoding_backward", [&](auto zero) {
    using S = decltype(zero);
    segops::TorchParallel parallel;
    auto encoder = in.encoder<S>(true, parallel);
    for (int64_t n = 0; n < in.batch; ++n) {
      const int64_t map = n * in.channels * in.pixels;
      encoder.backward(data<S>(grad, n * in.count * in.channels), data<S>(in.x, map), mutable_data<S>(grad_x, map),
                       mutable_data<Sum<S>>(grad_codewords));
    }
    encoder.finish(mutable_data<Sum<S>>(grad_codewords), mutable_data<Sum<S>>(grad_scale));
  });
  return {grad_x, grad_codewords, grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("encoding", SEGOPS_BOX(encoding));
  m.impl("encoding_backward", SEGOPS_BOX(encoding_backward));
}
