// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
//
// Matrix products on panels. A matrix (rows, positions) lies as [panel][row][kPanel], kPanel positions to a panel, so
// that a product finds what it reads side by side whichever dimension it sums over, and vectors run along positions.
// kTile positions are whole panels for every instruction set: a tile of a packed matrix begins at row count * position.

constexpr int kPanelVectors = 3;  // times kPanelRows they are the sums that the registers hold
constexpr int kPanelRows = SEGOPS_ISA_LEVEL == 2 ? 8 : SEGOPS_ISA_LEVEL == 1 ? 4 : 2;
template <class T>
constexpr int64_t kPanel = kPanelVectors * kWidth<T>;
static_assert(kTile % kPanel<float> == 0 && kTile % kPanel<double> == 0);
static_assert(kPanel<float> % kPanelRows == 0 && kPanel<double> % kPanelRows == 0);

template <class T>
int64_t panels_of(int64_t positions) {
  return (positions + kPanel<T> - 1) / kPanel<T>;
}

// R rows of out (rows, kPanel), or added to them: the sum over `depth` of a b with b (depth, kPanel). The sum runs over
// the rows of a panel of a, or kByRow over its positions, panel after panel, `a_panel` apart.
template <int R, bool kByRow, class T>
void multiply_rows(const T* a, int64_t a_panel, const T* b, int64_t depth, T* out, bool add) {
  constexpr int V = kPanelVectors, W = kWidth<T>;
  constexpr int64_t N = kPanel<T>;
  Wide<T> sums[R][V] = {};
  if (add)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sums[r][v] = load<Wide<T>>(out + r * N + v * W);
  for (; depth > 0; depth -= N, a += a_panel) {
    const int64_t part = kByRow && depth > N ? N : depth;
    for (int64_t l = 0; l < part; ++l, b += N) {
      Wide<T> y[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) y[v] = load<Wide<T>>(b + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Wide<T> x = splat<Wide<T>>(kByRow ? a[r * N + l] : a[l * N + r]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sums[r][v] = fma(x, y[v], sums[r][v]);
      }
    }
    if constexpr (!kByRow) break;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(out + r * N + v * W, sums[r][v]);
}

// out = a^T b, [panel of b][position of a, of out_rows][kPanel], summed over all rows of a and b: a few of them at a
// time, so that these lie in the first-level cache. Positions are rounded up to kPanelRows.
template <class T>
void multiply_positions(const T* a, int64_t positions, const T* b, int64_t panels, int64_t rows, T* out,
                        int64_t out_rows) {
  constexpr int64_t N = kPanel<T>, kDepth = 12288 / (N * sizeof(T));
  for (int64_t c = 0; c < rows; c += kDepth) {
    const int64_t depth = rows - c < kDepth ? rows - c : kDepth;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t j = 0; j < positions; j += kPanelRows)
        multiply_rows<kPanelRows, false>(a + (j / N * rows + c) * N + j % N, 0, b + (p * rows + c) * N, depth,
                                         out + (p * out_rows + j) * N, c > 0);
  }
}

template <int R, class T>
void multiply_last_rows(int64_t rows, const T* a, int64_t a_panel, const T* b, int64_t depth, T* out, bool add) {
  if (rows == R)
    multiply_rows<R, true>(a, a_panel, b, depth, out, add);
  else if constexpr (R > 1)
    multiply_last_rows<R - 1>(rows, a, a_panel, b, depth, out, add);
}

// out = a b, or added to it, [panel of b][row of a][kPanel], summed over `depth` positions of a, which are rows of b
// [panel][row, of b_rows][kPanel].
template <class T>
void multiply_rows_of(const T* a, int64_t rows, const T* b, int64_t b_rows, int64_t panels, int64_t depth, T* out,
                      bool add) {
  constexpr int64_t N = kPanel<T>;
  for (int64_t p = 0; p < panels; ++p, b += b_rows * N, out += rows * N) {
    int64_t r = 0;
    for (; r + kPanelRows <= rows; r += kPanelRows)
      multiply_rows<kPanelRows, true>(a + r * N, rows * N, b, depth, out + r * N, add);
    if (r < rows) multiply_last_rows<kPanelRows>(rows - r, a + r * N, rows * N, b, depth, out + r * N, add);
  }
}

// x [panel][row, of x_rows][kPanel] to its transpose [panel of rows][position of `panels` panels][kPanel].
template <class T>
void transpose_panels(const T* x, int64_t rows, int64_t x_rows, int64_t panels, T* out) {
  constexpr int64_t N = kPanel<T>;
  constexpr bool kEights = sizeof(T) == 4 && N % 8 == 0;  // whole blocks of registers
  for (int64_t p = 0; p < panels; ++p, x += x_rows * N)
    for (int64_t j = 0; j < rows; j += kEights ? 8 : 1)
      for (int64_t i = 0; i < N; i += kEights ? 8 : 1) {
        T* to = out + ((j / N * panels + p) * N + i) * N + j % N;
        if constexpr (kEights) {
          F8 block[8];
#pragma GCC unroll 8
          for (int k = 0; k < 8; ++k) block[k] = load<F8>(x + (j + k) * N + i);
          transpose(block);
#pragma GCC unroll 8
          for (int k = 0; k < 8; ++k) store(to + k * N, block[k]);
        } else {
          *to = x[j * N + i];
        }
      }
}

// `count` positions of a matrix of rows `stride` apart, times `scale`, to panels; zeros behind them.
template <class T, class S>
void pack_panels(const S* x, int64_t stride, int64_t rows, int64_t count, T scale, T* out) {
  constexpr int64_t N = kPanel<T>;
  for (int64_t at = 0; at < count; at += N, out += rows * N) {
    const int64_t width = count - at < N ? count - at : N;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) out[r * N + i] = T(x[r * stride + at + i]) * scale;
      for (int64_t i = width; i < N; ++i) out[r * N + i] = 0;
    }
  }
}

// And back.
template <class T, class S>
void unpack_panels(const T* x, int64_t rows, int64_t count, T scale, S* out, int64_t stride) {
  constexpr int64_t N = kPanel<T>;
  for (int64_t at = 0; at < count; at += N, x += rows * N) {
    const int64_t width = count - at < N ? count - at : N;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < width; ++i) out[r * stride + at + i] = S(x[r * N + i] * scale);
  }
}
