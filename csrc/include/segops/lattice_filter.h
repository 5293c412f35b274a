// Filtering on one or several lattices over the same points: splat, blur, slice on rows of labels.
#pragma once

#include <numeric>

#include "segops/lattice.h"
#include "segops/memory.h"
#include "segops/point_order.h"

namespace segops {

enum class Normalization { kNone, kBefore, kAfter, kSymmetric };

inline int padded_width(int labels) { return (labels + 7) / 8 * 8; }

template <class T>
class LatticeFilter {
 public:
  LatticeFilter(int64_t points, const std::vector<int>& dims, int labels, Parallel& parallel) : parallel_(parallel) {
    entries_.points = points;
    require_memory(bytes(points, dims, labels),
                   std::to_string(points) + " points with " + std::to_string(labels) + " labels");
    lattices_.resize(dims.size());
    base_.assign(dims.size(), 0);
    for (int dim : dims)
      if (points >= INT32_MAX / (dim + 1))
        throw std::invalid_argument("features: expected fewer than 2^31 / (D + 1) points, got " +
                                    std::to_string(points));
    for (size_t k = 0; k < dims.size(); ++k) {
      lattices_[k].dim = dims[k];
      lattices_[k].first_entry = entries_.per_point;
      entries_.per_point += dims[k] + 1;
    }
    entries_.vertex = Buffer<uint32_t>(points * entries_.per_point);
    entries_.weight = Buffer<T>(points * entries_.per_point);
    if (dims.empty()) {  // nothing to order the points by
      entries_.order = Buffer<int32_t>(points);
      std::iota(entries_.order.data(), entries_.order.data() + points, 0);
    }
  }

  // What the arrays of points take, inputs and results included; tables of vertices come on top, and are smaller.
  static double bytes(int64_t points, const std::vector<int>& dims, int labels) {
    double per_point = 3.0 * padded_width(labels) * sizeof(T);
    for (int dim : dims) per_point += (dim + 1) * (sizeof(uint32_t) + sizeof(T)) + dim * sizeof(T);
    return per_point * double(points);
  }

  // Lattice k of `features` (dim, points). The norm is folded into the weights. Lattices are built in order: a new k
  // needs all that follow it anew, because their rows lie behind its own.
  void build(int k, const T* features, int64_t stride, Normalization normalization) {
    Lattice<T>& lattice = lattices_[k];
    if (k == 0) entries_.order = order_by_cell(features, stride, lattice.dim, points());
    build_lattice(features, stride, lattice, entries_, parallel_);
    base_[k] = k == 0 ? 0 : base_[k - 1] + lattices_[k - 1].vertices + 1;
    rows_ = base_[k] + lattice.vertices + 1;
    if (rows_ >= INT32_MAX) throw std::invalid_argument("features: lattices of more than 2^31 vertices");
    fold_norm(k, normalization);
  }

  // Room for rows of `labels`, all sums 0. Call after build.
  void reserve(int labels) {
    width_ = padded_width(labels);
    const int parts = point_parts();
    sums_.resize(parts);
    sum_pointers_.resize(parts);
    const int64_t size = rows_ * width_;
    for (auto* table : {&ping_, &pong_})
      if (table->size() < size) *table = Buffer<T>(size);
    for (int t = 0; t < parts; ++t)
      if (sums_[t].size() < size) sums_[t] = Buffer<T>(size);
    parallel_.run(parts, [&](int t) {
      sum_pointers_[t] = sums_[t].data();
      for (size_t k = 0; k < lattices_.size(); ++k) {
        const VertexRange range = touched(k, t);
        T* row = sums_[t].data() + base_[k] * width_;
        std::fill(row + int64_t(range.begin) * width_, row + int64_t(range.end) * width_, T(0));
      }
    });
    for (size_t k = 0; k < lattices_.size(); ++k)
      for (T* table : {ping_.data(), pong_.data()}) std::fill_n(table + base_[k] * width_, width_, T(0));
  }

  PointPass<T> pass(int labels) const {
    PointPass<T> pass;
    pass.order = entries_.order.data();
    pass.vertex = entries_.vertex.data();
    pass.per_point = entries_.per_point;
    pass.width = width_;
    pass.labels = labels;
    pass.stride = entries_.points;
    pass.slice_weight = entries_.weight.data();
    pass.splat_weight = splat_weight_.size() ? splat_weight_.data() : entries_.weight.data();
    return pass;
  }

  // False if a softmax met something that is no distribution.
  bool forward(const PointPass<T>& pass, bool splat) {
    const int parts = point_parts();
    std::vector<char> finite(parts);
    const auto run = SEGOPS_BY_ISA(forward_points<T>);
    each_part([&](int t, int64_t begin, int64_t end, T* scratch) {
      finite[t] = run(pass, begin, end, splat ? sums_[t].data() : nullptr, scratch);
    });
    return std::find(finite.begin(), finite.end(), 0) == finite.end();
  }

  void backward(const PointPass<T>& pass, bool splat) {
    const auto run = SEGOPS_BY_ISA(backward_points<T>);
    each_part([&](int t, int64_t begin, int64_t end, T* scratch) {
      run(pass, begin, end, splat ? sums_[t].data() : nullptr, scratch);
    });
  }

  // The threads' sums to `out` (rows, width): merged, and blurred along the axes 0..D or D..0.
  void merge(T* out) {
    each_lattice([&](int k, int64_t begin, int64_t end, T*) { merge_part(k, begin, end, out); });
  }
  void blur(const T* in, T* out, bool reverse) {
    if (small()) {
      each_lattice([&](int k, int64_t begin, int64_t end, T*) {
        for (int step = 0; step <= lattices_[k].dim; ++step) blur_part(k, step, begin, end, in, out, reverse);
      });
      return;
    }
    int last = 0;
    for (const auto& lattice : lattices_) last = std::max(last, lattice.dim);
    for (int step = 0; step <= last; ++step)
      each_lattice([&](int k, int64_t begin, int64_t end, T*) {
        if (step <= lattices_[k].dim) blur_part(k, step, begin, end, in, out, reverse);
      });
  }
  void merge_and_blur(T* out, bool reverse = false) {
    merge(ping_.data());
    blur(ping_.data(), out, reverse);
  }

  // out = energy[k] * in for every lattice: (width) factors of each label, or the (labels, width) rows of a matrix.
  void couple(const T* in, T* out, const std::vector<Buffer<T>>& energy, bool matrix, int labels) {
    const auto run = SEGOPS_BY_ISA(couple_rows<T>);
    each_lattice([&](int k, int64_t begin, int64_t end, T* scratch) {
      RowPass<T> pass = row_pass(k, in, out);
      pass.labels = labels;
      pass.energy = energy[k].data();
      pass.matrix = matrix;
      run(pass, begin, end, scratch);
    });
  }

  // body(k, begin, end, scratch) on pieces of every lattice's rows; vertex v is row v of lattice k.
  template <class Body>
  void each_lattice(const Body& body) {
    const int parts = small() ? 1 : parallel_.threads(), lattices = int(lattices_.size());
    parallel_.run(parts * lattices, [&](int i) {
      Buffer<T> scratch(scratch_size());
      const int k = i % lattices, part = i / lattices;
      const int64_t count = lattices_[k].vertices;
      body(k, 1 + Parallel::cut(count, part, parts), 1 + Parallel::cut(count, part + 1, parts), scratch.data());
    });
  }

  int64_t points() const { return entries_.points; }
  int64_t rows() const { return rows_; }
  int width() const { return width_; }
  int64_t base(int k) const { return base_[k]; }
  const Lattice<T>& lattice(int k) const { return lattices_[k]; }
  int lattices() const { return int(lattices_.size()); }
  Parallel& parallel() { return parallel_; }

 private:
  // Where tables are small, a lattice is one thread's: to wait for others at each axis would cost more than it saves,
  // and on a busy machine much more.
  bool small() const { return rows_ * width_ < (1 << 21); }

  void merge_part(int k, int64_t begin, int64_t end, T* out) {
    std::vector<T*> sums(sum_pointers_);
    std::vector<VertexRange> ranges;
    for (size_t t = 0; t < sums.size(); ++t) {
      sums[t] += base_[k] * width_;
      ranges.push_back(touched(k, int(t)));
    }
    RowPass<T> pass = row_pass(k, nullptr, out);
    pass.parts = int(sums.size());
    pass.sums = sums.data();
    pass.touched = ranges.data();
    if (begin == 1) std::fill_n(pass.out, width_, T(0));  // row 0 stands for missing neighbours
    SEGOPS_BY_ISA(merge_rows<T>)(pass, begin, end);
  }

  void blur_part(int k, int step, int64_t begin, int64_t end, const T* in, T* out, bool reverse) {
    const Lattice<T>& lattice = lattices_[k];
    const T* from = step == 0 ? in : (step % 2 ? pong_ : ping_).data();
    T* to = step == lattice.dim ? out : (step % 2 ? ping_ : pong_).data();
    RowPass<T> pass = row_pass(k, from, to);
    const int axis = reverse ? lattice.dim - step : step;
    pass.neighbour = lattice.neighbour.data() + int64_t(axis) * (lattice.vertices + 1) * 2;
    SEGOPS_BY_ISA(blur_rows<T>)(pass, begin, end);
  }

  int point_parts() const { return int(lattices_.empty() ? 1 : lattices_[0].touched.size()); }
  VertexRange touched(size_t k, int t) const { return lattices_[k].touched[t]; }
  int64_t scratch_size() const { return int64_t(width_) * kLanes * 2; }

  RowPass<T> row_pass(int k, const T* in, T* out) const {
    RowPass<T> pass;
    pass.width = width_;
    pass.in = in ? in + base_[k] * width_ : nullptr;
    pass.out = out + base_[k] * width_;
    return pass;
  }

  // body(t, begin, end, scratch) on the points of each thread, as they were cut when the lattices were built.
  template <class Body>
  void each_part(const Body& body) {
    const int parts = point_parts();
    parallel_.run(parts, [&](int t) {
      Buffer<T> scratch(scratch_size());
      body(t, Parallel::cut(points(), t, parts), Parallel::cut(points(), t + 1, parts), scratch.data());
    });
  }

  void fold_norm(int k, Normalization normalization);

  Parallel& parallel_;
  Entries<T> entries_;
  Buffer<T> splat_weight_;  // where it differs from the slice's
  std::vector<Lattice<T>> lattices_;
  std::vector<int64_t> base_;  // first row of each lattice in the tables
  int64_t rows_ = 0;
  int width_ = 0;
  std::vector<Buffer<T>> sums_;
  std::vector<T*> sum_pointers_;
  Buffer<T> ping_, pong_;
};

// The norm is the filtered ones. Its scales go into the weights, and the vertices become rows of the tables.
template <class T>
void LatticeFilter<T>::fold_norm(int k, Normalization normalization) {
  const Lattice<T>& lattice = lattices_[k];
  const int per_point = entries_.per_point, size = lattice.dim + 1, parts = point_parts();
  const int64_t rows = int64_t(lattice.vertices) + 1;
  const bool split = normalization == Normalization::kBefore || normalization == Normalization::kAfter;
  if (split && !splat_weight_.size()) {
    splat_weight_ = Buffer<T>(points() * per_point);
    for (int before = 0; before < k; ++before)
      parallel_.range(points(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p)
          std::copy_n(&entries_.weight[p * per_point + lattices_[before].first_entry], lattices_[before].dim + 1,
                      &splat_weight_[p * per_point + lattices_[before].first_entry]);
      });
  }
  Buffer<T> norm(rows), other(rows);
  if (normalization != Normalization::kNone) {
    std::vector<std::vector<T>> sums(parts);
    parallel_.run(parts, [&](int t) {
      sums[t].assign(rows, T(0));
      for (int64_t p = Parallel::cut(points(), t, parts); p < Parallel::cut(points(), t + 1, parts); ++p) {
        const int64_t entry = p * per_point + lattice.first_entry;
        for (int r = 0; r < size; ++r) sums[t][entries_.vertex[entry + r]] += entries_.weight[entry + r];
      }
    });
    parallel_.range(rows, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        norm[v] = 0;
        for (const auto& part : sums) norm[v] += part[v];
      }
    });
    other[0] = 0;
    for (int axis = 0; axis < size; ++axis) {
      const int32_t* neighbour = lattice.neighbour.data() + axis * rows * 2;
      parallel_.range(rows - 1, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin + 1; v < end + 1; ++v)
          other[v] = norm[v] + T(0.5) * (norm[neighbour[2 * v]] + norm[neighbour[2 * v + 1]]);
      });
      std::swap(norm, other);
    }
  }
  const T alpha = lattice.alpha();
  const uint32_t base = uint32_t(base_[k]);
  parallel_.range(points(), 1 << 12, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      uint32_t* vertex = &entries_.vertex[p * per_point + lattice.first_entry];
      T* weight = &entries_.weight[p * per_point + lattice.first_entry];
      T n = 0;
      if (normalization != Normalization::kNone)
        for (int r = 0; r < size; ++r) n += weight[r] * norm[vertex[r]];
      n = alpha * n + T(1e-20);
      T slice = 1, splat = 1;
      if (normalization == Normalization::kSymmetric) slice = splat = 1 / std::sqrt(n);
      if (normalization == Normalization::kBefore) splat = 1 / n;
      if (normalization == Normalization::kAfter) slice = 1 / n;
      for (int r = 0; r < size; ++r) {
        vertex[r] += base;
        if (splat_weight_.size()) splat_weight_[p * per_point + lattice.first_entry + r] = weight[r] * splat;
        weight[r] *= slice;
      }
    }
  });
}

}  // namespace segops
