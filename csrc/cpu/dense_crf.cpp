// The dense CRF's features of an image in one pass over it; see segops/reference/dense_crf.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "segops/image_features.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T, class Pixel>
void fill(const Tensor& image, const std::vector<double>& sigma_xy, const std::vector<double>& sigma_color,
          Tensor& out) {
  const int64_t channels = image.size(1), height = image.size(2), width = image.size(3), points = height * width;
  const Pixel* pixels = static_cast<const Pixel*>(image.const_data_ptr());
  T* features = static_cast<T*>(out.mutable_data_ptr());
  segops::TorchParallel parallel;
  parallel.range(image.size(0) * height, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin; row < end; ++row) {
                     const int64_t n = row / height, y = row % height;
                     T* to = features + n * (2 + channels) * points + y * width;
                     segops::position_row(to, points, y, width, T(sigma_xy[0]), T(sigma_xy[1]));
                     for (int64_t c = 0; c < channels; ++c) {
                       const Pixel* from = pixels + image.stride(0) * n + image.stride(1) * c + image.stride(2) * y;
                       segops::color_row(to + (2 + c) * points, from, image.stride(3), width, T(sigma_color[c]));
                     }
                   }
                 });
}

Tensor dense_crf_features(Tensor image, std::vector<double> sigma_xy, std::vector<double> sigma_color) {
  STD_TORCH_CHECK(image.dim() == 4 && sigma_xy.size() == 2 && int64_t(sigma_color.size()) == image.size(1),
                  "dense_crf_features: expected image (N, C, H, W), two sigmas of position and C of colour");
  const auto dtype = image.scalar_type();
  const bool wide = dtype == ScalarType::Double;
  if (!wide && dtype != ScalarType::Float && dtype != ScalarType::Byte)
    image = torch::stable::to(image, ScalarType::Float);
  const int64_t shape[] = {image.size(0), 2 + image.size(1), image.size(2) * image.size(3)};
  Tensor out = torch::stable::new_empty(image, {shape, 3}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide)
    fill<double, double>(image, sigma_xy, sigma_color, out);
  else if (dtype == ScalarType::Byte)
    fill<float, uint8_t>(image, sigma_xy, sigma_color, out);
  else
    fill<float, float>(image, sigma_xy, sigma_color, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) { m.impl("dense_crf_features", SEGOPS_BOX(dense_crf_features)); }
