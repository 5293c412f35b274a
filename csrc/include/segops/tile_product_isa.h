// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
//
// Matrix products on a tile: the values of kTile pixels in every channel, packed as [channel][pixel], so that all
// products of an operator find it in the second-level cache. Products are summed in registers, a few rows by two
// vectors; what multiplies a row is spread from memory.

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
template <class T, bool kByRow, class Vector = Wide<T>>
struct Multiply {
  const T* a;
  int64_t a_stride;
  const T* b;
  int64_t b_stride, depth;
  T* out;
  int64_t out_stride;
  bool add;

  template <int R, int V>
  void run(int64_t row, int64_t column) const {
    constexpr int W = Lanes<Vector>::kCount;
    const T *from = kByRow ? a + row * kTile : a + row, *values = b + column;
    Vector sums[R][V] = {};
    for (int64_t l = 0; l < depth; ++l, values += b_stride) {
      Vector y[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) y[v] = load<Vector>(values + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vector x = splat<Vector>(kByRow ? from[r * kTile + l] : from[l * a_stride + r]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = fma(x, y[v], sums[r][v]);
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

template <class T>
void multiply_columns(int64_t rows, int64_t columns, const T* a, int64_t a_stride, const T* b, int64_t depth, T* out,
                      int64_t out_stride, bool add) {
  each_block<T, kProductRows>(rows, columns, Multiply<T, false>{a, a_stride, b, kTile, depth, out, out_stride, add});
}
template <class T>
void multiply_tile(int64_t rows, int64_t lanes, const T* tile, const T* b, int64_t depth, T* total) {
  each_block<T, kProductRows>(rows, lanes, Multiply<T, true>{tile, 0, b, lanes, depth, total, lanes, true});
}

// `count` columns of a matrix into a tile, zeros in the rest of the last vector.
template <class T>
void pack_tile(const T* x, int64_t stride, int64_t rows, int count, T* tile) {
  const int64_t whole = (count + 2 * kWidth<T> - 1) / (2 * kWidth<T>)*(2 * kWidth<T>);
  for (int64_t r = 0; r < rows; ++r, x += stride, tile += kTile) {
    __builtin_memcpy(tile, x, count * sizeof(T));
    for (int64_t i = count; i < whole; ++i) tile[i] = 0;
  }
}

// And back.
template <class T>
void unpack_tile(const T* tile, int64_t rows, int count, T* x, int64_t stride, bool add) {
  for (int64_t r = 0; r < rows; ++r, x += stride, tile += kTile) {
    if (add)
      for (int i = 0; i < count; ++i) x[i] += tile[i];
    else
      __builtin_memcpy(x, tile, count * sizeof(T));
  }
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
