// No include guard: compiled once for each instruction set (see foreach_isa.h), at the head of the files that use it.
//
// Matrix products on panels. A matrix (rows, positions) lies as [panel][row][kPanel], kPanel positions to a panel, so
// that a product finds what it reads side by side whichever dimension it sums over, and vectors run along positions.
// kTile positions are whole panels for every instruction set: a tile of a packed matrix begins at row count * position.
//
// Pairs of bfloat16 lie the same way, those of two rows for a product that sums over rows, of two positions for one
// that sums over positions: what is said of rows or of positions then means two of them.
#include "segops/bfloat16_isa.h"

constexpr int kPanelVectors = 3;  // times kPanelRows they are the sums that the registers hold
constexpr int kPanelRows = SEGOPS_ISA_LEVEL == 2 ? 8 : SEGOPS_ISA_LEVEL == 1 ? 4 : 2;
template <class T>
constexpr int64_t kPanel = kPanelVectors * kWidth<T>;
static_assert(kTile % (2 * kPanel<float>) == 0 && kTile % kPanel<double> == 0);
static_assert(kPanel<float> % kPanelRows == 0 && kPanel<double> % kPanelRows == 0);

template <class T>
int64_t panels_of(int64_t positions) {
  return (positions + kPanel<T> - 1) / kPanel<T>;
}

// R rows of out (rows, kPanel), or added to them: the sum over `depth` of a b with b (depth, kPanel). The sum runs over
// the rows of a panel of a, or kByRow over its positions, panel after panel, `a_panel` apart.
template <int R, bool kByRow, class E, class T = Total<E>>
void multiply_rows(const E* a, int64_t a_panel, const E* b, int64_t depth, T* out, bool add) {
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
      decltype(load_elements(b)) y[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) y[v] = load_elements(b + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto x = spread(kByRow ? a[r * N + l] : a[l * N + r]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sums[r][v] = multiply_add(x, y[v], sums[r][v]);
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
template <class E, class T = Total<E>>
void multiply_positions(const E* a, int64_t positions, const E* b, int64_t panels, int64_t rows, T* out,
                        int64_t out_rows) {
  constexpr int64_t N = kPanel<T>, kDepth = 12288 / (N * sizeof(E));
  for (int64_t c = 0; c < rows; c += kDepth) {
    const int64_t depth = rows - c < kDepth ? rows - c : kDepth;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t j = 0; j < positions; j += kPanelRows)
        multiply_rows<kPanelRows, false>(a + (j / N * rows + c) * N + j % N, 0, b + (p * rows + c) * N, depth,
                                         out + (p * out_rows + j) * N, c > 0);
  }
}

template <int R, class E, class T>
void multiply_last_rows(int64_t rows, const E* a, int64_t a_panel, const E* b, int64_t depth, T* out, bool add) {
  if (rows == R)
    multiply_rows<R, true>(a, a_panel, b, depth, out, add);
  else if constexpr (R > 1)
    multiply_last_rows<R - 1>(rows, a, a_panel, b, depth, out, add);
}

// out = a b, or added to it, [panel of b][row of a][kPanel], summed over `depth` positions of a, which are rows of b
// [panel][row, of b_rows][kPanel].
template <class E, class T = Total<E>>
void multiply_rows_of(const E* a, int64_t rows, const E* b, int64_t b_rows, int64_t panels, int64_t depth, T* out,
                      bool add) {
  constexpr int64_t N = kPanel<T>;
  for (int64_t p = 0; p < panels; ++p, b += b_rows * N, out += rows * N) {
    int64_t r = 0;
    for (; r + kPanelRows <= rows; r += kPanelRows)
      multiply_rows<kPanelRows, true>(a + r * N, rows * N, b, depth, out + r * N, add);
    if (r < rows) multiply_last_rows<kPanelRows>(rows - r, a + r * N, rows * N, b, depth, out + r * N, add);
  }
}

// x [panel][row, of x_rows][kPanel] as a product that sums over rows reads it, in `room` where that is not x itself.
template <class T>
const T* rows_as(const T* x, int64_t, int64_t, int64_t, T*) {
  return x;
}
inline const Pair* rows_as(const float* x, int64_t rows, int64_t x_rows, int64_t panels, Pair* room) {
  constexpr int64_t N = kPanel<float>;
  Pair* to = room;
  for (int64_t p = 0; p < panels; ++p, x += x_rows * N, to += x_rows / 2 * N)
    for (int64_t i = 0; i < N; i += kWidth<float>) {
      for (int64_t r = 0; r + 2 <= rows; r += 2)
        store_pairs(to + r / 2 * N + i, load_elements(x + r * N + i), load_elements(x + (r + 1) * N + i));
      if (rows % 2) store_pairs(to + rows / 2 * N + i, load_elements(x + (rows - 1) * N + i), Wide<float>{});
    }
  return room;
}

// x [panel][row, of x_rows][kPanel] to its transpose [panel of rows][position of `panels` panels][kPanel].
template <class E, class T = Total<E>>
void transpose_panels(const T* x, int64_t rows, int64_t x_rows, int64_t panels, E* out) {
  constexpr int64_t N = kPanel<T>, K = kNumbers<E>;
  constexpr bool kEights = sizeof(E) == 4 && N % (8 * K) == 0;  // whole blocks of registers
  for (int64_t p = 0; p < panels; ++p, x += x_rows * N)
    for (int64_t j = 0; j < rows; j += kEights ? 8 : 1)
      for (int64_t i = 0; i < N / K; i += kEights ? 8 : 1) {
        E* to = out + ((j / N * panels + p) * (N / K) + i) * N + j % N;
        if constexpr (kEights) {
          F8 block[8];
#pragma GCC unroll 8
          for (int k = 0; k < 8; ++k) block[k] = load_eight<E>(x + (j + k) * N + i * K);
          transpose(block);
#pragma GCC unroll 8
          for (int k = 0; k < 8; ++k) __builtin_memcpy(to + k * N, &block[k], sizeof(F8));
        } else {
          *to = element<E>(x + j * N + i * K);
        }
      }
}

// `count` positions of a matrix of rows `stride` apart to panels, zeros behind them. Pairs are of two rows.
template <class E, class S>
void pack_rows(const S* x, int64_t stride, int64_t rows, int64_t count, E* out) {
  constexpr int64_t N = kPanel<Total<E>>;
  const S zeros[N] = {};
  for (int64_t at = 0; at < count; at += N) {
    const int64_t width = count - at < N ? count - at : N;
    for (int64_t r = 0; r < rows; r += kNumbers<E>, out += N) {
      const S* row = x + r * stride + at;
      if constexpr (kNumbers<E> == 2)
        join(row, r + 1 < rows ? row + stride : zeros, width, out);
      else
        for (int64_t i = 0; i < width; ++i) out[i] = E(row[i]);
      for (int64_t i = width; i < N; ++i) out[i] = {};
    }
  }
}

// The same with pairs of two positions.
template <class E, class S>
void pack_positions(const S* x, int64_t stride, int64_t rows, int64_t count, E* out) {
  if constexpr (kNumbers<E> == 1) {
    pack_rows(x, stride, rows, count, out);
  } else {
    constexpr int64_t N = kPanel<Total<E>>;
    for (int64_t at = 0; at < count; at += 2 * N) {
      const int64_t width = count - at < 2 * N ? count - at : 2 * N;
      for (int64_t r = 0; r < rows; ++r, out += N) {
        __builtin_memset(out, 0, N * sizeof(E));
        __builtin_memcpy(out, x + r * stride + at, width * sizeof(S));
      }
    }
  }
}

// From panels of sums, times `scale`.
template <class T, class S>
void unpack_panels(const T* x, int64_t rows, int64_t count, T scale, S* out, int64_t stride) {
  constexpr int64_t N = kPanel<T>;
  for (int64_t at = 0; at < count; at += N, x += rows * N) {
    const int64_t width = count - at < N ? count - at : N;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < width; ++i) out[r * stride + at + i] = S(x[r * N + i] * scale);
  }
}
