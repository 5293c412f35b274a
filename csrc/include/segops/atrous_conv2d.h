// Convolutions with holes, of stride 1, without the multiplications by padding. No torch in here.
//
// A tap of the kernel is a product of matrices over the rectangle of pixels whose source lies in the map; at the rates
// of segmentation that is often less than half of it. Three products are needed, and two ways to take them:
//
// Convolution (forward, and backward to the input with the kernel turned around). The source is copied row by row, as
// [row][channel][column], once for all taps and all kernels: then the pixels of a row that a tap reaches are
// neighbours, whatever its shift, and nothing is copied for a tap. A tile of the result is summed over all taps before
// it is stored.
//
// Gradient of the weights. The source comes as panels of a few channels, [pixel][channel], the gradient likewise; a tap
// multiplies the rows of its rectangle.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/tile.h"

namespace segops::atrous {

constexpr int64_t kPanel = 32;    // channels side by side in vectors: two registers of AVX-512
constexpr int64_t kLeft = 12;     // channels side by side that are spread from memory: rows of a product
constexpr int64_t kBlock = 256;   // channels of a result's tile
constexpr int64_t kPixels = 256;  // pixels of it, at most
constexpr int64_t kDepth = 128;   // of a product at a time

inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Some channels of images: `step` is from pixel to pixel where `last`, else from plane to plane.
template <class T>
struct View {
  T* data;
  int64_t step, image;  // from image to image
  bool last;

  View of(int64_t n) const { return {data + n * image, step, image, last}; }
};

// A map (N, C, H, W); in memory pixel by pixel where `last`, else plane by plane.
template <class T>
struct Map {
  T* data;
  int64_t batch, channels, height, width;
  bool last;

  int64_t pixels() const { return height * width; }
  T* image(int64_t n) const { return data + n * channels * pixels(); }
  View<T> from_channel(int64_t c) const {
    return {data + c * (last ? 1 : pixels()), last ? channels : pixels(), channels * pixels(), last};
  }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return std::max<int64_t>(end - begin, 0); }
  // Those that a shift leaves inside of [0, count).
  Range reaching(int64_t shift, int64_t count) const { return {std::max(begin, -shift), std::min(end, count - shift)}; }
};

// Where the taps of a kernel read: tap (i, j) of pixel (y, x) at (y + first_y + i step_y, x + first_x + j step_x).
struct Taps {
  int64_t height, width, first_y, first_x, step_y, step_x;

  int64_t count() const { return height * width; }
  int64_t row(int64_t i) const { return first_y + i * step_y; }
  int64_t column(int64_t j) const { return first_x + j * step_x; }
  Taps turned() const { return {height, width, -first_y, -first_x, -step_y, -step_x}; }
};

// A kernel (results, sources, taps) whose sources begin at a channel of the source map. `element` and `source_step` are
// the strides of results and of sources in `weight`.
template <class T>
struct Term {
  Taps taps;
  const T* weight;
  int64_t result_step, source_step, source, depth;
  const T* packed = nullptr;  // [tap][panel of results][source][kPanel]
};

// Some channels of the result, and the kernels that are summed there.
template <class T>
struct Target {
  int64_t first, count;
  std::vector<Term<T>> terms;

  int64_t panels() const { return parts_of(count, kPanel); }
};

struct Tile {
  Range y, x;
  int64_t pixels() const { return y.size() * x.size(); }
};

// What a thread does next: some channels of a tile.
template <class T>
struct Piece {
  const Target<T>* target;
  Range channels;
  Tile tile;
};

// A gradient of weights (results, sources, taps) of results from `first` of the gradient, sources from `source`.
template <class T>
struct WeightGradient {
  Taps taps;
  int64_t first, count, source, depth;
  T* out;
  const T* packed = nullptr;  // the gradient as [image][block of results][pixel][kLeft]

  int64_t blocks() const { return parts_of(count, kLeft); }
};

#define SEGOPS_ISA_FILE "segops/atrous_conv2d_isa.h"
#include "segops/foreach_isa.h"

// Copies channels of images of so many pixels, in any layouts.
template <class T>
void copy_channels(const View<const T>& from, const View<T>& to, int64_t batch, int64_t channels, int64_t pixels,
                   Parallel& parallel) {
  constexpr int64_t kStep = 64;  // pixels that are transposed together
  const int64_t steps = parts_of(pixels, kStep);
  parallel.range(batch * steps, 1 + (1 << 14) / (std::min(kStep, pixels) * channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % steps * kStep;
      SEGOPS_BY_ISA(copy_pixels<T>)
      (from.of(i / steps), to.of(i / steps), channels, {first, std::min(pixels, first + kStep)});
    }
  });
}

// Cuts a map into tiles: a few rows, or a part of one.
inline std::vector<Tile> tiles_of(int64_t height, int64_t width) {
  const int64_t across = parts_of(width, kPixels), rows = std::max<int64_t>(1, kPixels / width);
  std::vector<Tile> tiles;
  for (int64_t y = 0; y < height; y += rows)
    for (int64_t i = 0; i < across; ++i)
      tiles.push_back({{y, std::min(height, y + rows)}, {width * i / across, width * (i + 1) / across}});
  return tiles;
}

// Multiplications of a tile, by channels of the result.
template <class T>
int64_t cost(const Target<T>& target, const Tile& tile, int64_t height, int64_t width) {
  int64_t sum = tile.pixels();
  for (const Term<T>& term : target.terms) {
    int64_t rows = 0, columns = 0;
    for (int64_t i = 0; i < term.taps.height; ++i) rows += tile.y.reaching(term.taps.row(i), height).size();
    for (int64_t j = 0; j < term.taps.width; ++j) columns += tile.x.reaching(term.taps.column(j), width).size();
    sum += rows * columns * term.depth;
  }
  return sum;
}

template <class T>
struct Work {
  std::vector<Piece<T>> pieces;
  std::vector<int64_t> before;  // the cost of all pieces before each, and of all

  Work(const std::vector<Target<T>>& targets, const Map<const T>& source, const Map<T>& result) {
    const std::vector<Tile> tiles = tiles_of(result.height, result.width);
    before.push_back(0);
    for (const Target<T>& target : targets)
      for (int64_t c = 0; c < target.count; c += kBlock)
        for (const Tile& tile : tiles) {
          const Range channels{c, std::min(target.count, c + kBlock)};
          pieces.push_back({&target, channels, tile});
          before.push_back(before.back() + channels.size() * cost(target, tile, source.height, source.width));
        }
  }

  // The pieces of thread i of n, about as much work as the others'.
  Range of(int i, int n) const {
    const auto find = [&](int64_t k) {
      return int64_t(std::lower_bound(before.begin(), before.end(), Parallel::cut(before.back(), int(k), n)) -
                     before.begin());
    };
    return {find(i), i + 1 == n ? int64_t(pieces.size()) : find(i + 1)};
  }
};

// All weights in panels; the memory that they are in.
template <class T>
Buffer<T> pack_weights(std::vector<Target<T>>& targets, Parallel& parallel) {
  int64_t size = 0;
  for (const Target<T>& target : targets)
    for (const Term<T>& term : target.terms) size += term.taps.count() * target.panels() * term.depth * kPanel;
  Buffer<T> packed(size);
  T* to = packed.data();
  for (Target<T>& target : targets)
    for (Term<T>& term : target.terms) {
      term.packed = to;
      parallel.range(target.panels(), 1, [&](int64_t begin, int64_t end) {
        SEGOPS_BY_ISA(pack_panels<T>)(term, target, {begin, end}, to);
      });
      to += term.taps.count() * target.panels() * term.depth * kPanel;
    }
  return packed;
}

// result = the sum of the kernels over source, on top of the bias if there is one.
template <class T>
void convolve(const Map<const T>& source, std::vector<Target<T>> targets, const T* bias, const Map<T>& result,
              Parallel& parallel) {
  const Buffer<T> weights = pack_weights(targets, parallel);
  Buffer<T> rows(source.channels * source.pixels());
  const Work<T> work(targets, source, result);
  const int threads = int(std::min<int64_t>(parallel.threads(), work.pieces.size()));
  for (int64_t n = 0; n < source.batch; ++n) {
    parallel.range(source.height, 1, [&](int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(pack_rows<T>)(source, n, {begin, end}, rows.data());
    });
    parallel.run(threads, [&](int i) {
      const Range mine = work.of(i, threads);
      Buffer<T> sums(kPixels * kBlock);
      for (int64_t p = mine.begin; p < mine.end; ++p)
        SEGOPS_BY_ISA(convolve_piece<T>)(work.pieces[p], rows.data(), source, bias, result, n, sums.data());
    });
  }
}

// The gradients of kernels whose sources are the same channels: a family each.
template <class T>
void weight_gradients(const Map<const T>& source, const Map<const T>& grad,
                      std::vector<std::vector<WeightGradient<T>>> families, Parallel& parallel) {
  int64_t blocks = 0, most = 0;
  for (const auto& family : families) {
    int64_t cells = 0;
    for (const WeightGradient<T>& one : family) {
      blocks += one.blocks();
      cells += one.blocks() * kLeft * kPanel * one.taps.count();
    }
    most = std::max(most, cells);
  }
  const int64_t block = grad.batch * grad.pixels() * kLeft;
  Buffer<T> packed(blocks * block);
  T* to = packed.data();
  for (auto& family : families)
    for (WeightGradient<T>& one : family) {
      one.packed = to;
      parallel.range(one.blocks(), 1,
                     [&](int64_t begin, int64_t end) { SEGOPS_BY_ISA(pack_gradient<T>)(one, grad, {begin, end}, to); });
      to += one.blocks() * block;
    }
  const int64_t panels = parts_of(families[0][0].depth, kPanel), pieces = int64_t(families.size()) * panels;
  // Where there are fewer panels than threads, several have one, and each some of its results.
  const int64_t splits = std::clamp<int64_t>(parts_of(parallel.threads(), pieces), 1, families[0][0].blocks());
  const int threads = int(std::min<int64_t>(parallel.threads(), pieces * splits));
  parallel.run(threads, [&](int i) {
    Buffer<T> panel(source.pixels() * kPanel), sums(most);
    const int64_t end = Parallel::cut(pieces * splits, i + 1, threads);
    for (int64_t k = Parallel::cut(pieces * splits, i, threads); k < end; ++k) {
      const auto& family = families[k / splits / panels];
      SEGOPS_BY_ISA(differentiate_panel<T>)(family, source, grad, k / splits % panels * kPanel, int(k % splits),
                                            int(splits), panel.data(), sums.data());
    }
  });
}

}  // namespace segops::atrous
