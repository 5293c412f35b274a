// Where bilinear interpolation to another size finds its values, as in torch.nn.functional.interpolate without
// antialiasing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace segops {

// Rows, or columns: position i of the result is (1 - fraction[i]) of cell[i] and fraction[i] of the next cell.
// Positions of one cell lie side by side: those of cell j are [first[j], first[j + 1]).
template <class T>
struct BilinearAxis {
  int64_t cells, size;
  std::vector<int64_t> cell, first;
  std::vector<T> fraction;  // padded, so that vectors may read behind the end

  BilinearAxis(int64_t cells_, int64_t size_, bool align_corners)
      : cells(cells_), size(size_), cell(size), first(cells + 1), fraction(size + 16) {
    const double scale =
        align_corners ? (size > 1 ? double(cells - 1) / double(size - 1) : 0.0) : double(cells) / double(size);
    for (int64_t i = 0; i < size; ++i) {
      const double at = align_corners ? scale * double(i) : std::max(0.0, scale * (double(i) + 0.5) - 0.5);
      cell[i] = std::min(int64_t(at), cells - 1);
      fraction[i] = cell[i] == cells - 1 ? T(0) : T(at - double(cell[i]));
    }
    for (int64_t j = 0; j <= cells; ++j) first[j] = std::lower_bound(cell.begin(), cell.end(), j) - cell.begin();
  }
  int64_t next(int64_t j) const { return std::min(j + 1, cells - 1); }
};

}  // namespace segops
