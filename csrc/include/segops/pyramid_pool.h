// Averages over grids of several sizes, a plane at a time; see segops/reference/pyramid_pool.py.
//
// The bounds of all bins of all levels cut rows and columns into intervals that no bin cuts: a plane becomes a small
// table of cells, and a bin is a rectangle of these. Forward, a plane is read once, into the sums of its cells;
// backward, the gradients of the bins are summed in the cells, and every position gets that of its cell.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::pyramid {

struct Bin {
  int64_t first, last;  // intervals [first, last)
  int64_t length;       // positions
};

// Rows, or columns: interval i has the positions [cuts[i], cuts[i + 1]).
struct Axis {
  std::vector<int64_t> cuts;
  std::vector<std::vector<Bin>> levels;

  Axis(int64_t length, const std::vector<int64_t>& sizes) {
    const auto start = [length](int64_t i, int64_t n) { return i * length / n; };
    const auto end = [length](int64_t i, int64_t n) { return ((i + 1) * length + n - 1) / n; };
    for (int64_t n : sizes)
      for (int64_t i = 0; i < n; ++i) {
        cuts.push_back(start(i, n));
        cuts.push_back(end(i, n));
      }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    const auto interval = [this](int64_t at) { return std::lower_bound(cuts.begin(), cuts.end(), at) - cuts.begin(); };
    for (int64_t n : sizes) {
      auto& bins = levels.emplace_back();
      for (int64_t i = 0; i < n; ++i)
        bins.push_back({interval(start(i, n)), interval(end(i, n)), end(i, n) - start(i, n)});
    }
  }
  int64_t length() const { return cuts.back(); }
  int64_t intervals() const { return int64_t(cuts.size()) - 1; }
};

struct Pyramid {
  Axis rows, columns;

  int64_t plane() const { return rows.length() * columns.length(); }
  int64_t bins() const {
    int64_t count = 0;
    for (size_t l = 0; l < rows.levels.size(); ++l) count += rows.levels[l].size() * columns.levels[l].size();
    return count;
  }
};

// The table of cells, and a line as wide as the plane or as the table.
template <class T>
struct Work {
  Buffer<T> cells, line;
  explicit Work(const Pyramid& p)
      : cells(p.rows.intervals() * p.columns.intervals()), line(std::max(p.columns.length(), p.columns.intervals())) {}
};

#define SEGOPS_ISA_FILE "segops/pyramid_pool_isa.h"
#include "segops/foreach_isa.h"

// body(begin, end, work): planes for each thread, as many as are worth it.
template <class T, class Body>
void each_plane(const Pyramid& p, int64_t planes, Parallel& parallel, const Body& body) {
  constexpr int64_t kGrain = 1 << 14;  // positions
  parallel.range(planes, std::max<int64_t>(1, kGrain / p.plane()), [&](int64_t begin, int64_t end) {
    Work<T> work(p);
    body(begin, end, work);
  });
}

template <class T>
void forward(const Pyramid& p, const T* x, int64_t planes, T* out, Parallel& parallel) {
  each_plane<T>(p, planes, parallel, [&](int64_t begin, int64_t end, Work<T>& work) {
    for (int64_t i = begin; i < end; ++i) {
      SEGOPS_BY_ISA(sum_cells<T>)(p, x + i * p.plane(), work);
      SEGOPS_BY_ISA(average_bins<T>)(p, work, out + i * p.bins());
    }
  });
}

template <class T>
void backward(const Pyramid& p, const T* grad, int64_t planes, T* grad_x, Parallel& parallel) {
  each_plane<T>(p, planes, parallel, [&](int64_t begin, int64_t end, Work<T>& work) {
    for (int64_t i = begin; i < end; ++i) {
      SEGOPS_BY_ISA(gather_bins<T>)(p, grad + i * p.bins(), work);
      SEGOPS_BY_ISA(spread_cells<T>)(p, work, grad_x + i * p.plane());
    }
  });
}

}  // namespace segops::pyramid
