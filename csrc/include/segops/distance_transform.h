// The exact Euclidean distance transform: steps within columns, then the lower envelope of the parabolas
// (x - i)^2 + g(i)^2 along each row (Meijster, Roerdink and Hesselink 2000). Pixels of one label side by side in a row
// are a problem of their own: what differs at either end is nearer than all behind it.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::distance {

constexpr int32_t kFar = 1 << 29;  // steps from here on are none

#define SEGOPS_ISA_FILE "segops/distance_transform_isa.h"
#include "segops/foreach_isa.h"

// Steps within columns begin to end of an image.
template <class T>
void scan_columns(const T* labels, int64_t height, int64_t width, int64_t begin, int64_t end, int32_t* steps) {
  for (int64_t y = 0; y < height; ++y) {
    const int64_t at = y * width + begin, above = at - width;
    SEGOPS_BY_ISA(scan_down<T>)
    (labels + at, y > 0 ? labels + above : nullptr, steps + (y > 0 ? above : 0), end - begin, steps + at);
  }
  for (int64_t y = height - 2; y >= 0; --y) {
    const int64_t at = y * width + begin, below = at + width;
    SEGOPS_BY_ISA(scan_up<T>)(labels + at, labels + below, steps + below, end - begin, steps + at);
  }
}

// Squared distances along a row. Int holds the sum of the squares of the sides, Real holds it exactly.
template <class Int, class Real>
class Envelope {
 public:
  explicit Envelope(int64_t width)
      : width_(Int(width)), site_(width + 2), square_(width + 2), first_(width + 2), squares_(width) {}

  template <class T>
  const Real* operator()(const T* labels, const int32_t* steps) {
    for (Int begin = 0, end; begin < width_; begin = end) {
      end = begin + 1;
      while (end < width_ && labels[end] == labels[begin]) ++end;
      if (labels[begin] == 0)
        std::fill(squares_.data() + begin, squares_.data() + end, Real(0));
      else
        run(begin, end, steps);
    }
    return squares_.data();
  }

 private:
  // Pixels begin to end of one label.
  void run(Int begin, Int end, const int32_t* steps) {
    count_ = 0;
    if (begin > 0) push(begin - 1, 0, begin, end);
    for (Int i = begin; i < end; ++i)
      if (steps[i] < kFar) push(i, Int(steps[i]) * steps[i], begin, end);
    if (end < width_) push(end, 0, begin, end);
    if (count_ == 0)
      return std::fill(squares_.data() + begin, squares_.data() + end, std::numeric_limits<Real>::infinity());
    for (int64_t k = 0; k < count_; ++k) {
      const Int until = k + 1 < count_ ? first_[k + 1] : end, site = site_[k], square = square_[k];
      for (Int x = first_[k]; x < until; ++x) squares_[x] = Real((x - site) * (x - site) + square);
    }
  }

  // One more parabola, right of the others: those that lie above it from their first pixel on go.
  void push(Int site, Int square, Int begin, Int end) {
    while (count_ > 0 && value(count_ - 1, first_[count_ - 1]) > at(site, square, first_[count_ - 1])) --count_;
    Int first = begin;
    if (count_ > 0) {
      const Int left = site_[count_ - 1];
      const Int rise = (site - left) * (site + left) + square - square_[count_ - 1];
      first = 1 + Int(double(rise) / double(2 * (site - left)));  // exact: the quotient of integers below 2^53 / 2^25
      if (first >= end) return;
    }
    site_[count_] = site;
    square_[count_] = square;
    first_[count_++] = first;
  }

  static Int at(Int site, Int square, Int x) { return (x - site) * (x - site) + square; }
  Int value(int64_t k, Int x) const { return at(site_[k], square_[k], x); }

  Int width_;
  int64_t count_ = 0;
  Buffer<Int> site_, square_, first_;  // the parabolas of the envelope, and the first pixel of each
  Buffer<Real> squares_;
};

template <class Int, class Real, class T>
void measure_rows(const T* labels, int64_t rows, int64_t width, Parallel& parallel, float* out) {
  parallel.range(rows, 1 + 16384 / width, [&](int64_t begin, int64_t end) {
    Envelope<Int, Real> envelope(width);
    Buffer<int32_t> steps(width);
    for (int64_t y = begin; y < end; ++y) {
      std::memcpy(steps.data(), out + y * width, width * sizeof(int32_t));  // where the scan has left them
      SEGOPS_BY_ISA(roots<Real>)(envelope(labels + y * width, steps.data()), width, out + y * width);
    }
  });
}

// labels and out (images, height, width).
template <class T>
void transform(const T* labels, int64_t images, int64_t height, int64_t width, Parallel& parallel, float* out) {
  if (images * height * width == 0) return;
  constexpr int64_t kStrip = 256;
  const int64_t strips = (width + kStrip - 1) / kStrip;
  parallel.range(images * strips, 1 + 16384 / (height * kStrip), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / strips * height * width, first = i % strips * kStrip;
      scan_columns(labels + image, height, width, first, std::min(width, first + kStrip),
                   reinterpret_cast<int32_t*>(out) + image);
    }
  });
  if (height * height + width * width <= 1 << 24)
    measure_rows<int32_t, float>(labels, images * height, width, parallel, out);
  else
    measure_rows<int64_t, double>(labels, images * height, width, parallel, out);
}

}  // namespace segops::distance
