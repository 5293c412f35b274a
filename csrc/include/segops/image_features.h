// A row of pixels to features: position and colour, each over its standard deviation.
#pragma once

#include <cstdint>

namespace segops {

// features[0] = x / sigma_x and features[stride] = y / sigma_y of one row of an image.
template <class T>
void position_row(T* features, int64_t stride, int64_t y, int64_t width, T sigma_x, T sigma_y) {
  const T v = T(y) / sigma_y;
  for (int64_t x = 0; x < width; ++x) {
    features[x] = T(int32_t(x)) / sigma_x;
    features[stride + x] = v;
  }
}

template <class T, class Pixel>
void color_row(T* feature, const Pixel* pixels, int64_t step, int64_t width, T sigma) {
  if (step == 1)
    for (int64_t x = 0; x < width; ++x) feature[x] = T(pixels[x]) / sigma;
  else
    for (int64_t x = 0; x < width; ++x) feature[x] = T(pixels[x * step]) / sigma;
}

}  // namespace segops
