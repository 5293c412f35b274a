// The order in which points are visited: cell by cell of a coarse grid over their features, so that the vertices that a
// cell touches stay in the first cache. On an image, cells are tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "segops/buffer.h"

namespace segops {

constexpr int64_t kPointsPerCell = 2048;
constexpr double kStretch = 4;  // along the first feature, an image's x, so that a cell's rows are runs in memory

// A permutation of the points; those of a cell keep their order. Features (dim, points), rows `stride` apart.
template <class T>
Buffer<int32_t> order_by_cell(const T* features, int64_t stride, int dim, int64_t points) {
  const int axes = std::min(dim, 3);
  T low[3], scale[3];
  double volume = 1;
  for (int a = 0; a < axes; ++a) {
    const auto [least, most] = std::minmax_element(features + a * stride, features + a * stride + points);
    low[a] = *least;
    scale[a] = *most - *least;
    if (scale[a] > 0) volume *= scale[a];
  }
  // Cells have the volume that gives each its share of the points, had they filled the box.
  const double cube = std::pow(volume * kPointsPerCell / std::max<double>(1, double(points)), 1.0 / axes);
  int64_t cells = 1, step[3] = {0, 0, 0};
  T end[3];
  for (int a = 0; a < axes; ++a) {
    const double side = axes == 1 ? cube : cube * (a == 0 ? kStretch : std::pow(kStretch, -1.0 / (axes - 1)));
    const double count =
        std::isfinite(scale[a]) && side > 0 ? std::clamp(std::ceil(scale[a] / side), 1.0, 1024.0) : 1.0;
    scale[a] = count > 1 ? T(count / scale[a] * (1 - 1e-6)) : T(0);
    step[a] = cells;
    end[a] = T(count);
    cells *= int64_t(count);
  }
  if (cells > 4 * points) cells = 1, step[0] = step[1] = step[2] = 0;  // a box that is mostly empty

  Buffer<int32_t> cell(points), order(points);
  std::vector<int32_t> first(cells + 1, 0);
  for (int64_t p = 0; p < points; ++p) {
    int64_t c = 0;
    for (int a = 0; a < axes; ++a) {
      const T x = (features[a * stride + p] - low[a]) * scale[a];
      c += step[a] * (x > 0 && x < end[a] ? int64_t(x) : 0);  // nobody has checked yet that there is no NaN
    }
    cell[p] = int32_t(c);
    ++first[cell[p] + 1];
  }
  for (int64_t c = 0; c < cells; ++c) first[c + 1] += first[c];
  for (int64_t p = 0; p < points; ++p) order[first[cell[p]]++] = int32_t(p);
  return order;
}

}  // namespace segops
