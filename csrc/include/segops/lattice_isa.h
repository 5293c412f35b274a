// No include guard: compiled once for each instruction set (see foreach_isa.h). The passes over points and vertices.
#include "segops/row.h"
#include "segops/simplex_isa.h"

// A block of maps (labels, points) to rows and back, a few points at a time through a buffer in cache.
template <class T>
SEGOPS_INLINE void gather_rows(const T* maps, int64_t stride, int labels, int count, T pad, int width, T* rows) {
  for (int p = 0; p < count; ++p) {
    for (int l = 0; l < labels; ++l) rows[p * width + l] = maps[l * stride + p];
    for (int l = labels; l < width; ++l) rows[p * width + l] = pad;
  }
}
template <class T>
SEGOPS_INLINE void scatter_rows(const T* rows, int labels, int count, int width, T* maps, int64_t stride) {
  for (int l = 0; l < labels; ++l)
    for (int p = 0; p < count; ++p) maps[l * stride + p] = rows[p * width + l];
}

template <class Row, class T>
SEGOPS_INLINE void add_slice(Row& row, const PointPass<T>& pass, int64_t p, const T* table, const T* weight) {
  const uint32_t* vertex = pass.vertex + p * pass.per_point;
  weight += p * pass.per_point;
  for (int i = 0; i < pass.per_point; ++i) row.add(weight[i], table + int64_t(vertex[i]) * pass.width);
}

template <class Row, class T>
SEGOPS_INLINE void add_splat(const Row& row, const PointPass<T>& pass, int64_t p, T* table, const T* weight) {
  const uint32_t* vertex = pass.vertex + p * pass.per_point;
  weight += p * pass.per_point;
  for (int i = 0; i < pass.per_point; ++i) row.add_to(weight[i], table + int64_t(vertex[i]) * pass.width);
}

// False where there is no distribution: NaN, +inf, or every label -inf.
template <class Row, class T>
SEGOPS_INLINE bool softmax(Row& row, T& top, T& sum) {
  top = row.reduce(Max());
  row.exponentiate(top);
  sum = row.reduce(Plus());
  row.scale(T(1) / sum);
  return top > T(-1e29) && sum >= T(1) && sum < T(INFINITY);
}

template <class Row, class T>
bool forward_points_of(const PointPass<T>& pass, int64_t begin, int64_t end, T* sums, T* scratch) {
  const int width = pass.width;
  T* block = scratch + 2 * width;
  Row row(width, scratch);
  bool finite = true;
  T top, sum;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, end - first));
    if (pass.maps_in) gather_rows(pass.maps_in + first, pass.stride, pass.labels, count, pass.pad, width, block);
    for (int i = 0; i < count; ++i) {
      const int64_t p = first + i;
      if (pass.maps_in) {
        row.read(block + i * width);
        if (pass.log_softmax) {
          finite &= softmax(row, top, sum);
          row.read(block + i * width);
          row.shift(-top - std::log(sum));
        }
        if (pass.start) row.write(pass.start + p * width);
      } else if (pass.start) {
        row.read(pass.start + p * width);
      } else {
        row.fill(0);
      }
      if (pass.table) add_slice(row, pass, p, pass.table, pass.slice_weight);
      if (pass.softmax) finite &= softmax(row, top, sum);
      if (sums) add_splat(row, pass, p, sums, pass.splat_weight);
      if (pass.maps_out) row.write(block + i * width);
    }
    if (pass.maps_out) scatter_rows(block, pass.labels, count, width, pass.maps_out + first, pass.stride);
  }
  return finite;
}

// grad = d objective / d marginals to d objective / d state, through the softmax of the state.
template <class Row, class T>
void backward_points_of(const PointPass<T>& pass, int64_t begin, int64_t end, T* sums, T* scratch) {
  const int width = pass.width;
  T* block = scratch + 2 * width;
  Row state(width, scratch), grad(width, scratch + width);
  T top, sum;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, end - first));
    if (pass.maps_in) gather_rows(pass.maps_in + first, pass.stride, pass.labels, count, T(0), width, block);
    for (int i = 0; i < count; ++i) {
      const int64_t p = first + i;
      state.read(pass.start + p * width);
      if (pass.table) add_slice(state, pass, p, pass.table, pass.slice_weight);
      softmax(state, top, sum);
      if (pass.maps_in) {
        grad.read(block + i * width);
      } else {
        grad.fill(0);
        add_slice(grad, pass, p, pass.grad_table, pass.splat_weight);
      }
      if (pass.softmax) {
        grad.multiply(state);
        grad.add(-grad.reduce(Plus()), state);
      }
      if (sums) add_splat(grad, pass, p, sums, pass.slice_weight);
      if (pass.grad_is_new)
        grad.write(pass.grad + p * width);
      else
        grad.add(T(1), pass.grad + p * width);
      if (pass.maps_out) {
        if (pass.log_softmax) grad.add(-grad.reduce(Plus()), state);
        grad.write(block + i * width);
      } else if (!pass.grad_is_new) {
        grad.write(pass.grad + p * width);
      }
    }
    if (pass.maps_out) scatter_rows(block, pass.labels, count, width, pass.maps_out + first, pass.stride);
  }
}

// The sums of all threads to one table, leaving zeros for the next sums.
template <class Row, class T>
void merge_rows_of(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  Row row(pass.width, scratch), zero(pass.width, scratch + pass.width);
  zero.fill(0);
  for (int64_t v = begin; v < end; ++v) {
    row.fill(0);
    for (int t = 0; t < pass.parts; ++t) {
      if (v < pass.touched[t].begin || v >= pass.touched[t].end) continue;
      T* sums = pass.sums[t] + v * pass.width;
      row.add(T(1), sums);
      zero.write(sums);
    }
    row.write(pass.out + v * pass.width);
  }
}

template <class Row, class T>
void blur_rows_of(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  Row row(pass.width, scratch);
  for (int64_t v = begin; v < end; ++v) {
    row.read(pass.in + v * pass.width);
    row.add(T(0.5), pass.in + int64_t(pass.neighbour[2 * v]) * pass.width);
    row.add(T(0.5), pass.in + int64_t(pass.neighbour[2 * v + 1]) * pass.width);
    row.write(pass.out + v * pass.width);
  }
}

// out = energy * in, label by label or through the (labels, width) rows of a transposed matrix.
template <class Row, class T>
void couple_rows_of(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  Row row(pass.width, scratch);
  for (int64_t v = begin; v < end; ++v) {
    const T* in = pass.in + v * pass.width;
    if (pass.matrix) {
      row.fill(0);
      for (int l = 0; l < pass.labels; ++l) row.add(in[l], pass.energy + l * pass.width);
    } else {
      row.read(in);
      row.multiply(pass.energy);
    }
    row.write(pass.out + v * pass.width);
  }
}

template <class T>
bool forward_points(const PointPass<T>& pass, int64_t begin, int64_t end, T* sums, T* scratch) {
  SEGOPS_WITH_ROW(T, pass.width, forward_points_of, pass, begin, end, sums, scratch);
}
template <class T>
void backward_points(const PointPass<T>& pass, int64_t begin, int64_t end, T* sums, T* scratch) {
  SEGOPS_WITH_ROW(T, pass.width, backward_points_of, pass, begin, end, sums, scratch);
}
template <class T>
void merge_rows(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  SEGOPS_WITH_ROW(T, pass.width, merge_rows_of, pass, begin, end, scratch);
}
template <class T>
void blur_rows(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  SEGOPS_WITH_ROW(T, pass.width, blur_rows_of, pass, begin, end, scratch);
}
template <class T>
void couple_rows(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  SEGOPS_WITH_ROW(T, pass.width, couple_rows_of, pass, begin, end, scratch);
}
