// Messages of a convolutional CRF; see segops/reference/conv_crf.py.
//
// A tile of pixels, with the border that its windows reach over, is copied to where the cache has it, zeros beyond the
// map. The weights of a vector of pixels, one for each place of the window, are made once and used for all channels:
// neither they nor the unfolded maps are ever in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::conv_crf {

constexpr int64_t kTileRows = 8, kTileColumns = 64;

template <class T>
constexpr int kLanes = 64 / sizeof(T);  // of one vector, on every instruction set

struct Shape {
  int64_t batch, channels, depth, height, width;  // depth: of the colours
  int64_t window_height, window_width;

  int64_t pixels() const { return height * width; }
  int64_t window() const { return window_height * window_width; }
  int64_t tile_rows() const { return kTileRows + window_height - 1; }
  int64_t tile_stride() const { return (kTileColumns + window_width - 1 + 15) / 16 * 16; }
  int64_t tile_plane() const { return tile_rows() * tile_stride(); }
  int64_t across() const { return (width + kTileColumns - 1) / kTileColumns; }
  int64_t tiles() const { return batch * across() * ((height + kTileRows - 1) / kTileRows); }
};

// The pixels [y, y + rows) x [x, x + columns) of image n.
struct Tile {
  int64_t n, y, x, rows, columns;

  Tile(const Shape& s, int64_t i) {
    const int64_t each = s.tiles() / s.batch;
    n = i / each;
    y = i % each / s.across() * kTileRows;
    x = i % s.across() * kTileColumns;
    rows = std::min(kTileRows, s.height - y);
    columns = std::min(kTileColumns, s.width - x);
  }
  int64_t offset(const Shape& s, int64_t planes) const { return n * planes * s.pixels() + y * s.width + x; }
};

// Planes of a tile with its border.
template <class T>
class TilePlanes {
 public:
  TilePlanes(const Shape& s, int64_t planes) : planes_(planes), data_(std::max<int64_t>(1, planes * s.tile_plane())) {}

  const T* read(const Shape& s, const Tile& tile, const T* maps) {
    const int64_t top = tile.y - s.window_height / 2, left = tile.x - s.window_width / 2;
    const int64_t begin = std::max<int64_t>(0, left), end = std::min(s.width, left + s.tile_stride());
    T* to = data_.data();
    for (int64_t plane = 0; plane < planes_; ++plane)
      for (int64_t r = 0; r < s.tile_rows(); ++r, to += s.tile_stride()) {
        std::fill_n(to, s.tile_stride(), T(0));
        const int64_t y = top + r;
        if (y < 0 || y >= s.height) continue;
        std::memcpy(to + (begin - left), maps + ((tile.n * planes_ + plane) * s.height + y) * s.width + begin,
                    (end - begin) * sizeof(T));
      }
    return data_.data();
  }

 private:
  int64_t planes_;
  Buffer<T> data_;
};

// Weights of the window, (window height, window width).
template <class T>
struct Tables {
  const T *spatial, *bilateral;
};

// What a thread adds up of the gradients of the tables: vectors of a tile, and the sums of all tiles.
template <class T>
struct Sums {
  Buffer<T> spatial, bilateral;
  Buffer<double> total_spatial, total_bilateral;
  explicit Sums(const Shape& s)
      : spatial(s.window() * kLanes<T>),
        bilateral(s.window() * kLanes<T>),
        total_spatial(s.window()),
        total_bilateral(s.window()) {
    std::fill_n(total_spatial.data(), s.window(), 0.0);
    std::fill_n(total_bilateral.data(), s.window(), 0.0);
  }
};

#define SEGOPS_ISA_FILE "segops/conv_crf_isa.h"
#include "segops/foreach_isa.h"

template <class T>
void message(const Shape& s, const T* values, const T* colors, Tables<T> tables, T* out, Parallel& parallel) {
  const auto kernel = SEGOPS_BY_ISA(message_tile<T>);
  parallel.range(s.tiles(), 1, [&](int64_t begin, int64_t end) {
    TilePlanes<T> value_planes(s, s.channels), color_planes(s, s.depth);
    Buffer<T> weights(s.window() * kLanes<T>);
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile(s, i);
      kernel(s, tile, value_planes.read(s, tile, values), color_planes.read(s, tile, colors), tables, weights.data(),
             out + tile.offset(s, s.channels));
    }
  });
}

// grad_colors (N, D, H, W); grad_spatial and grad_bilateral (window height, window width).
template <class T>
void message_backward(const Shape& s, const T* grad, const T* values, const T* colors, const T* bilateral,
                      T* grad_colors, T* grad_spatial, T* grad_bilateral, Parallel& parallel) {
  const auto kernel = SEGOPS_BY_ISA(differentiate_tile<T>);
  const int threads = int(std::clamp<int64_t>(s.tiles(), 1, parallel.threads()));
  std::vector<Sums<T>> sums;
  for (int i = 0; i < threads; ++i) sums.emplace_back(s);
  parallel.run(threads, [&](int thread) {
    TilePlanes<T> grad_planes(s, s.channels), value_planes(s, s.channels), color_planes(s, s.depth);
    Buffer<T> likeness(s.window() * kLanes<T>), products(2 * s.window() * kLanes<T>);
    const int64_t end = Parallel::cut(s.tiles(), thread + 1, threads);
    for (int64_t i = Parallel::cut(s.tiles(), thread, threads); i < end; ++i) {
      const Tile tile(s, i);
      kernel(s, tile, grad_planes.read(s, tile, grad), value_planes.read(s, tile, values),
             color_planes.read(s, tile, colors), bilateral, likeness.data(), products.data(), sums[thread],
             grad_colors + tile.offset(s, s.depth));
    }
  });
  for (int64_t t = 0; t < s.window(); ++t) {
    double spatial = 0, weighted = 0;
    for (const Sums<T>& part : sums) {
      spatial += part.total_spatial[t];
      weighted += part.total_bilateral[t];
    }
    grad_spatial[t] = T(spatial);
    grad_bilateral[t] = T(weighted);
  }
}

}  // namespace segops::conv_crf
