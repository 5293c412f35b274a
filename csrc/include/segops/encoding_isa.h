// No include guard: compiled once for each instruction set (see foreach_isa.h) by encoding.h, which explains Sizes,
// Codes and Slopes. All functions take the tiles of the pixels [begin, end) of one image.
#include "segops/tile_product_isa.h"

constexpr int kRun = 64;  // channels summed before they are added to the sum of all: rounding

// `count` pixels into a tile, less the mean codeword, and their squared lengths.
template <class T>
void center_tile(const Sizes& s, const Codes<T>& codes, const T* x, int count, T* tile, T* lengths) {
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
}

// out (K, kTile) += the products of vectors (D, K) with the pixels of a tile.
template <class T>
void add_products(const Sizes& s, const T* vectors, int count, const T* tile, T* out) {
  for (int64_t d = 0; d < s.channels; d += kRun)
    multiply_columns<T>(s.count, count, vectors + d * s.count, s.count, tile + d * kTile,
                        std::min<int64_t>(kRun, s.channels - d), out, kTile, true);
}

// Squared distances of a tile, and the soft assignments softmax(scale * distance).
template <class T>
void assign_tile(const Sizes& s, const Codes<T>& codes, int count, const T* tile, const T* lengths, T* squares,
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
template <class T>
void weigh_tile(const Sizes& s, const T* weights, int count, const T* tile, Work<T>& work) {
  transpose_tile(weights, s.count, count, s.lanes, work.columns.data(), work.sums.data());
  multiply_tile<T>(s.channels, s.lanes, tile, work.columns.data(), count, work.total.data());
}

template <class T>
void encode_tiles(const Sizes& s, const Codes<T>& codes, const T* x, int64_t begin, int64_t end, Work<T>& work) {
  T *tile = work.x.data(), *squares = work.z.data(), *assignments = squares + s.count * kTile, lengths[kTile];
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    center_tile(s, codes, x + p, count, tile, lengths);
    assign_tile(s, codes, count, tile, lengths, squares, assignments);
    weigh_tile(s, assignments, count, tile, work);
  }
}

// Rows of grad (K, D), then of the codewords, negated, as blocks of kProductRows channels, each (2 K, its channels).
template <class T>
void pack_descent(const Sizes& s, const Codes<T>& codes, const T* grad, T* to) {
  for (int64_t first = 0; first < s.channels; first += kProductRows) {
    const int64_t end = std::min(first + kProductRows, s.channels);
    for (int64_t k = 0; k < s.count; ++k)
      for (int64_t d = first; d < end; ++d) *to++ = grad[k * s.channels + d];
    for (int64_t k = 0; k < s.count; ++k)
      for (int64_t d = first; d < end; ++d) *to++ = -codes.rows[k * s.channels + d];
  }
}

// The gradient of x: out[channel][pixel] = sum over k of assignment g_k + pull (x - c_k). Pulls lie behind assignments.
template <class T>
void descend_tile(const Sizes& s, const T* descent, const T* assignments, const T* pulled, int count, const T* tile,
                  T* out) {
  constexpr int W = kWidth<T>;
  for (int64_t first = 0; first < s.channels; first += kProductRows) {
    const int64_t rows = std::min<int64_t>(kProductRows, s.channels - first);
    multiply_columns<T>(rows, count, descent + 2 * s.count * first, rows, assignments, 2 * s.count, out + first * kTile,
                        kTile, false);
    for (int64_t i = first * kTile; i < (first + rows) * kTile; i += W)
      store(out + i, fma(load<Wide<T>>(tile + i), load<Wide<T>>(pulled + i % kTile), load<Wide<T>>(out + i)));
  }
}

// From slopes of assignments to pulls (2 times the gradients of squared distances), and their sums over the codewords;
// to the thread's sums the gradient of the scale and the assignments.
template <class T>
void pull_tile(const Sizes& s, const Codes<T>& codes, int count, const T* squares, const T* assignments, T* pulls,
               T* pulled, Work<T>& work) {
  softmax_backward_tile(assignments, pulls, s.count, count);
  for (int i = 0; i < kTile; ++i) pulled[i] = 0;
  for (int64_t k = 0; k < s.count; ++k) {
    const T twice = 2 * codes.scale[k];
    T slope = 0, sum = 0;
    for (int i = 0; i < count; ++i) {
      slope += pulls[k * kTile + i] * squares[k * kTile + i];
      sum += assignments[k * kTile + i];
    }
    for (int i = 0; i < kTile; ++i) pulled[i] += pulls[k * kTile + i] *= twice;
    work.scale[k] += slope;
    work.assigned[k] += sum;
  }
}

// grad_x, and the thread's sums.
template <class T>
void differentiate_tiles(const Sizes& s, const Codes<T>& codes, const Slopes<T>& slopes, const T* x, T* grad_x,
                         int64_t begin, int64_t end, Work<T>& work) {
  T *tile = work.x.data(), *squares = work.z.data(), lengths[kTile], pulled[kTile];
  T *assignments = squares + s.count * kTile, *pulls = assignments + s.count * kTile;
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    center_tile(s, codes, x + p, count, tile, lengths);
    assign_tile(s, codes, count, tile, lengths, squares, assignments);
    for (int64_t k = 0; k < s.count; ++k) std::fill_n(pulls + k * kTile, kTile, slopes.offsets[k]);
    add_products(s, slopes.columns, count, tile, pulls);
    pull_tile(s, codes, count, squares, assignments, pulls, pulled, work);
    descend_tile(s, slopes.descent, assignments, pulled, count, tile, work.y.data());
    unpack_tile(work.y.data(), s.channels, count, grad_x + p, s.pixels, false);
    weigh_tile(s, pulls, count, tile, work);
  }
}
