// Depthwise atrous convolution of maps; see segops/reference/dynamic_depthwise_conv2d.py.
//
// A tap works only where what it reads lies on the map. Maps in planes (NCHW) are taken plane by plane, vectors along a
// row: the plane is copied once, with zeros between its rows, to where the cache has it, so that a vector may begin
// before a row or end after it, and vectors that see nothing of the map are left out. Maps in cells (channels_last) are
// taken a few channels at a time, vectors along the channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::depthwise {

template <class T>
constexpr int kLanes = 64 / sizeof(T);  // of one piece of a row, on every instruction set
template <class T>
constexpr int kBlock = 8 * kLanes<T>;  // channels that cells are taken by

struct Range {
  int64_t begin, end;
};

// The taps along one axis: tap i is shift(i) away.
struct Axis {
  int64_t size, count, dilation;

  Axis(int64_t size, int64_t count, int64_t dilation)
      : size(size),
        count(count),
        dilation(std::min(dilation, size)) {}  // beyond, no tap but the middle one is on the map

  int64_t shift(int64_t i) const { return (i - count / 2) * dilation; }
  // The taps that touch the map from some output of [begin, end).
  Range taps(int64_t begin, int64_t end) const {
    const int64_t middle = count / 2, before = (end - 1) / dilation, after = (size - 1 - begin) / dilation;
    return {std::max<int64_t>(0, middle - before), std::min(count, middle + after + 1)};
  }
  // The outputs from which tap i touches the map; [0, 0) where there are none.
  Range outputs(int64_t i) const {
    const int64_t by = shift(i);
    if (by >= size || -by >= size) return {0, 0};
    return {std::max<int64_t>(0, -by), std::min(size, size - by)};
  }
};

// Outputs of a row that are made together. The last one of a row ends with it, and its first `again` lanes belong to
// the one before, too.
struct Piece {
  int64_t x;
  int again;
  Range taps;
  int64_t shift;  // of the first tap
};

struct Shape {
  Axis y, x;
  int64_t channels;

  int64_t pixels() const { return y.size * x.size; }
  int64_t taps() const { return y.count * x.count; }
  template <class T>
  int64_t padded_width() const {
    return x.size + kLanes<T>;
  }
  template <class T>
  int64_t padded_pixels() const {
    return y.size * padded_width<T>() + kLanes<T>;
  }
};

template <class T>
std::vector<Piece> pieces(const Axis& x) {
  std::vector<Piece> result;
  for (int64_t at = 0; at < x.size; at += kLanes<T>) {
    const int64_t begin = std::max<int64_t>(0, std::min(at, x.size - kLanes<T>));
    const Range taps = x.taps(begin, std::min(x.size, begin + kLanes<T>));
    result.push_back({begin, int(at - begin), taps, x.shift(taps.begin)});
  }
  return result;
}

// Every output's taps.
inline std::vector<Range> taps(const Axis& axis) {
  std::vector<Range> result;
  for (int64_t at = 0; at < axis.size; ++at) result.push_back(axis.taps(at, at + 1));
  return result;
}

// What a pass over planes or cells looks up.
template <class T>
struct Plan {
  Shape shape;
  std::vector<Range> rows, columns;
  std::vector<Piece> row_pieces;
  explicit Plan(const Shape& s) : shape(s), rows(taps(s.y)), columns(taps(s.x)), row_pieces(pieces<T>(s.x)) {}
  const Range* row_taps() const { return rows.data(); }
  const Range* column_taps() const { return columns.data(); }
  const Piece* begin() const { return row_pieces.data(); }
  int64_t piece_count() const { return int64_t(row_pieces.size()); }
};

#define SEGOPS_ISA_FILE "segops/dynamic_depthwise_conv2d_isa.h"
#include "segops/foreach_isa.h"

// A plane with zeros around its rows; the zeros stay from one plane to the next.
template <class T>
class PaddedPlane {
 public:
  explicit PaddedPlane(const Shape& s) : shape_(s), data_(s.padded_pixels<T>()) {
    std::fill_n(data_.data(), data_.size(), T(0));
  }
  const T* read(const T* plane) {
    SEGOPS_BY_ISA(pad_plane<T>)(shape_, plane, data_.data() + kLanes<T>);
    return data_.data() + kLanes<T>;
  }

 private:
  Shape shape_;
  Buffer<T> data_;
};

// How many items a thread should have at the least.
inline int64_t grain(int64_t pixels) { return std::max<int64_t>(1, 16384 / pixels); }

// Maps (batch, channels, pixels) in planes or (batch, pixels, channels) in cells; kernels (batch or 1, channels, taps).
struct Maps {
  int64_t batch, kernel_batch;
  bool cells;

  int64_t kernel_item(int64_t n) const { return kernel_batch == 1 ? 0 : n; }
  // The images that share kernel item k.
  Range images(int64_t k) const { return kernel_batch == 1 ? Range{0, batch} : Range{k, k + 1}; }
};

// task(item, first channel, channels) for each block of channels of each item.
template <class T, class Task>
void each_block_of_channels(int64_t items, const Shape& s, Parallel& parallel, const Task& task) {
  const int64_t width = kBlock<T>, count = (s.channels + width - 1) / width;
  parallel.range(items * count, grain(s.pixels() * std::min(width, s.channels)), [&](int64_t begin, int64_t end) {
    Buffer<T> work(s.taps() * width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % count * width;
      task(i / count, first, std::min(width, s.channels - first), work.data());
    }
  });
}

template <class T>
void convolve(const Shape& s, const Maps& maps, const T* input, const T* kernels, T* out, Parallel& parallel) {
  const Plan<T> plan(s);
  if (maps.cells) {
    const auto kernel = SEGOPS_BY_ISA(convolve_cells<T>);
    each_block_of_channels<T>(maps.batch, s, parallel, [&](int64_t n, int64_t first, int64_t count, T* work) {
      const int64_t at = n * s.channels * s.pixels() + first;
      const T* k = kernels + (maps.kernel_item(n) * s.channels + first) * s.taps();
      kernel(plan, input + at, k, count, work, out + at);
    });
    return;
  }
  const auto kernel = SEGOPS_BY_ISA(convolve_plane<T>);
  parallel.range(maps.batch * s.channels, grain(s.pixels()), [&](int64_t begin, int64_t end) {
    PaddedPlane<T> padded(s);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = maps.kernel_item(i / s.channels) * s.channels + i % s.channels;
      kernel(plan, padded.read(input + i * s.pixels()), kernels + k * s.taps(), out + i * s.pixels());
    }
  });
}

// out (kernel batch, channels, taps): the sums over pixels of grad times the input that a tap reads. Images that share
// a kernel are added one after the other, by one thread.
template <class T>
void differentiate(const Shape& s, const Maps& maps, const T* grad, const T* input, T* out, Parallel& parallel) {
  const Plan<T> plan(s);
  if (maps.cells) {
    const auto kernel = SEGOPS_BY_ISA(differentiate_cells<T>);
    each_block_of_channels<T>(maps.kernel_batch, s, parallel, [&](int64_t k, int64_t first, int64_t count, T* work) {
      const Range images = maps.images(k);
      const int64_t step = s.channels * s.pixels(), at = images.begin * step + first;
      kernel(plan, grad + at, input + at, step, images.end - images.begin, count, work,
             out + (k * s.channels + first) * s.taps());
    });
    return;
  }
  const auto kernel = SEGOPS_BY_ISA(differentiate_plane<T>);
  const bool narrow = s.x.size < kLanes<T>;  // a row of grad is no whole piece
  T ones[2 * kLanes<T>] = {};
  std::fill_n(ones + kLanes<T>, kLanes<T>, T(1));
  parallel.range(maps.kernel_batch * s.channels, grain(s.pixels()), [&](int64_t begin, int64_t end) {
    PaddedPlane<T> padded(s), padded_grad(s);
    for (int64_t i = begin; i < end; ++i) {
      T* to = out + i * s.taps();
      std::fill_n(to, s.taps(), T(0));
      const Range images = maps.images(i / s.channels);
      for (int64_t n = images.begin; n < images.end; ++n) {
        const int64_t at = (n * s.channels + i % s.channels) * s.pixels();
        const T* g = narrow ? padded_grad.read(grad + at) : grad + at;
        kernel(plan, ones, g, narrow ? s.padded_width<T>() : s.x.size, padded.read(input + at), to);
      }
    }
  });
}

}  // namespace segops::depthwise
