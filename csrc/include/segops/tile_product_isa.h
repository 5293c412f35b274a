// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
//
// Matrix products on a tile: the values of kTile pixels in every channel, packed as [channel][pixel], so that all
// products of an operator find it in the second-level cache. Products are summed in registers, a few rows by two
// vectors; what multiplies a row is spread from memory.
//
// Where bfloat16 is multiplied in pairs, a product that sums over rows reads those of two rows (see paired_rows), one
// that sums over pixels those of two pixels. A depth or a row of pairs is half as long.
#include "segops/bfloat16_isa.h"

constexpr int kProductRows = SEGOPS_ISA_LEVEL == 2 ? 12 : SEGOPS_ISA_LEVEL == 1 ? 6 : 5;  // as the registers hold
static_assert(kTile % (2 * kWidth<float>) == 0 && kTile % (2 * kWidth<double>) == 0);

// block.run<R, V>(row, column) for blocks of R rows, at most kMost, by V vectors, over all rows and all columns up to
// the next multiple of a vector of W lanes: from numbers known at run time to ones known to the compiler.
template <int R, int V, class Block>
void run_rows(int64_t rows, const Block& block, int64_t row, int64_t column) {
  if (rows == R)
    block.template run<R, V>(row, column);
  else if constexpr (R > 1)
    run_rows<R - 1, V>(rows, block, row, column);
}
template <class T, int kMost, int W = kWidth<T>, class Block>
void each_block(int64_t rows, int64_t columns, const Block& block) {
  const int64_t parts = (rows + kMost - 1) / kMost;  // of equal size, give or take one
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t row = rows * part / parts, count = rows * (part + 1) / parts - row;
    int64_t at = 0;
    for (; at + W < columns; at += 2 * W) run_rows<kMost, 2>(count, block, row, at);
    if (at < columns) run_rows<kMost, 1>(count, block, row, at);
  }
}

// out[row][lane] (+)= sum over depth of a b[depth][lane]; the coefficients a lie as [depth][row] with a stride, or as
// [row][depth] in a tile.
template <class E, bool kByRow, class Vector = Wide<Total<E>>>
struct Multiply {
  using T = Total<E>;
  static constexpr int kPitch = kTile / kNumbers<E>;

  const E* a;
  int64_t a_stride;
  const E* b;
  int64_t b_stride, depth;
  T* out;
  int64_t out_stride;
  bool add;

  template <int R, int V>
  void run(int64_t row, int64_t column) const {
    constexpr int W = Lanes<Vector>::kCount;
    const E *from = kByRow ? a + row * kPitch : a + row, *values = b + column;
    Vector sums[R][V] = {};
    for (int64_t l = 0; l < depth; ++l, values += b_stride) {
      Elements<E, Vector> y[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) y[v] = load_elements<E, Vector>(values + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto x = spread<E, Vector>(kByRow ? from[r * kPitch + l] : from[l * a_stride + r]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = multiply_add(x, y[v], sums[r][v]);
      }
    }
    T* to = out + row * out_stride + column;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        T* place = to + r * out_stride + v * W;
        store(place, add ? load<Vector>(place) + sums[r][v] : sums[r][v]);
      }
  }
};

template <class E, class T = Total<E>>
void multiply_columns(int64_t rows, int64_t columns, const E* a, int64_t a_stride, const E* b, int64_t depth, T* out,
                      int64_t out_stride, bool add) {
  each_block<T, kProductRows>(rows, columns, Multiply<E, false>{a, a_stride, b, kTile, depth, out, out_stride, add});
}
template <class E, class T = Total<E>>
void multiply_tile(int64_t rows, int64_t lanes, const E* tile, const E* b, int64_t depth, T* total) {
  each_block<T, kProductRows>(rows, lanes, Multiply<E, true>{tile, 0, b, lanes, depth, total, lanes, true});
}

// `count` columns of a matrix into a tile, zeros in the rest of the last vector.
template <class S>
void pack_tile(const S* x, int64_t stride, int64_t rows, int count, S* tile) {
  constexpr int kStep = 2 * kWidth<Sum<S>>;
  const int64_t whole = (count + kStep - 1) / kStep * kStep;
  for (int64_t r = 0; r < rows; ++r, x += stride, tile += kTile) {
    __builtin_memcpy(tile, x, count * sizeof(S));
    for (int64_t i = count; i < whole; ++i) tile[i] = {};
  }
}

// And back.
template <class S, class T = Sum<S>>
void unpack_tile(const T* tile, int64_t rows, int count, S* x, int64_t stride, bool add) {
  for (int64_t r = 0; r < rows; ++r, x += stride, tile += kTile) {
    if (add)
      for (int i = 0; i < count; ++i) x[i] = narrow<S>(widen(x[i]) + tile[i]);
    else if constexpr (std::is_same_v<S, T>)
      __builtin_memcpy(x, tile, count * sizeof(S));
    else
      for (int i = 0; i < count; ++i) x[i] = narrow<S>(tile[i]);
  }
}

// A tile as a product reads it that sums over its pixels.
template <class S>
const Element<S>* paired_pixels(const S* tile) {
  return reinterpret_cast<const Element<S>*>(tile);
}

// The softmax over the rows of each column of a tile, in place.
template <class T>
void softmax_tile(T* z, int64_t rows, int count) {
  constexpr int W = kWidth<T>;
  for (int at = 0; at < count; at += W) {
    Wide<T> most = load<Wide<T>>(z + at), sum = {};
    for (int64_t k = 1; k < rows; ++k) most = max(most, load<Wide<T>>(z + k * kTile + at));
    for (int64_t k = 0; k < rows; ++k) {
      const Wide<T> e = exp(load<Wide<T>>(z + k * kTile + at) - most);
      store(z + k * kTile + at, e);
      sum += e;
    }
    const Wide<T> scale = 1 / sum;
    for (int64_t k = 0; k < rows; ++k) store(z + k * kTile + at, load<Wide<T>>(z + k * kTile + at) * scale);
  }
}

// ds = z (u - sum over rows of z u), in place of u: the softmax's gradient.
template <class T>
void softmax_backward_tile(const T* z, T* u, int64_t rows, int count) {
  constexpr int W = kWidth<T>;
  for (int at = 0; at < count; at += W) {
    Wide<T> dot = {};
    for (int64_t k = 0; k < rows; ++k)
      dot = fma(load<Wide<T>>(z + k * kTile + at), load<Wide<T>>(u + k * kTile + at), dot);
    for (int64_t k = 0; k < rows; ++k)
      store(u + k * kTile + at, load<Wide<T>>(z + k * kTile + at) * (load<Wide<T>>(u + k * kTile + at) - dot));
  }
}

SEGOPS_INLINE void transpose_block(const float* z, float* zt, int64_t lanes) {
  F8 v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = load<F8>(z + i * kTile);
  transpose(v);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) store(zt + i * lanes, v[i]);
}
SEGOPS_INLINE void transpose_block(const double* z, double* zt, int64_t lanes) {
  for (int p = 0; p < 8; ++p)
    for (int k = 0; k < 8; ++k) zt[p * lanes + k] = z[k * kTile + p];
}

// A tile's rows as columns, [pixel][lanes], zeros behind them; their sums over the tile's pixels are added to `sums`.
template <class T>
void transpose_tile(const T* z, int64_t rows, int count, int64_t lanes, T* zt, T* sums) {
  constexpr int kStep = 8;  // a block of so many rows and pixels stays in registers and few cache lines
  for (int64_t k = rows; k < lanes; ++k)
    for (int p = 0; p < count; ++p) zt[p * lanes + k] = 0;
  int64_t k = 0;
  for (; k + kStep <= rows; k += kStep)
    for (int p = 0; p < count; p += kStep) transpose_block(z + k * kTile + p, zt + p * lanes + k, lanes);
  for (; k < rows; ++k)
    for (int p = 0; p < count; ++p) zt[p * lanes + k] = z[k * kTile + p];
  for (int64_t at = 0; at < lanes; at += kWidth<T>) {
    Wide<T> sum = {};
    for (int p = 0; p < count; ++p) sum += load<Wide<T>>(zt + p * lanes + at);
    store(sums + at, load<Wide<T>>(sums + at) + sum);
  }
}

// A row of a tile rounded, zeros behind it; the sum of what was rounded.
inline float narrow_row(const float* row, int count, Pair* out) {
  float padded[kTile] = {};
  if (count < kTile) row = static_cast<const float*>(__builtin_memcpy(padded, row, count * sizeof(float)));
  F16 sum = {};
  for (int p = 0; p < kTile; p += 16) {
    const H16 bits = bfloat16_of(load<F16>(row + p));
    __builtin_memcpy(out + p / 2, &bits, sizeof(bits));
    sum += (F16)(__builtin_convertvector(bits, U16) << 16);
  }
  float total = 0;
  for (int i = 0; i < 16; ++i) total += sum[i];
  return total;
}

// Eight rows of pairs as columns, [pair][lanes]: `count` pairs, and as many more as make it a multiple of eight.
SEGOPS_INLINE void transpose_pairs(const Pair* rows, int64_t count, int64_t lanes, Pair* columns) {
  for (int64_t p = 0; p < count; p += 8) {
    F8 v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) __builtin_memcpy(&v[i], rows + i * (kTile / 2) + p, sizeof(F8));
    transpose(v);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) __builtin_memcpy(columns + (p + i) * lanes, &v[i], sizeof(F8));
  }
}

// A tile's rows as columns, rounded to pairs of pixels; the sums are those of what was rounded, so that means and
// residuals are exact.
inline void transpose_tile(const float* z, int64_t rows, int count, int64_t lanes, Pair* zt, float* sums) {
  alignas(64) Pair block[8][kTile / 2];
  for (int64_t first = 0; first < lanes; first += 8) {
    for (int64_t k = first; k < first + 8; ++k)
      if (k < rows)
        sums[k] += narrow_row(z + k * kTile, count, block[k - first]);
      else
        std::fill_n(block[k - first], kTile / 2, Pair{0});
    transpose_pairs(block[0], elements<Pair>(count), lanes, zt + first);
  }
}
