// What a convolutional CRF does between two messages; see segops/reference/conv_crf.py.
//
// Of a map of logits, a tile of pixels of all labels is in cache at a time: there the message of the cells is
// interpolated, added, and normalised, row by row; only the means of the cells, or the result, leave it. Backward, all
// this is done again, and nothing of the size of the map is kept.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::conv_crf_update {

constexpr int64_t kColumns = 64;  // pixels of a tile, where cells are not wider
template <class T>
constexpr int kLanes = 64 / sizeof(T);  // of one vector, on every instruction set

// Rows, or columns, and the cells over them; a border that the cells do not divide cuts the first and the last one.
struct Axis {
  int64_t pixels, blur, cells, before;  // before: how far the first cell reaches beyond the map

  Axis(int64_t pixels, int64_t blur)
      : pixels(pixels), blur(blur), cells((pixels + blur - 1) / blur), before((cells * blur - pixels + 1) / 2) {}
  int64_t inside(int64_t at) const { return std::clamp<int64_t>(at, 0, pixels); }
  int64_t begin(int64_t cell) const { return inside(cell * blur - before); }
  int64_t cell(int64_t pixel) const { return (pixel + before) / blur; }
  // Gap i is what lies between the middles of the cells i - 1 and i, or of one of them and the border.
  int64_t gap_begin(int64_t gap) const { return inside((gap - 1) * blur + blur / 2 - before); }
  int64_t gap(int64_t pixel) const { return from_first_gap(pixel) / blur; }
  int64_t below(int64_t gap) const { return std::max<int64_t>(gap - 1, 0); }
  int64_t above(int64_t gap) const { return std::min(gap, cells - 1); }
  // The part that the cell above has in a pixel of a gap.
  double share(int64_t pixel) const { return (from_first_gap(pixel) % blur + (blur % 2 ? 0 : 0.5)) / double(blur); }

 private:
  int64_t from_first_gap(int64_t pixel) const { return pixel + before + blur - blur / 2; }
};

// What is asked for; the mean of one pixel is the pixel.
template <class T>
struct Update {
  int64_t batch, labels;
  Axis rows, columns;
  bool softmax, means;
  bool shared;       // one weight for all labels
  Buffer<T> weight;  // of each label
  Buffer<T> share;   // of each column; a vector more

  Update(int64_t batch, int64_t labels, int64_t height, int64_t width, int64_t blur, bool softmax, bool means,
         const T* weights, bool shared)
      : batch(batch),
        labels(labels),
        rows(height, blur),
        columns(width, blur),
        softmax(softmax),
        means(means && blur > 1),
        shared(shared),
        weight(labels),
        share(width + kLanes<T>) {
    for (int64_t l = 0; l < labels; ++l) weight[l] = weights[shared ? 0 : l];
    std::fill_n(share.data(), share.size(), T(0));
    for (int64_t x = 0; x < width; ++x) share[x] = T(columns.share(x));
  }
  int64_t blur() const { return rows.blur; }
  int64_t pixels() const { return rows.pixels * columns.pixels; }
  int64_t cells() const { return rows.cells * columns.cells; }
  int64_t tile_cells() const { return std::max<int64_t>(1, kColumns / blur()); }
  int64_t tiles() const { return (columns.cells + tile_cells() - 1) / tile_cells(); }
  // Of a label in a tile: whole vectors, and one more that may be written past the end.
  int64_t stride() const { return (std::min(columns.pixels, tile_cells() * blur()) / kLanes<T> + 2) * kLanes<T>; }
  // A softmax does not see what all labels have in common: with one weight, log_softmax takes but the maximum.
  bool needs_sums() const { return !(softmax && shared); }
};

// The cells [first, last) of a row of them, and their columns [begin, end).
struct Tile {
  int64_t first, last, begin, end;

  template <class T>
  Tile(const Update<T>& u, int64_t i)
      : first(i * u.tile_cells()),
        last(std::min(u.columns.cells, first + u.tile_cells())),
        begin(u.columns.begin(first)),
        end(u.columns.begin(last)) {}
  int64_t columns() const { return end - begin; }
};

constexpr int64_t kNone = -2;  // neither a row of cells or a gap, nor the one before the first

// A thread's room: maps of a tile (L, stride), and what it needs of one label or one vector of pixels. The message in
// `below` and `above` is of `gap`.
template <class T>
struct Work {
  Buffer<T> z, sums, below, above, row, vectors;
  int64_t gap = kNone;
  explicit Work(const Update<T>& u)
      : z(u.labels * u.stride()),
        sums(u.labels * u.stride()),
        below(u.labels * u.stride()),
        above(u.labels * u.stride()),
        row(u.tile_cells() + 2),
        vectors(u.labels * kLanes<T>) {
    std::fill_n(vectors.data(), vectors.size(), T(0));
  }
};

template <class T>
struct GradientWork : Work<T> {
  Buffer<T> grad, sums_above, weights, shift;
  int64_t cell = kNone;  // the row of cells that `grad` is of
  explicit GradientWork(const Update<T>& u)
      : Work<T>(u),
        grad(u.labels * u.stride()),
        sums_above(u.labels * u.stride()),
        weights(u.labels * kLanes<T>),
        shift(u.stride()) {}
};

#define SEGOPS_ISA_FILE "segops/conv_crf_update_isa.h"
#include "segops/foreach_isa.h"

// logits (N, L, H, W) and message (N, L, h, w) to the shape of one of them.
template <class T>
void update(const Update<T>& u, const T* logits, const T* message, T* out, Parallel& parallel) {
  const auto kernel = SEGOPS_BY_ISA(update_row<T>);
  const int64_t map = u.labels * u.pixels(), cells = u.labels * u.cells();
  parallel.range(u.batch * u.rows.cells, 1, [&](int64_t begin, int64_t end) {
    Work<T> work(u);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / u.rows.cells;
      kernel(u, i % u.rows.cells, logits + n * map, message + n * cells, out + n * (u.means ? cells : map), work);
    }
  });
}

// grad_weight (L). Every other gap shares no row of cells with another: first those, then the rest, so that results
// repeat.
template <class T>
void update_backward(const Update<T>& u, const T* grad, const T* logits, const T* message, T* grad_logits,
                     T* grad_message, double* grad_weight, Parallel& parallel) {
  const auto kernel = SEGOPS_BY_ISA(differentiate_gap<T>);
  const int64_t map = u.labels * u.pixels(), cells = u.labels * u.cells(), gaps = u.rows.cells + 1;
  std::fill_n(grad_message, u.batch * cells, T(0));
  Buffer<double> weights(u.batch * gaps * u.labels);
  for (int64_t odd = 0; odd < 2; ++odd) {
    const int64_t each = (gaps + 1 - odd) / 2;
    parallel.range(u.batch * each, 1, [&](int64_t begin, int64_t end) {
      GradientWork<T> work(u);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / each, gap = i % each * 2 + odd;
        kernel(u, gap, grad + n * (u.means ? cells : map), logits + n * map, message + n * cells, grad_logits + n * map,
               grad_message + n * cells, weights.data() + (n * gaps + gap) * u.labels, work);
      }
    });
  }
  std::fill_n(grad_weight, u.labels, 0.0);
  for (int64_t i = 0; i < weights.size(); ++i) grad_weight[i % u.labels] += weights[i];
}

}  // namespace segops::conv_crf_update
