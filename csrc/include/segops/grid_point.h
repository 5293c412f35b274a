// A point (x, y) on a map, in units of its width and height, to the cells that grid_sample reads there and their
// weights. Free of torch; shared by the operators that sample at points.
#pragma once

#include <cmath>
#include <cstdint>

namespace segops {

enum class Padding { kZeros, kBorder, kReflection };

// What F.grid_sample calls mode, padding_mode and align_corners.
struct Grid {
  bool nearest = false;
  Padding padding = Padding::kZeros;
  bool align_corners = false;
};

// A coordinate p in units of a side of `size` cells, in cells: the centre of the first is 0. `slope` is its derivative,
// 0 where the padding clips it. NaN where there is none: p is NaN, or infinite and to be reflected.
template <class T>
struct Coordinate {
  T x, slope;
};

template <class T>
Coordinate<T> coordinate(T p, int64_t size, const Grid& grid) {
  T slope = T(grid.align_corners ? size - 1 : size);
  if (grid.padding == Padding::kReflection) {  // the picture and its mirror image repeat with period 2, exactly
    if (p < 0) slope = -slope;
    p = std::fmod(std::fabs(p), T(2));
    if (p > 1) {
      p = 2 - p;
      slope = -slope;
    }
  }
  T x = p;  // infinite times a slope of 0 would be NaN
  if (!std::isinf(p)) x = p * std::fabs(slope) - (grid.align_corners ? T(0) : T(0.5));
  if (grid.padding == Padding::kZeros) return {x, slope};
  const T top = T(size - 1);
  if (x <= 0) return {0, 0};
  if (x >= top) return {top, 0};
  return {x, slope};
}

// The cells of a map, index y * width + x in row-major order, that a point reads: those in bounds, at most four (or one
// for nearest), none where the point lies outside and the padding is zeros. along_x and along_y are the derivatives of
// the weight with respect to the point. A point that is not `defined` has the value NaN and passes no gradient.
template <class T>
struct Taps {
  int count = 0;
  bool defined = true;
  int64_t index[4] = {};
  T weight[4] = {}, along_x[4] = {}, along_y[4] = {};
};

namespace grid_point_detail {

// The one or two cells of an axis, from `low` on; the weights of those out of bounds are not asked for.
template <class T>
struct Axis {
  int64_t low = 0;
  int count = 0;  // 0: nothing in bounds
  T weight[2] = {}, along[2] = {};
};

template <class T>
Axis<T> axis(Coordinate<T> at, int64_t size, bool nearest) {
  Axis<T> a;
  if (!(at.x >= -1 && at.x <= T(size))) return a;  // before the cast, which an int64 may not hold
  const T whole = nearest ? std::nearbyint(at.x) : std::floor(at.x);
  a.low = int64_t(whole);
  a.count = nearest ? 1 : 2;
  const T fraction = nearest ? T(0) : at.x - whole;
  a.weight[0] = 1 - fraction;
  a.weight[1] = fraction;
  a.along[1] = nearest ? T(0) : at.slope;
  a.along[0] = -a.along[1];
  return a;
}

}  // namespace grid_point_detail

template <class T>
Taps<T> taps(T x, T y, int64_t height, int64_t width, const Grid& grid) {
  Taps<T> out;
  const auto at_x = coordinate(x, width, grid), at_y = coordinate(y, height, grid);
  out.defined = !std::isnan(at_x.x) && !std::isnan(at_y.x);
  if (!out.defined) return out;
  const auto columns = grid_point_detail::axis(at_x, width, grid.nearest);
  const auto rows = grid_point_detail::axis(at_y, height, grid.nearest);
  for (int i = 0; i < rows.count; ++i) {
    const int64_t row = rows.low + i;
    if (row < 0 || row >= height) continue;
    for (int j = 0; j < columns.count; ++j) {
      const int64_t column = columns.low + j;
      if (column < 0 || column >= width) continue;
      out.index[out.count] = row * width + column;
      out.weight[out.count] = rows.weight[i] * columns.weight[j];
      out.along_x[out.count] = rows.weight[i] * columns.along[j];
      out.along_y[out.count] = rows.along[i] * columns.weight[j];
      ++out.count;
    }
  }
  return out;
}

// The value of one map at those cells.
template <class T>
T sample(const Taps<T>& taps, const T* map) {
  if (!taps.defined) return T(NAN);
  T sum = 0;
  for (int k = 0; k < taps.count; ++k) sum += taps.weight[k] * map[taps.index[k]];
  return sum;
}

}  // namespace segops
