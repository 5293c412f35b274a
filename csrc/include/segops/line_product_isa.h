// No include guard: compiled once for each instruction set (see foreach_isa.h). The matrix product and transposition of
// criss_cross_attention.h and interlaced_attention.h: small matrices in cache, rows padded to kPad = 8 elements.
#include "segops/bfloat16_isa.h"

// Vectors of a row at a time; times kRows they are the sums that the registers hold.
constexpr int kVectors = SEGOPS_ISA_LEVEL == 2 ? 6 : SEGOPS_ISA_LEVEL == 1 ? 3 : 2;
constexpr int kRows = 4;

// A matrix of any strides.
template <class E>
struct Matrix {
  const E* data;
  int64_t row, column;
};

// c = a b, or added to it, for R rows and N vectors of columns, after them half a vector where kHalf. Rows of b and c
// are `pitch` apart.
template <int R, int N, bool kHalf, bool kAdd, class E, class T = Total<E>>
void multiply_tile(Matrix<E> a, const E* b, int64_t depth, int64_t pitch, T* c) {
  using V = Wide<T>;
  using H = Eight<T>;
  constexpr int W = kWidth<T>;
  V sums[R][N + 1] = {};  // no array of 0
  H halves[R] = {};
  if constexpr (kAdd) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[r][n] = load<V>(c + r * pitch + n * W);
      if constexpr (kHalf) halves[r] = load<H>(c + r * pitch + N * W);
    }
  }
  for (int64_t k = 0; k < depth; ++k, b += pitch, a.data += a.column) {
    // Columns first: with a row's factor they and the sums are what the registers of AVX2 hold.
    Elements<E> columns[N + 1];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) columns[n] = load_elements(b + n * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto factor = spread(a.data[r * a.row]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[r][n] = multiply_add(factor, columns[n], sums[r][n]);
    }
    if constexpr (kHalf) {
      const auto column = load_elements<E, H>(b + N * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) halves[r] = multiply_add(spread<E, H>(a.data[r * a.row]), column, halves[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(c + r * pitch + n * W, sums[r][n]);
    if constexpr (kHalf) store(c + r * pitch + N * W, halves[r]);
  }
}

template <int N, bool kHalf, bool kAdd, class E, class T = Total<E>>
void multiply_rows(Matrix<E> a, const E* b, int64_t rows, int64_t depth, int64_t pitch, T* c) {
  for (; rows >= kRows; rows -= kRows, a.data += kRows * a.row, c += kRows * pitch)
    multiply_tile<kRows, N, kHalf, kAdd>(a, b, depth, pitch, c);
  if (rows & 2) {
    multiply_tile<2, N, kHalf, kAdd>(a, b, depth, pitch, c);
    a.data += 2 * a.row;
    c += 2 * pitch;
  }
  if (rows & 1) multiply_tile<1, N, kHalf, kAdd>(a, b, depth, pitch, c);
}

// From a number of vectors known at run time to one known to the compiler.
template <int N, bool kAdd, class E, class T = Total<E>>
void multiply_some(int64_t vectors, bool half, Matrix<E> a, const E* b, int64_t rows, int64_t depth, int64_t pitch,
                   T* c) {
  constexpr bool kHasHalf = kWidth<T> > kPad;
  if constexpr (N > 0) {
    if (vectors < N) return multiply_some<N - 1, kAdd>(vectors, half, a, b, rows, depth, pitch, c);
    if constexpr (kHasHalf && N < kVectors)
      if (half) return multiply_rows<N, true, kAdd>(a, b, rows, depth, pitch, c);
    multiply_rows<N, false, kAdd>(a, b, rows, depth, pitch, c);
  } else if constexpr (kHasHalf) {
    if (half) multiply_rows<0, true, kAdd>(a, b, rows, depth, pitch, c);
  }
}

// c (rows, padded) = a (rows, depth) times b (depth, padded), or added to c; rows of b and c are `pitch` apart. A depth
// of pairs is half as many (see bfloat16_isa.h).
template <bool kAdd, class E, class T = Total<E>>
void multiply(Matrix<E> a, const E* b, int64_t rows, int64_t depth, int64_t padded, int64_t pitch, T* c) {
  constexpr int64_t W = kWidth<T>;
  const int64_t vectors = (padded + W - 1) / W, parts = (vectors + kVectors - 1) / kVectors;
  for (int64_t part = 0; part < parts; ++part) {  // of equal size, give or take one
    const int64_t begin = vectors * part / parts, end = vectors * (part + 1) / parts;
    const bool half = end * W > padded;
    multiply_some<kVectors, kAdd>(end - begin - half, half, a, b + begin * W, rows, depth, pitch, c + begin * W);
  }
}

SEGOPS_INLINE void transpose(D8* v) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < i; ++j) {
      const double x = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = x;
    }
}

// Eight numbers from memory, and to it.
template <class T>
SEGOPS_INLINE Eight<T> load_numbers(const T* p) {
  return load<Eight<T>>(p);
}
SEGOPS_INLINE F8 load_numbers(const Bfloat16* p) { return (F8)(load_bits(p) << 16); }
template <class T>
SEGOPS_INLINE void store_numbers(T* p, Eight<T> x) {
  store(p, x);
}
SEGOPS_INLINE void store_numbers(Bfloat16* p, F8 x) { store_bits(p, bfloat16_bits(x)); }

// Eight rows of eight, `from_row` and `to_row` apart, transposed.
template <bool kAdd = false, class T, class S>
void transpose_tile(const T* from, int64_t from_row, S* to, int64_t to_row) {
  Eight<T> v[8];
  for (int i = 0; i < 8; ++i) v[i] = load<Eight<T>>(from + i * from_row);
  transpose(v);
  for (int i = 0; i < 8; ++i) {
    if constexpr (kAdd) v[i] += load_numbers(to + i * to_row);
    store_numbers(to + i * to_row, v[i]);
  }
}
