// The sizes of a convolution, torch's own kernels for it, and which of the two is the faster.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "segops/isa.h"
#include "segops/torch_map.h"

namespace segops {

struct Convolution {
  enum Product { kForward, kBackwardInput, kBackwardWeight };

  int64_t batch, channels, height, width;
  std::vector<int64_t> weight, kernel, stride, padding, dilation;
  int64_t groups;

  template <class Sizes>
  Convolution(const Tensor& x, const Sizes& weight, const std::vector<int64_t>& stride,
              const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups)
      : Convolution(x.size(0), x.dim() == 4 ? x.size(1) : -1, x.size(-2), x.size(-1), weight, stride, padding, dilation,
                    groups) {}
  template <class Sizes>
  Convolution(int64_t batch, int64_t channels, int64_t height, int64_t width, const Sizes& sizes,
              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
              const std::vector<int64_t>& dilation, int64_t groups)
      : batch(batch),
        channels(channels),
        height(height),
        width(width),
        weight(sizes.begin(), sizes.end()),
        stride(stride),
        padding(padding),
        dilation(dilation),
        groups(groups) {
    require(channels >= 0 && weight.size() == 4, "atrous_conv2d: expected x and weight with 4 dimensions");
    require(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2 && groups > 0 && stride[0] > 0 &&
                stride[1] > 0 && dilation[0] > 0 && dilation[1] > 0 && padding[0] >= 0 && padding[1] >= 0,
            "atrous_conv2d: expected pairs of positive strides and dilations and of paddings from 0");
    kernel.assign(weight.begin() + 2, weight.end());
    require(kernel[0] > 0 && kernel[1] > 0 && weight[1] * groups == channels && weight[0] % groups == 0,
            "atrous_conv2d: expected weight (K, C / groups, kh, kw) to go with x");
    require(out_height() > 0 && out_width() > 0, "atrous_conv2d: expected a kernel that fits into the padded map");
  }

  int64_t results() const { return weight[0]; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t out(int axis, int64_t size) const {
    const int64_t room = size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
    return room < 0 ? 0 : room / stride[axis] + 1;
  }
  int64_t out_height() const { return out(0, height); }
  int64_t out_width() const { return out(1, width); }
  bool is_output(const Tensor& t) const {
    return t.size(0) == batch && t.size(1) == results() && t.size(2) == out_height() && t.size(3) == out_width();
  }

  // The share of the multiplications that are not by padding; of one image, with stride 1.
  double valid() const {
    double share = 1;
    for (const int axis : {0, 1}) {
      const int64_t size = axis == 0 ? height : width, count = out(axis, size);
      int64_t inside = 0;
      for (int64_t i = 0; i < kernel[axis]; ++i)
        inside += atrous::Range{0, count}.reaching(i * dilation[axis] - padding[axis], size).size();
      share *= double(inside) / double(count * kernel[axis]);
    }
    return share;
  }

  // Whether torch's kernels take a product that reads a map: `method` is "skip", "dense", or "auto" for the faster.
  //
  // What has been measured, in float32 on AVX2 and AVX-512: oneDNN skips the padding too in forward passes and in the
  // gradient of the input, if maps are channels_last; it runs at 0.9 to 1.2 times the speed of the kernels here, of
  // which the gradient of the input only gains below half of the taps. It never skips in the gradient of the weight.
  // Strides, kernels of one tap, and products too narrow to fill vectors are left to it. It has no float64, for which
  // torch unfolds the map.
  bool is_dense(const std::string& method, Product product, const Tensor& map) const {
    require(method == "auto" || method == "skip" || method == "dense", "method: expected 'auto', 'skip' or 'dense'");
    if (stride[0] != 1 || stride[1] != 1) return true;
    if (method != "auto") return method == "dense";
    if (std::min(results() / groups, channels / groups) < 8 || taps() == 1) return true;
    if (map.scalar_type() == ScalarType::Double) return false;
    if (product == kForward) return !is_slow_in_avx512(is_channels_last(map));
    return valid() > (product == kBackwardInput ? 0.5 : 0.8);
  }

  // Whether it is worth a copy to have torch's kernels read channels_last: not of half a vector, nor where there is
  // next to no padding to skip.
  bool prefers_channels_last() const { return !is_narrow() && valid() < 0.9; }

  // Whether it is worth a copy to have them read planes for the gradient of the weight: of channels_last they take 1.2
  // to 3 times as long there.
  bool prefers_planes_for_weight() const { return !is_narrow() && taps() > 1; }

  bool is_narrow() const { return std::min(results() / groups, channels / groups) < 32; }

  // Few results of many channels, as of a classifier: with AVX-512 oneDNN takes 1.2 to 3.7 times as long as the kernels
  // here on channels_last, and on planes up to 1.4 times where the map is too large for a cache that cores share.
  bool is_slow_in_avx512(bool last) const {
    const bool large = channels * height * width >= int64_t(1) << 23;
    return isa() == Isa::kAvx512 && is_narrow() && channels / groups >= 1024 && (last || large) && valid() < 0.9;
  }

  Tensor forward(Tensor x, const Tensor& w, const std::optional<Tensor>& bias) const {
    using torch::stable::detail::from;
    std::vector<int64_t> around = padding;
    // There oneDNN reads beyond a map of channels_last, in torch 2.14 at least, and may crash the process.
    if (width < stride[1] && padding[1] > 0) {
      x = torch::stable::pad(x, {padding[1], padding[1]});
      around[1] = 0;
    }
    std::array<StableIValue, 9> stack{from(x),      from(w),        from(bias),  from(stride),
                                      from(around), from(dilation), from(false), from(std::vector<int64_t>{0, 0}),
                                      from(groups)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }

  Tensor backward_input(const Tensor& grad, const Tensor& w, bool channels_last) const {
    return backward(grad, fresh_map(grad, batch, channels, height, width, channels_last), w,
                    0);  // only its shape counts
  }

  Tensor backward_weight(const Tensor& grad, const Tensor& x) const {
    return backward(grad, x, fresh(x, {weight[0], weight[1], weight[2], weight[3]}), 1);
  }

 private:
  Tensor backward(const Tensor& grad, const Tensor& x, const Tensor& w, int wanted) const {
    using torch::stable::detail::from;
    StableListHandle mask;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(3, &mask));
    for (int i = 0; i < 3; ++i) STABLE_TORCH_ERROR_CODE_CHECK(torch_list_push_back(mask, from(i == wanted)));
    std::array<StableIValue, 11> stack{from(grad),
                                       from(x),
                                       from(w),
                                       from(std::nullopt),
                                       from(stride),
                                       from(padding),
                                       from(dilation),
                                       from(false),
                                       from(std::vector<int64_t>{0, 0}),
                                       from(groups),
                                       reinterpret_cast<StableIValue>(mask)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
    std::vector<Tensor> gradients;  // all three are ours to free
    for (int i = 0; i < 3; ++i) gradients.push_back(torch::stable::detail::to<Tensor>(stack[i]));
    return gradients[wanted];
  }
};

}  // namespace segops
