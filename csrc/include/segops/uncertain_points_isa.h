// No include guard: compiled once for each instruction set (see foreach_isa.h).
#include "segops/top_two_isa.h"

typedef float F4 __attribute__((vector_size(16), may_alias));
typedef double D4 __attribute__((vector_size(32), may_alias));

// Of points that lie between four cells, the upper left one, and how far they are from it in columns and rows; -1 and 0
// of the others, those at the border.
template <class T>
void find_cells(const T* points, int64_t count, int64_t height, int64_t width, int64_t* cells, T* columns, T* rows) {
  const T last_x = T(width - 1), last_y = T(height - 1);
  for (int64_t i = 0; i < count; ++i) {
    const T x = points[2 * i] * T(width) - T(0.5), y = points[2 * i + 1] * T(height) - T(0.5);
    const bool between = (x >= 0) & (x < last_x) & (y >= 0) & (y < last_y);
    const T from_x = between ? x : 0, from_y = between ? y : 0;
    const int64_t column = int64_t(from_x), row = int64_t(from_y);  // truncation is floor from 0 on
    cells[i] = between ? row * width + column : -1;
    columns[i] = from_x - T(column);
    rows[i] = from_y - T(row);
  }
}

// Four neighbouring cells, two in each of two rows: two loads, whatever the width of the vectors.
template <class V, class T>
SEGOPS_INLINE V quad(const T* corner, int64_t width) {
  struct Rows {
    T upper[2], lower[2];
  } rows;
  __builtin_memcpy(rows.upper, corner, sizeof(rows.upper));
  __builtin_memcpy(rows.lower, corner + width, sizeof(rows.lower));
  return __builtin_bit_cast(V, rows);
}

template <class V>
SEGOPS_INLINE V add_pairs(V a, V b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

// One channel at points that have all four of their cells: from each corner on, with four weights each. count is a
// multiple of four.
template <class T>
void sample_quads(const T* map, int64_t width, const int64_t* corners, const T* weights, int64_t count, T* values) {
  using V = std::conditional_t<std::is_same_v<T, float>, F4, D4>;
  for (int64_t i = 0; i < count; i += 4) {
    V products[4];
    for (int j = 0; j < 4; ++j) {
      V weight;
      __builtin_memcpy(&weight, weights + 4 * (i + j), sizeof(V));
      products[j] = weight * quad<V>(map + corners[i + j], width);
    }
    const V sums = add_pairs(add_pairs(products[0], products[1]), add_pairs(products[2], products[3]));
    __builtin_memcpy(values + i, &sums, sizeof(V));
  }
}

// count is a multiple of sixteen.
template <class T>
void rank_values(const T* values, int64_t count, T* first, T* second) {
  for (int64_t i = 0; i < count; i += Lanes<Widest<T>>::kCount) rank_at(values + i, first + i, second + i);
}

// All channels at one point, where those of a cell lie side by side, to every step-th of `values`. `sums` is room for
// them.
template <class T>
void sample_cells(const T* logits, int64_t channels, int taps, const int64_t* cells, const T* weights, T* sums,
                  int64_t step, T* values) {
  for (int64_t c = 0; c < channels; ++c) sums[c] = 0;
  for (int k = 0; k < taps; ++k) {
    const T* cell = logits + cells[k] * channels;
    for (int64_t c = 0; c < channels; ++c) sums[c] += weights[k] * cell[c];
  }
  for (int64_t c = 0; c < channels; ++c) values[c * step] = sums[c];
}
