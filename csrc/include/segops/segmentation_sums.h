// What cross entropy, Dice and focal losses sum up over the pixels of an image; see
// segops/reference/segmentation_sums.py.
//
// A tile of pixels is copied with all its channels into a cache as it is read, and everything is made of the copy:
// memory is read once. The backward pass reads and writes once; nothing of the size of the logits is kept in between.
// An image is cut into slices of a fixed size, whose sums are added in their order: no number of threads changes a bit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/labels.h"
#include "segops/parallel.h"

namespace segops::segmentation_sums {

// Rows of the result.
enum Sum { kOverlap, kPredicted, kPixels, kCrossEntropy, kFocal, kUniform, kSums };

constexpr int64_t kSlice = 1 << 14;  // pixels
constexpr int64_t kMaxTile = 256;
constexpr int64_t kRows = 4;   // of numbers for each pixel
constexpr int64_t kLane = 16;  // pixels: vectors may read and write so many at a time

struct Problem {
  int64_t batch, channels, points;
  LabelRange labels;
  double gamma;

  int64_t slices() const { return (points + kSlice - 1) / kSlice; }
  int64_t tile() const { return channels <= 32 ? kMaxTile : kMaxTile / 2; }  // the copy fits a cache, rows a few lines
  int64_t plane(int64_t n, int64_t c) const { return (n * channels + c) * points; }
};

// u^gamma by multiplication where gamma is a small whole number, else (whole < 0) by exp and log.
struct Exponent {
  double gamma;
  int whole;
  explicit Exponent(double g) : gamma(g), whole(g == int(std::min(g, 9.0)) && g < 9 ? int(g) : -1) {}
};

// A tile, whose channels lie `stride` apart, and room for what is made of it.
template <class T>
struct Tile {
  const T* input;
  int64_t stride, count, channels;
  Exponent exponent;
  const int32_t* label;  // -1 where ignored, and behind the end
  T* room;               // (kRows + channels, kMaxTile)

  T* row(int k) const { return room + k * kMaxTile; }
  T* at(int64_t channel, int64_t pixel) const { return room + (kRows + channel) * kMaxTile + pixel; }
};

template <class T>
struct Work {
  Buffer<T> room;
  Buffer<int32_t> label;

  explicit Work(const Problem& p) : room((kRows + p.channels) * kMaxTile), label(kMaxTile) {}

  Tile<T> tile(const Problem& p, const T* input, int64_t count) {
    return {input, p.points, count, p.channels, Exponent(p.gamma), label.data(), room.data()};
  }
};

#define SEGOPS_ISA_FILE "segops/segmentation_sums_isa.h"
#include "segops/foreach_isa.h"

// body(slice, image, tile) over the tiles of slices of images, a slice by one thread; throws for a wrong label.
template <class T, class Body>
void each_tile(const Problem& p, const T* input, const int64_t* target, Parallel& parallel, const Body& body) {
  std::atomic<bool> wrong = false;
  parallel.range(p.batch * p.slices(), 1, [&](int64_t begin, int64_t end) {
    Work<T> work(p);
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t n = slice / p.slices(), from = slice % p.slices() * kSlice, to = std::min(from + kSlice, p.points);
      for (int64_t at = from; at < to; at += p.tile()) {
        const int64_t count = std::min(p.tile(), to - at);
        std::fill_n(work.label.data() + count, (kLane - count % kLane) % kLane, -1);
        if (!SEGOPS_BY_ISA(narrow_labels)(target + n * p.points + at, count, p.labels.count,
                                          p.labels.ignored.has_value(), p.labels.ignored.value_or(0),
                                          work.label.data())) {
          wrong = true;
          return;
        }
        body(slice, n, at, work.tile(p, input + p.plane(n, 0) + at, count));
      }
    }
  });
  if (wrong) p.labels.check(target, p.batch * p.points);
}

// input (batch, channels, points), target (batch, points), out (batch, kSums, channels)
template <class T>
void forward(const Problem& p, const T* input, const int64_t* target, T* out, Parallel& parallel) {
  const int64_t size = kSums * p.channels;
  std::vector<double> sums(p.batch * p.slices() * size);
  each_tile(p, input, target, parallel, [&](int64_t slice, int64_t, int64_t, const Tile<T>& tile) {
    SEGOPS_BY_ISA(add_tile<T>)(tile, sums.data() + slice * size);
  });
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0;
      for (int64_t slice = n * p.slices(); slice < (n + 1) * p.slices(); ++slice) sum += sums[slice * size + i];
      out[n * size + i] = T(sum);
    }
}

// grad (batch, kSums, channels), out like input
template <class T>
void backward(const Problem& p, const T* grad, const T* input, const int64_t* target, T* out, Parallel& parallel) {
  each_tile(p, input, target, parallel, [&](int64_t, int64_t n, int64_t at, const Tile<T>& tile) {
    SEGOPS_BY_ISA(differentiate_tile<T>)(tile, grad + n * kSums * p.channels, out + p.plane(n, 0) + at);
  });
}

}  // namespace segops::segmentation_sums
