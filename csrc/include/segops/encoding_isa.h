// No include guard: compiled once for each instruction set (see foreach_isa.h) by encoding.h, which explains Sizes,
// Codes and Work. All functions take the tiles of the pixels [begin, end) of one image.
//
// Residuals x - c are made in registers, where they are used: beside the multiplication that follows, a subtraction
// costs little or nothing, and nothing is lost where pixels lie close to their codeword and far from the origin.
#include "segops/tile_product_isa.h"

constexpr int kRun = 64;                         // channels summed before they are added to a distance: rounding
constexpr int kResidualRows = kProductRows / 2;  // two sums for each row and vector, or a sum and what it subtracts
#if SEGOPS_ISA_LEVEL == 2
constexpr int kDescentRows = 5;
#else
constexpr int kDescentRows = 2;
#endif

// squares[k][pixel] (+)= sum over channels of (x - c_k)^2, and with kSlopes projections (+)= sum of g_k (x - c_k).
template <class T, bool kSlopes>
struct Distances {
  const T *tile, *codes, *grad;  // codes and grad (D, K)
  int64_t count, depth;
  T *squares, *projections;
  bool add;

  template <int R, int V>
  void run(int64_t row, int64_t column) const {
    constexpr int W = kWidth<T>;
    Wide<T> sums[R][V] = {}, slopes[kSlopes ? R : 1][V] = {};
    for (int64_t d = 0; d < depth; ++d) {
      const T *x = tile + d * kTile + column, *c = codes + d * count + row, *g = grad + d * count + row;
      Wide<T> values[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) values[v] = load<Wide<T>>(x + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const Wide<T> residual = values[v] - splat<Wide<T>>(c[r]);
          sums[r][v] = fma(residual, residual, sums[r][v]);
          if constexpr (kSlopes) slopes[r][v] = fma(residual, splat<Wide<T>>(g[r]), slopes[r][v]);
        }
    }
    const auto write = [&](T* to, Wide<T> sum) { store(to, add ? load<Wide<T>>(to) + sum : sum); };
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const int64_t place = (row + r) * kTile + column + v * W;
        write(squares + place, sums[r][v]);
        if constexpr (kSlopes) write(projections + place, slopes[r][v]);
      }
  }
};

// total[channel][k] += sum over pixels of weight[pixel][k] (x - c_k), the codewords (D, lanes).
template <class T>
struct Residuals {
  const T *tile, *codes, *weights;
  int64_t lanes, pixels;
  T* total;

  template <int R, int V>
  void run(int64_t row, int64_t column) const {
    constexpr int W = kWidth<T>;
    Wide<T> sums[R][V] = {}, c[R][V];
    const T *x = tile + row * kTile, *w = weights + column;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) c[r][v] = load<Wide<T>>(codes + (row + r) * lanes + column + v * W);
    for (int64_t p = 0; p < pixels; ++p, w += lanes) {
      Wide<T> y[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) y[v] = load<Wide<T>>(w + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = fma(y[v], splat<Wide<T>>(x[r * kTile + p]) - c[r][v], sums[r][v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        T* to = total + (row + r) * lanes + column + v * W;
        store(to, load<Wide<T>>(to) + sums[r][v]);
      }
  }
};

// out[channel][pixel] = sum over k of assignment g_k + pull (x - c_k), the gradient of x; grad and codes (K, D).
template <class T>
struct Descent {
  const T *tile, *codes, *grad, *assignments, *pulls;
  int64_t count, channels;
  T* out;

  template <int R, int V>
  void run(int64_t row, int64_t column) const {
    constexpr int W = kWidth<T>;
    Wide<T> sums[R][V] = {}, x[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) x[r][v] = load<Wide<T>>(tile + (row + r) * kTile + column + v * W);
    for (int64_t k = 0; k < count; ++k) {
      const T *c = codes + k * channels + row, *g = grad + k * channels + row;
      Wide<T> a[V], w[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        a[v] = load<Wide<T>>(assignments + k * kTile + column + v * W);
        w[v] = load<Wide<T>>(pulls + k * kTile + column + v * W);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          sums[r][v] = fma(a[v], splat<Wide<T>>(g[r]), sums[r][v]);
          sums[r][v] = fma(w[v], x[r][v] - splat<Wide<T>>(c[r]), sums[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(out + (row + r) * kTile + column + v * W, sums[r][v]);
  }
};

// Squared distances of a packed tile, and the soft assignments softmax(scale * distance).
template <class T, bool kSlopes>
void assign_tile(const Sizes& s, const Codes<T>& codes, const T* grad, int count, const T* tile, T* squares,
                 T* assignments, T* projections) {
  for (int64_t d = 0; d < s.channels; d += kRun) {
    const int64_t depth = s.channels - d < kRun ? s.channels - d : kRun;
    const T* g = kSlopes ? grad + d * s.count : codes.columns;
    each_block<T, kSlopes ? kResidualRows : kProductRows>(
        s.count, count,
        Distances<T, kSlopes>{tile + d * kTile, codes.columns + d * s.count, g, s.count, depth, squares, projections,
                              d > 0});
  }
  for (int64_t k = 0; k < s.count; ++k)
    for (int i = 0; i < kTile; ++i) assignments[k * kTile + i] = codes.scale[k] * squares[k * kTile + i];
  softmax_tile(assignments, s.count, count);
}

// total += the residuals by assignment.
template <class T>
void encode_tiles(const Sizes& s, const Codes<T>& codes, const T* x, int64_t begin, int64_t end, Work<T>& work) {
  T *tile = work.x.data(), *squares = work.z.data(), *assignments = squares + s.count * kTile;
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    pack_tile(x + p, s.pixels, s.channels, count, tile);
    assign_tile<T, false>(s, codes, nullptr, count, tile, squares, assignments, nullptr);
    transpose_tile(assignments, s.count, count, s.lanes, work.columns.data(), work.sums.data());
    each_block<T, kResidualRows>(
        s.channels, s.lanes, Residuals<T>{tile, codes.lanes, work.columns.data(), s.lanes, count, work.total.data()});
  }
}

// grad_x, total += the residuals by pull (2 times the gradient of a squared distance), sums += assignments,
// scale += the gradient of the scale. `grad` and `grad_columns` are one matrix, as (K, D) and as (D, K).
template <class T>
void differentiate_tiles(const Sizes& s, const Codes<T>& codes, const T* grad, const T* grad_columns, const T* x,
                         T* grad_x, int64_t begin, int64_t end, Work<T>& work) {
  T *tile = work.x.data(), *squares = work.z.data();
  T *assignments = squares + s.count * kTile, *pulls = assignments + s.count * kTile;
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    pack_tile(x + p, s.pixels, s.channels, count, tile);
    assign_tile<T, true>(s, codes, grad_columns, count, tile, squares, assignments, pulls);
    softmax_backward_tile(assignments, pulls, s.count, count);
    for (int64_t k = 0; k < s.count; ++k) {
      const T twice = 2 * codes.scale[k];
      T slope = 0, sum = 0;
      for (int i = 0; i < count; ++i) {
        slope += pulls[k * kTile + i] * squares[k * kTile + i];
        sum += assignments[k * kTile + i];
      }
      for (int i = 0; i < kTile; ++i) pulls[k * kTile + i] *= twice;
      work.scale[k] += slope;
      work.assigned[k] += sum;
    }
    each_block<T, kDescentRows>(
        s.channels, count, Descent<T>{tile, codes.rows, grad, assignments, pulls, s.count, s.channels, work.y.data()});
    unpack_tile(work.y.data(), s.channels, count, grad_x + p, s.pixels, false);
    transpose_tile(pulls, s.count, count, s.lanes, work.columns.data(), work.sums.data());
    each_block<T, kResidualRows>(
        s.channels, s.lanes, Residuals<T>{tile, codes.lanes, work.columns.data(), s.lanes, count, work.total.data()});
  }
}
