// No include guard: simplex.h includes it for scalars, the CPU kernels once for each instruction set, where T is a SIMD
// vector of points (a vector type must be seen inside its namespace, see foreach_isa.h).

// The simplex that encloses a point. `scaled` holds the dim features times feature_scale. On return, for each of the
// dim + 1 coordinates, quotient * (dim + 1) is the remainder-0 vertex and rank the order of the offsets from it
// (0: largest); weight[r] is the barycentric weight of the vertex of remainder r.
// No product is fused with a sum: on a grid, points lie on faces of the lattice's cells, and the last bit decides which
// vertices exist. Dim is int, or std::integral_constant<int, D> to unroll.
template <class Dim, class T>
SEGOPS_HOST_DEVICE void find_simplex(Dim dim, const T* scaled, T* quotient, T* rank, T* weight) {
  const T zero = T{} * 0, one = zero + 1.f, size = zero + float(dim + 1), inverse = one / size;
  T offset[kMaxDim + 1], by_rank[kMaxDim + 1];
  T excess = zero, above = zero;
  for (int i = dim; i >= 0; --i) {
    T elevated = above;
    if (i > 0) {
      elevated = above - product(scaled[i - 1], zero + float(i));
      above = above + scaled[i - 1];
    }
    quotient[i] = floor_of(product(elevated, inverse) + (zero + 0.5f));
    offset[i] = elevated - quotient[i] * size;
    excess = excess + quotient[i];
    rank[i] = zero;
  }
  for (int i = 0; i < dim; ++i)
    for (int j = i + 1; j <= dim; ++j) {
      const T less = one_if_less(offset[i], offset[j]);
      rank[i] = rank[i] + less;
      rank[j] = rank[j] + (one - less);
    }
  // The rounded coordinates must sum to 0: move those with the smallest or the largest offsets by one.
  for (int i = 0; i <= dim; ++i) {
    const T moved = rank[i] + excess;
    const T step = one_if_less(moved, zero) - one_if_less(zero + float(dim), moved);
    rank[i] = moved + step * size;
    quotient[i] = quotient[i] + step;
    offset[i] = (offset[i] - step * size) * inverse;
  }
  for (int r = 0; r <= dim; ++r) {
    by_rank[r] = zero;
    for (int i = 0; i <= dim; ++i) by_rank[r] = by_rank[r] + where_equal(rank[i], zero + float(r), offset[i]);
  }
  weight[0] = one + by_rank[dim] - by_rank[0];
  for (int r = 1; r <= dim; ++r) weight[r] = by_rank[dim - r] - by_rank[dim - r + 1];
}
