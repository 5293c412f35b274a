// No include guard: compiled once for each instruction set (see foreach_isa.h). The loops of atrous_conv2d.h.
#include "segops/tile_product_isa.h"

// to[column][row] = from[row][column].
SEGOPS_INLINE void transpose_eight(const float* from, int64_t from_step, float* to, int64_t to_step) {
  F8 v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = load<F8>(from + i * from_step);
  transpose(v);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) store(to + i * to_step, v[i]);
}
SEGOPS_INLINE void transpose_eight(const double* from, int64_t from_step, double* to, int64_t to_step) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) to[j * to_step + i] = from[i * from_step + j];
}
template <class T>
void transpose_matrix(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8)
      transpose_eight(from + r * from_step + c, from_step, to + c * to_step + r, to_step);
    for (; c < columns; ++c)
      for (int64_t i = r; i < r + 8; ++i) to[c * to_step + i] = from[i * from_step + c];
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * to_step + r] = from[r * from_step + c];
}

// The same for large matrices: through a small one, since rows of a power of two apart share few lines of a cache.
template <class T>
void transpose_large(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
  constexpr int64_t kRows = 256, kColumns = 16;
  T block[kRows * kColumns];
  for (int64_t r = 0; r < rows; r += kRows)
    for (int64_t c = 0; c < columns; c += kColumns) {
      const int64_t count = std::min(kRows, rows - r), width = std::min(kColumns, columns - c);
      transpose_matrix(from + r * from_step + c, from_step, count, width, block, kRows);
      for (int64_t i = 0; i < width; ++i)
        __builtin_memcpy(to + (c + i) * to_step + r, block + i * kRows, count * sizeof(T));
    }
}

template <class T>
void copy_pixels(const View<const T>& from, const View<T>& to, int64_t channels, Range pixels) {
  const T* source = from.data + pixels.begin * (from.last ? from.step : 1);
  T* target = to.data + pixels.begin * (to.last ? to.step : 1);
  if (from.last != to.last) {
    const int64_t rows = from.last ? pixels.size() : channels, columns = from.last ? channels : pixels.size();
    transpose_large(source, from.step, rows, columns, target, to.step);
    return;
  }
  const int64_t count = from.last ? pixels.size() : channels, size = from.last ? channels : pixels.size();
  for (int64_t i = 0; i < count; ++i) __builtin_memcpy(target + i * to.step, source + i * from.step, size * sizeof(T));
}

// Channels [first, first + count) of `pixels` pixels of an image as [pixel][lanes]; what is behind `count` stays as it
// is.
template <class T>
void gather_channels(const Map<const T>& map, int64_t n, int64_t first, int64_t count, int64_t lanes, T* to) {
  if (map.last) {
    const T* from = map.image(n) + first;
    for (int64_t p = 0; p < map.pixels(); ++p, from += map.channels, to += lanes)
      __builtin_memcpy(to, from, count * sizeof(T));
  } else {
    constexpr int64_t kStep = 64;  // pixels whose target stays in the first-level cache
    const T* from = map.image(n) + first * map.pixels();
    for (int64_t p = 0; p < map.pixels(); p += kStep)
      transpose_matrix(from + p, map.pixels(), count, std::min(kStep, map.pixels() - p), to + p * lanes, lanes);
  }
}

// Rows of an image as [row][channel][column].
template <class T>
void pack_rows(const Map<const T>& map, int64_t n, Range rows, T* to) {
  const int64_t row = map.channels * map.width;
  if (map.last) {
    for (int64_t y = rows.begin; y < rows.end; ++y)
      transpose_matrix(map.image(n) + y * row, map.channels, map.width, map.channels, to + y * row, map.width);
    return;
  }
  constexpr int64_t kStep = 32;  // rows, and so pages written, at a time
  for (int64_t begin = rows.begin; begin < rows.end; begin += kStep)
    for (int64_t c = 0; c < map.channels; ++c) {
      const T* from = map.image(n) + c * map.pixels();
      for (int64_t y = begin; y < std::min(rows.end, begin + kStep); ++y)
        __builtin_memcpy(to + y * row + c * map.width, from + y * map.width, map.width * sizeof(T));
    }
}

template <class T>
void pack_panels(const Term<T>& term, const Target<T>& target, Range panels, T* packed) {
  const int64_t taps = term.taps.count(), panel_size = term.depth * kPanel;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int64_t first = panel * kPanel, count = std::min(kPanel, target.count - first);
    T* to = packed + panel * panel_size;
    for (int64_t l = 0; l < term.depth; ++l, to += kPanel)
      for (int64_t r = 0; r < kPanel; ++r) {
        const T* from = term.weight + (first + r) * term.result_step + l * term.source_step;
        for (int64_t t = 0; t < taps; ++t) to[t * target.panels() * panel_size + r] = r < count ? from[t] : T(0);
      }
  }
}

// The product with columns of a panel; in AVX-512 the last ones in half a register, where that holds them: 21 classes
// in 24 lanes instead of 32.
template <class T>
void multiply_panel(int64_t rows, int64_t columns, const Multiply<T, false>& product) {
#if SEGOPS_ISA_LEVEL == 2
  constexpr int W = kWidth<float>, kHalf = W / 2;
  if constexpr (std::is_same_v<T, float>) {
    const int64_t rest = columns % W;
    if (rest > 0 && rest <= kHalf) {
      const int64_t whole = columns - rest;
      const Multiply<T, false, F8> last{product.a,     product.a_stride,    product.b + whole,  product.b_stride,
                                        product.depth, product.out + whole, product.out_stride, product.add};
      each_block<T, kProductRows>(rows, whole, product);
      each_block<T, kProductRows, kHalf>(rows, rest, last);
      return;
    }
  }
#endif
  each_block<T, kProductRows>(rows, columns, product);
}

// Adds the products of one term to sums (pixel of the tile, lane).
template <class T>
void add_term(const Term<T>& term, const Piece<T>& piece, const T* rows, const Map<const T>& source, int64_t lanes,
              T* sums) {
  const int64_t panels = piece.target->panels(), begin = piece.channels.begin, width = piece.tile.x.size();
  for (int64_t i = 0; i < term.taps.height; ++i) {
    const int64_t down = term.taps.row(i);
    const Range y = piece.tile.y.reaching(down, source.height);
    if (!y.size()) continue;
    for (int64_t k = 0; k < term.depth; k += kDepth)
      for (int64_t j = 0; j < term.taps.width; ++j) {
        const int64_t right = term.taps.column(j);
        const Range x = piece.tile.x.reaching(right, source.width);
        if (!x.size()) continue;
        for (int64_t c = begin; c < piece.channels.end; c += kPanel) {
          const int64_t panel = (i * term.taps.width + j) * panels + c / kPanel;
          const T* weight = term.packed + (panel * term.depth + k) * kPanel;
          for (int64_t line = y.begin; line < y.end; ++line) {
            const T* from = rows + ((line + down) * source.channels + term.source + k) * source.width + x.begin + right;
            T* to = sums + ((line - piece.tile.y.begin) * width + x.begin - piece.tile.x.begin) * lanes + c - begin;
            multiply_panel(x.size(), std::min(kPanel, piece.channels.end - c),
                           Multiply<T, false>{from, source.width, weight, kPanel, std::min(kDepth, term.depth - k), to,
                                              lanes, true});
          }
        }
      }
  }
}

template <class T>
void convolve_piece(const Piece<T>& piece, const T* rows, const Map<const T>& source, const T* bias,
                    const Map<T>& result, int64_t n, T* sums) {
  const int64_t count = piece.channels.size(), lanes = parts_of(count, kPanel) * kPanel, pixels = piece.tile.pixels();
  const int64_t first = piece.target->first + piece.channels.begin;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < lanes; ++c) sums[p * lanes + c] = bias && c < count ? bias[first + c] : T(0);
  for (const Term<T>& term : piece.target->terms) add_term(term, piece, rows, source, lanes, sums);
  const int64_t width = piece.tile.x.size();
  for (int64_t y = piece.tile.y.begin; y < piece.tile.y.end; ++y, sums += width * lanes) {
    const int64_t pixel = y * result.width + piece.tile.x.begin;
    if (result.last)
      for (int64_t x = 0; x < width; ++x)
        __builtin_memcpy(result.image(n) + (pixel + x) * result.channels + first, sums + x * lanes, count * sizeof(T));
    else
      transpose_matrix(sums, lanes, width, count, result.image(n) + first * result.pixels() + pixel, result.pixels());
  }
}

template <class T>
void pack_gradient(const WeightGradient<T>& one, const Map<const T>& grad, Range blocks, T* packed) {
  const int64_t size = grad.pixels() * kLeft;
  for (int64_t n = 0; n < grad.batch; ++n)
    for (int64_t b = blocks.begin; b < blocks.end; ++b)
      gather_channels(grad, n, one.first + b * kLeft, std::min(kLeft, one.count - b * kLeft), kLeft,
                      packed + (n * one.blocks() + b) * size);
}

// Adds what one tap of blocks of results has from an image to sums [block][kLeft][kPanel].
template <class T>
void add_tap(const WeightGradient<T>& one, int64_t down, int64_t right, Range blocks, const Map<const T>& source,
             const Map<const T>& grad, int64_t n, int64_t lanes, const T* panel, T* sums) {
  const Range y = Range{0, grad.height}.reaching(down, source.height);
  const Range x = Range{0, grad.width}.reaching(right, source.width);
  if (!y.size() || !x.size()) return;
  const bool whole = right == 0 && x.size() == grad.width && grad.width == source.width;  // then rows are one line
  const int64_t step = std::max<int64_t>(1, 2 * kDepth / x.size());                       // rows at a time
  for (int64_t begin = y.begin; begin < y.end; begin += step) {
    const int64_t end = std::min(y.end, begin + step);
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      const T* left = one.packed + (n * one.blocks() + b) * grad.pixels() * kLeft;
      for (int64_t line = begin; line < end; line += whole ? step : 1)
        each_block<T, kProductRows>(
            std::min(kLeft, one.count - b * kLeft), lanes,
            Multiply<T, false>{left + (line * grad.width + x.begin) * kLeft, kLeft,
                               panel + ((line + down) * source.width + x.begin + right) * kPanel, kPanel,
                               (whole ? end - begin : 1) * x.size(), sums + (b - blocks.begin) * kLeft * kPanel, kPanel,
                               true});
    }
  }
}

// The gradients of kPanel sources of all kernels of a family, for part i of n of the results.
template <class T>
void differentiate_panel(const std::vector<WeightGradient<T>>& family, const Map<const T>& source,
                         const Map<const T>& grad, int64_t first, int i, int n, T* panel, T* sums) {
  const int64_t lanes = std::min(kPanel, family[0].depth - first);
  const auto part = [&](const WeightGradient<T>& one) {
    return Range{Parallel::cut(one.blocks(), i, n), Parallel::cut(one.blocks(), i + 1, n)};
  };
  int64_t size = 0;
  for (const auto& one : family) size += one.taps.count() * part(one).size() * kLeft * kPanel;
  std::fill(sums, sums + size, T(0));
  if (lanes < kPanel) std::fill(panel, panel + source.pixels() * kPanel, T(0));
  for (int64_t image = 0; image < source.batch; ++image) {
    gather_channels(source, image, family[0].source + first, lanes, kPanel, panel);
    T* to = sums;
    for (const auto& one : family)
      for (int64_t t = 0; t < one.taps.count(); ++t, to += part(one).size() * kLeft * kPanel)
        add_tap(one, one.taps.row(t / one.taps.width), one.taps.column(t % one.taps.width), part(one), source, grad,
                image, lanes, panel, to);
  }
  for (const auto& one : family) {
    const int64_t taps = one.taps.count(), begin = part(one).begin * kLeft, rows = part(one).size() * kLeft;
    for (int64_t r = 0; r < std::min(rows, one.count - begin); ++r) {
      T* out = one.out + ((begin + r) * one.depth + first) * taps;
      for (int64_t c = 0; c < lanes; ++c)
        for (int64_t t = 0; t < taps; ++t) out[c * taps + t] = sums[(t * rows + r) * kPanel + c];
    }
    sums += taps * rows * kPanel;
  }
}
