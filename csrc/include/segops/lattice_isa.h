// No include guard: compiled once for each instruction set (see foreach_isa.h). The passes over points and vertices.
//
// A pass takes kLanes points at a time through a block of rows in the first cache, one step for all of them and then
// the next: the steps of one point wait for each other, those of different points do not.
#include "segops/chunk.h"
#include "segops/simplex_isa.h"

// Maps (labels, points) to the rows of some points, and back. Where these are a full run of neighbours, in squares of
// eight by eight.
template <class T>
SEGOPS_INLINE void gather_rows(const T* maps, const PointPass<T>& pass, int64_t first, int count, T pad, T* rows) {
  const int32_t* order = pass.order + first;
  const int width = pass.width, labels = pass.labels;
  if (std::is_same_v<T, float> && count == kLanes && is_run(order, count)) {
    for (int l = 0; l < width; l += 8)
      for (int p = 0; p < kLanes; p += 8) {
        F8 square[8];
        for (int i = 0; i < 8; ++i)
          square[i] =
              l + i < labels ? load<F8>((const float*)maps + (l + i) * pass.stride + order[p]) : splat<F8>(float(pad));
        transpose(square);
        for (int i = 0; i < 8; ++i) store<F8>((float*)rows + (p + i) * width + l, square[i]);
      }
    return;
  }
  for (int p = 0; p < count; ++p) {
    for (int l = 0; l < labels; ++l) rows[p * width + l] = maps[l * pass.stride + order[p]];
    for (int l = labels; l < width; ++l) rows[p * width + l] = pad;
  }
}
template <class T>
SEGOPS_INLINE void scatter_rows(const T* rows, const PointPass<T>& pass, int64_t first, int count) {
  const int32_t* order = pass.order + first;
  const int width = pass.width, labels = pass.labels;
  T* maps = pass.maps_out;
  if (std::is_same_v<T, float> && count == kLanes && is_run(order, count)) {
    for (int l = 0; l < labels; l += 8)
      for (int p = 0; p < kLanes; p += 8) {
        F8 square[8];
        for (int i = 0; i < 8; ++i) square[i] = load<F8>((const float*)rows + (p + i) * width + l);
        transpose(square);
        for (int i = 0; i < 8 && l + i < labels; ++i)
          store<F8>((float*)maps + (l + i) * pass.stride + order[p], square[i]);
      }
    return;
  }
  for (int p = 0; p < count; ++p)
    for (int l = 0; l < labels; ++l) maps[l * pass.stride + order[p]] = rows[p * width + l];
}

// rows = start + slice(table); start may be missing. PerPoint is int, or a constant to unroll.
template <class C, class T, class PerPoint>
SEGOPS_INLINE void slice_chunk(int offset, int width, PerPoint per_point, const uint32_t* vertex, const T* weight,
                               int count, const T* table, const T* start, T* rows) {
  for (int p = 0; p < count; ++p, vertex += per_point, weight += per_point) {
    C sum;
    if (start)
      sum.read(start + p * width + offset);
    else
      sum.clear();
    for (int i = 0; i < per_point; ++i) sum.add(weight[i], table + int64_t(vertex[i]) * width + offset);
    sum.write(rows + p * width + offset);
  }
}
template <class C, class T, class PerPoint>
SEGOPS_INLINE void splat_chunk(int offset, int width, PerPoint per_point, const uint32_t* vertex, const T* weight,
                               int count, const T* rows, T* table) {
  for (int p = 0; p < count; ++p, vertex += per_point, weight += per_point) {
    C row;
    row.read(rows + p * width + offset);
    for (int i = 0; i < per_point; ++i) row.add_to(weight[i], table + int64_t(vertex[i]) * width + offset);
  }
}

// An image's two kernels touch 3 + 6 vertices a pixel: the case worth a loop of its own.
using Photo = std::integral_constant<int, 9>;

template <class T>
SEGOPS_INLINE void slice_rows(const PointPass<T>& pass, int64_t first, int count, const T* table, const T* weight,
                              const T* start, T* rows) {
  const int64_t entry = first * pass.per_point;
  if (pass.per_point == Photo())
    SEGOPS_EACH_CHUNK(T, pass.width, slice_chunk, Photo(), pass.vertex + entry, weight + entry, count, table, start,
                      rows);
  else
    SEGOPS_EACH_CHUNK(T, pass.width, slice_chunk, pass.per_point, pass.vertex + entry, weight + entry, count, table,
                      start, rows);
}
template <class T>
SEGOPS_INLINE void splat_rows(const PointPass<T>& pass, int64_t first, int count, const T* rows, const T* weight,
                              T* table) {
  const int64_t entry = first * pass.per_point;
  if (pass.per_point == Photo())
    SEGOPS_EACH_CHUNK(T, pass.width, splat_chunk, Photo(), pass.vertex + entry, weight + entry, count, rows, table);
  else
    SEGOPS_EACH_CHUNK(T, pass.width, splat_chunk, pass.per_point, pass.vertex + entry, weight + entry, count, rows,
                      table);
}

template <class T, class Op>
SEGOPS_INLINE T reduce(const T* row, int width, Op op) {
  using V = Eight<T>;
  V all = load<V>(row);
  for (int i = 8; i < width; i += 8) all = op(all, load<V>(row + i));
  return fold(all, op);
}

// False where there is no distribution: NaN, +inf, or every label -inf. With `norm`, also its logarithm for each row.
template <class T>
SEGOPS_INLINE bool softmax_rows(T* rows, int count, int width, T* norm = nullptr) {
  using V = Eight<T>;
  bool finite = true;
  for (int p = 0; p < count; ++p) {
    T* row = rows + p * width;
    const T top = reduce(row, width, Max());
    finite &= top > T(-1e29);
    if (norm) norm[p] = top;
    for (int i = 0; i < width; i += 8) store<V>(row + i, load<V>(row + i) - top);
  }
  if constexpr (std::is_same_v<T, float>) {
    int i = 0;
    constexpr int kStep = Lanes<WideFloat>::kCount;
    for (; i + kStep <= count * width; i += kStep) store<WideFloat>(rows + i, exp(load<WideFloat>(rows + i)));
    if (i < count * width) store<F8>(rows + i, exp(load<F8>(rows + i)));
  } else {
    for (int i = 0; i < count * width; i += 8) store<D8>(rows + i, exp(load<D8>(rows + i)));
  }
  for (int p = 0; p < count; ++p) {
    T* row = rows + p * width;
    const T sum = reduce(row, width, Plus());
    finite &= sum >= T(1) && sum < T(INFINITY);
    if (norm) norm[p] += std::log(sum);
    const T scale = T(1) / sum;
    for (int i = 0; i < width; i += 8) store<V>(row + i, load<V>(row + i) * scale);
  }
  return finite;
}

template <class T>
SEGOPS_INLINE void copy_rows(const T* from, int64_t size, T* to) {
  using V = Eight<T>;
  for (int64_t i = 0; i < size; i += 8) store<V>(to + i, load<V>(from + i));
}

// State: start + slice(table). Then any of: softmax, splat, write to maps. See PointPass.
template <class T>
bool forward_points(const PointPass<T>& pass, int64_t begin, int64_t end, T* sums, T* scratch) {
  const int width = pass.width;
  T norm[kLanes], *rows = scratch;
  bool finite = true;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, end - first));
    T* start = pass.start ? pass.start + first * width : nullptr;
    if (pass.maps_in) {
      gather_rows(pass.maps_in, pass, first, count, pass.pad, rows);
      if (pass.log_softmax) {
        copy_rows(rows, count * width, start);
        finite &= softmax_rows(rows, count, width, norm);
        for (int p = 0; p < count; ++p)
          for (int l = 0; l < width; ++l) start[p * width + l] -= norm[p];
        copy_rows(start, count * width, rows);
      } else if (start) {
        copy_rows(rows, count * width, start);
      }
    }
    if (pass.table)
      slice_rows(pass, first, count, pass.table, pass.slice_weight, pass.maps_in ? rows : start, rows);
    else if (!pass.maps_in)
      copy_rows(start, count * width, rows);
    if (pass.softmax) finite &= softmax_rows(rows, count, width);
    if (sums) splat_rows(pass, first, count, rows, pass.splat_weight, sums);
    if (pass.maps_out) scatter_rows(rows, pass, first, count);
  }
  return finite;
}

// grad = marginals * (grad - <grad, marginals>)
template <class T>
SEGOPS_INLINE void softmax_backward_rows(const T* marginals, T* grad, int count, int width) {
  using V = Eight<T>;
  for (int p = 0; p < count; ++p, marginals += width, grad += width) {
    V dot{};
    for (int i = 0; i < width; i += 8) {
      const V product = load<V>(grad + i) * load<V>(marginals + i);
      dot += product;
      store<V>(grad + i, product);
    }
    const V all = splat<V>(-fold(dot, Plus()));
    for (int i = 0; i < width; i += 8) store<V>(grad + i, fma(all, load<V>(marginals + i), load<V>(grad + i)));
  }
}

// d objective / d marginals, from maps_in or sliced from grad_table, to d objective / d state: added to pass.grad, and
// splatted. The marginals are computed again from the state.
template <class T>
void backward_points(const PointPass<T>& pass, int64_t begin, int64_t end, T* sums, T* scratch) {
  using V = Eight<T>;
  const int width = pass.width;
  T *marginals = scratch, *grad = scratch + kLanes * width;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, end - first));
    const T* start = pass.start + first * width;
    if (pass.table)
      slice_rows(pass, first, count, pass.table, pass.slice_weight, start, marginals);
    else
      copy_rows(start, count * width, marginals);
    softmax_rows(marginals, count, width);
    if (pass.maps_in)
      gather_rows(pass.maps_in, pass, first, count, T(0), grad);
    else
      slice_rows(pass, first, count, pass.grad_table, pass.splat_weight, static_cast<const T*>(nullptr), grad);
    if (pass.softmax) softmax_backward_rows(marginals, grad, count, width);
    if (sums) splat_rows(pass, first, count, grad, pass.slice_weight, sums);
    T* total = pass.grad + first * width;
    if (!pass.grad_is_new)
      for (int i = 0; i < count * width; i += 8) store<V>(grad + i, load<V>(grad + i) + load<V>(total + i));
    if (!pass.maps_out) {
      copy_rows(grad, count * width, total);
      continue;
    }
    if (pass.log_softmax)
      for (int p = 0; p < count; ++p) {
        const T sum = reduce(grad + p * width, width, Plus());
        for (int l = 0; l < width; ++l) grad[p * width + l] -= sum * marginals[p * width + l];
      }
    scatter_rows(grad, pass, first, count);
  }
}

// The sums of all threads to one table, leaving zeros for the next sums.
template <class C, class T>
SEGOPS_INLINE void merge_chunk(int offset, int, const RowPass<T>& pass, int64_t begin, int64_t end) {
  C zero;
  zero.clear();
  for (int64_t v = begin; v < end; ++v) {
    C row = zero;
    for (int t = 0; t < pass.parts; ++t) {
      if (v < pass.touched[t].begin || v >= pass.touched[t].end) continue;
      T* sums = pass.sums[t] + v * pass.width + offset;
      row.add(T(1), sums);
      zero.write(sums);
    }
    row.write(pass.out + v * pass.width + offset);
  }
}
template <class T>
void merge_rows(const RowPass<T>& pass, int64_t begin, int64_t end) {
  SEGOPS_EACH_CHUNK(T, pass.width, merge_chunk, pass, begin, end);
}

template <class C, class T>
SEGOPS_INLINE void blur_chunk(int offset, int width, const RowPass<T>& pass, int64_t begin, int64_t end) {
  const T* in = pass.in + offset;
  T* out = pass.out + offset;
  const int32_t* neighbour = pass.neighbour;
  for (int64_t v = begin; v < end; ++v) {
    C row;
    row.read(in + v * width);
    row.add(T(0.5), in + int64_t(neighbour[2 * v]) * width);
    row.add(T(0.5), in + int64_t(neighbour[2 * v + 1]) * width);
    row.write(out + v * width);
  }
}
template <class T>
void blur_rows(const RowPass<T>& pass, int64_t begin, int64_t end) {
  SEGOPS_EACH_CHUNK(T, pass.width, blur_chunk, pass, begin, end);
}

// out = energy * in, label by label or through the (labels, width) rows of a transposed matrix.
template <class C, class T>
SEGOPS_INLINE void couple_chunk(int offset, int, const RowPass<T>& pass, const T* in, T* out) {
  C row;
  if (pass.matrix) {
    row.clear();
    for (int l = 0; l < pass.labels; ++l) row.add(in[l], pass.energy + l * pass.width + offset);
  } else {
    row.read(in + offset);
    row.multiply(pass.energy + offset);
  }
  row.write(out + offset);
}
template <class T>
void couple_rows(const RowPass<T>& pass, int64_t begin, int64_t end, T* scratch) {
  for (int64_t v = begin; v < end; ++v) {
    SEGOPS_EACH_CHUNK(T, pass.width, couple_chunk, pass, pass.in + v * pass.width, scratch);
    copy_rows(scratch, pass.width, pass.out + v * pass.width);  // in and out may be one table
  }
}
