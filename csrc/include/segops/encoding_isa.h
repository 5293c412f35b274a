// No include guard: compiled once for each instruction set (see foreach_isa.h) by encoding.h, which explains Sizes,
// Codes and Slopes. All functions take the tiles of the pixels [begin, end) of one image.
#include "segops/tile_product_isa.h"

constexpr int64_t kRun = 64;  // channels summed before they are added to the sum of all: rounding

// Rows of a matrix as products read them that sum over them, to their place.
template <class S, class E = Element<S>, class T = Sum<S>>
void pack_rows(const T* x, int64_t rows, int64_t columns, E* to) {
  if constexpr (kNumbers<E> == 1)
    std::copy_n(x, rows * columns, to);
  else
    paired_rows(x, rows, columns, to);
}

// `count` pixels into work.x, less the mean codeword, as products read them that sum over channels, and their squared
// lengths.
template <class T>
const T* center_tile(const Sizes& s, const Codes<T>& codes, const T* x, int count, Work<T>& work, T* lengths) {
  T* tile = work.x.data();
  constexpr int W = kWidth<T>;
  for (int i = 0; i < kTile; ++i) lengths[i] = 0;
  for (int64_t first = 0; first < s.channels; first += kRun) {
    T run[kTile] = {};
    for (int64_t d = first; d < std::min(first + kRun, s.channels); ++d) {
      T* to = tile + d * kTile;
      __builtin_memcpy(to, x + d * s.pixels, count * sizeof(T));
      for (int at = 0; at < count; at += W) {
        const Wide<T> value = load<Wide<T>>(to + at) - codes.mean[d];
        store(to + at, value);
        store(run + at, fma(value, value, load<Wide<T>>(run + at)));
      }
    }
    for (int i = 0; i < kTile; ++i) lengths[i] += run[i];
  }
  return tile;
}

// Of bfloat16, from which no mean is taken off.
inline const Pair* center_tile(const Sizes& s, const Codes<Pair>&, const Bfloat16* x, int count, Work<Bfloat16>& work,
                               float* lengths) {
  using V = Wide<float>;
  pack_tile(x, s.pixels, s.channels, count, work.x.data());
  const Pair* rows = paired_rows(work.x.data(), s.channels, int64_t(kTile), work.x_rows.data());
  const int64_t depth = elements<Pair>(s.channels);
  for (int at = 0; at < kTile; at += kWidth<float>) {
    V sum = {};
    for (int64_t first = 0; first < depth; first += kRun / 2) {
      V run = {};
      for (int64_t d = first; d < std::min(first + kRun / 2, depth); ++d) {
        const auto pairs = load_elements(rows + d * kTile + at);
        run = multiply_add(pairs, pairs, run);
      }
      sum += run;
    }
    store(lengths + at, sum);
  }
  return rows;
}

// out (K, kTile) += the products of vectors (D, K) with the pixels of a tile.
template <class E, class T = Total<E>>
void add_products(const Sizes& s, const E* vectors, int count, const E* tile, T* out) {
  for (int64_t d = 0; d < s.channels; d += kRun) {
    const int64_t first = d / kNumbers<E>;
    multiply_columns(s.count, count, vectors + first * s.count, s.count, tile + first * kTile,
                     elements<E>(std::min(kRun, s.channels - d)), out, int64_t(kTile), true);
  }
}

// Squared distances of a tile, and the soft assignments softmax(scale * distance).
template <class E, class T = Total<E>>
void assign_tile(const Sizes& s, const Codes<E>& codes, int count, const E* tile, const T* lengths, T* squares,
                 T* assignments) {
  constexpr int W = kWidth<T>;
  std::fill_n(squares, s.count * kTile, T(0));
  add_products(s, codes.columns, count, tile, squares);
  for (int64_t k = 0; k < s.count; ++k)
    for (int at = 0; at < kTile; at += W) {
      T* place = squares + k * kTile + at;
      // Not below 0 by rounding; in this order max() keeps what is not a number.
      const Wide<T> square = max(Wide<T>{}, load<Wide<T>>(lengths + at) + codes.squares[k] - 2 * load<Wide<T>>(place));
      store(place, square);
      store(assignments + k * kTile + at, codes.scale[k] * square);
    }
  softmax_tile(assignments, s.count, count);
}

// What the weights (K, kTile) of a tile's pixels add to the thread's sums: of pixels, and of the weights themselves.
template <class S>
void weigh_tile(const Sizes& s, const Sum<S>* weights, int count, Work<S>& work) {
  transpose_tile(weights, s.count, count, s.lanes, work.columns.data(), work.sums.data());
  multiply_tile(s.channels, s.lanes, paired_pixels(work.x.data()), work.columns.data(), elements<Element<S>>(count),
                work.total.data());
}

template <class S, class E = Element<S>, class T = Sum<S>>
void encode_tiles(const Sizes& s, const Codes<E>& codes, const S* x, int64_t begin, int64_t end, Work<S>& work) {
  T *squares = work.z.data(), *assignments = squares + s.count * kTile, lengths[kTile];
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    const E* tile = center_tile(s, codes, x + p, count, work, lengths);
    assign_tile(s, codes, count, tile, lengths, squares, assignments);
    weigh_tile(s, assignments, count, work);
  }
}

// Rows of grad (K, D), then of the codewords, negated, as blocks of kProductRows channels, each (2 K, its channels).
template <class S, class E = Element<S>, class T = Sum<S>>
void pack_descent(const Sizes& s, const Codes<E>& codes, const T* grad, E* to) {
  Buffer<T> block(2 * s.count * kProductRows);
  for (int64_t first = 0; first < s.channels; first += kProductRows) {
    const int64_t width = std::min<int64_t>(kProductRows, s.channels - first);
    for (int64_t k = 0; k < s.count; ++k)
      for (int64_t d = 0; d < width; ++d) {
        block[k * width + d] = grad[k * s.channels + first + d];
        block[(s.count + k) * width + d] = -codes.rows[k * s.channels + first + d];
      }
    pack_rows<S>(block.data(), 2 * s.count, width, to);
    to += elements<E>(2 * s.count) * width;
  }
}

// The gradient of x, in work.y: [channel][pixel] = sum over k of assignment g_k + pull (x - c_k). Pulls lie behind
// assignments.
template <class S, class E = Element<S>, class T = Sum<S>>
void descend_tile(const Sizes& s, const E* descent, const T* assignments, const T* pulled, int count, Work<S>& work) {
  const int64_t depth = elements<E>(2 * s.count);
  const E* rows = paired_rows(assignments, 2 * s.count, int64_t(kTile), work.z_rows.data());
  T* out = work.y.data();
  for (int64_t first = 0; first < s.channels; first += kProductRows) {
    const int64_t channels = std::min<int64_t>(kProductRows, s.channels - first);
    multiply_columns(channels, count, descent + depth * first, channels, rows, depth, out + first * kTile,
                     int64_t(kTile), false);
    for (int64_t d = first; d < first + channels; ++d)
      for (int i = 0; i < kTile; ++i) out[d * kTile + i] += widen(work.x[d * kTile + i]) * pulled[i];
  }
}

// From slopes of assignments to pulls (2 times the gradients of squared distances), and their sums over the codewords;
// to the thread's sums the gradient of the scale and the assignments.
template <class S, class E = Element<S>, class T = Sum<S>>
void pull_tile(const Sizes& s, const Codes<E>& codes, int count, const T* squares, const T* assignments, T* pulls,
               T* pulled, Work<S>& work) {
  softmax_backward_tile(assignments, pulls, s.count, count);
  for (int i = 0; i < kTile; ++i) pulled[i] = 0;
  for (int64_t k = 0; k < s.count; ++k) {
    const T twice = 2 * codes.scale[k];
    T slope = 0, sum = 0;
    for (int i = 0; i < count; ++i) {
      slope += pulls[k * kTile + i] * squares[k * kTile + i];
      sum += assignments[k * kTile + i];
    }
    for (int i = 0; i < kTile; ++i) {
      const T pull = widen(narrow<S>(pulls[k * kTile + i] * twice));
      pulls[k * kTile + i] = pull;
      pulled[i] += pull;
    }
    work.scale[k] += slope;
    work.assigned[k] += sum;
  }
}

// grad_x, and the thread's sums.
template <class S, class E = Element<S>, class T = Sum<S>>
void differentiate_tiles(const Sizes& s, const Codes<E>& codes, const Slopes<E>& slopes, const S* x, S* grad_x,
                         int64_t begin, int64_t end, Work<S>& work) {
  T *squares = work.z.data(), lengths[kTile], pulled[kTile];
  T *assignments = squares + s.count * kTile, *pulls = assignments + s.count * kTile;
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    const E* tile = center_tile(s, codes, x + p, count, work, lengths);
    assign_tile(s, codes, count, tile, lengths, squares, assignments);
    for (int64_t k = 0; k < s.count; ++k) std::fill_n(pulls + k * kTile, kTile, slopes.offsets[k]);
    add_products(s, slopes.columns, count, tile, pulls);
    pull_tile(s, codes, count, squares, assignments, pulls, pulled, work);
    descend_tile(s, slopes.descent, assignments, pulled, count, work);
    unpack_tile(work.y.data(), s.channels, count, grad_x + p, s.pixels, false);
    weigh_tile(s, pulls, count, work);
  }
}
