// No include guard: compiled once for each instruction set (see foreach_isa.h) by nonlocal_concatenation.h, which
// explains Path. A row is a cache line of channels.

// A row in float64.
template <class T>
struct Row {
  static constexpr int kParts = kLine<T> / kWidth<double>;
  WideDouble part[kParts] = {};

  SEGOPS_INLINE_MEMBER void add(const Row& x) {
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) part[i] += x.part[i];
  }
  SEGOPS_INLINE_MEMBER void add(double factor, const Row& x) {
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) part[i] = fma(splat<WideDouble>(factor), x.part[i], part[i]);
  }
  SEGOPS_INLINE_MEMBER double dot(const Row& x) const {
    WideDouble products = part[0] * x.part[0];
#pragma GCC unroll 8
    for (int i = 1; i < kParts; ++i) products = fma(part[i], x.part[i], products);
    double sum = 0;
#pragma GCC unroll 8
    for (int i = 0; i < kWidth<double>; ++i) sum += products[i];
    return sum;
  }
};

// As many floats as a vector of doubles has lanes.
typedef float FewFloats __attribute__((vector_size(sizeof(WideDouble) / 2), may_alias));

SEGOPS_INLINE WideDouble load_doubles(const double* p) { return load<WideDouble>(p); }
SEGOPS_INLINE WideDouble load_doubles(const float* p) {
  FewFloats v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, WideDouble);
}
SEGOPS_INLINE void store_doubles(double* p, WideDouble v) { store(p, v); }
SEGOPS_INLINE void store_doubles(float* p, WideDouble v) {
  const FewFloats narrow = __builtin_convertvector(v, FewFloats);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}
template <class T>
SEGOPS_INLINE Row<T> load_row(const T* p) {
  Row<T> x;
#pragma GCC unroll 8
  for (int i = 0; i < Row<T>::kParts; ++i) x.part[i] = load_doubles(p + i * kWidth<double>);
  return x;
}
template <class T>
SEGOPS_INLINE void store_row(T* p, const Row<T>& x, double scale) {
#pragma GCC unroll 8
  for (int i = 0; i < Row<T>::kParts; ++i) store_doubles(p + i * kWidth<double>, x.part[i] * scale);
}

// Up the path: the keys' rows are read, the queries' are written.
template <class T>
void integrate(const Path& path, T* rows, double scale) {
  Row<T> slope, sum;
  for (int64_t i = 0; i < path.count; ++i) {
    T* row = rows + path.row[i] * int64_t(kLine<T>);
    sum.add(path.gap[i], slope);
    if (path.row[i] >= path.queries)
      slope.add(load_row(row));
    else
      store_row(row, sum, scale);
  }
}

// Up for the dots of the queries, down for those of the keys, whose rows are overwritten by their gradients.
template <class T>
void differentiate(const Path& path, T* rows, double scale, double* dots) {
  Row<T> slope;
  for (int64_t i = 0; i < path.count; ++i) {
    const Row<T> x = load_row(rows + path.row[i] * int64_t(kLine<T>));
    if (path.row[i] >= path.queries)
      slope.add(x);
    else
      dots[path.row[i]] += slope.dot(x);
  }
  slope = {};
  Row<T> sum;
  for (int64_t i = path.count; i-- > 0;) {
    T* row = rows + path.row[i] * int64_t(kLine<T>);
    const Row<T> x = load_row(row);
    sum.add(path.gap[i + 1], slope);
    if (path.row[i] < path.queries) {
      slope.add(x);
    } else {
      dots[path.row[i]] += slope.dot(x);
      store_row(row, sum, scale);
    }
  }
}

// Eight positions of eight channels to rows, or back.
SEGOPS_INLINE void transpose_eight(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  F8 v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = load<F8>(from + i * from_stride);
  transpose(v);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) store(to + i * to_stride, v[i]);
}
SEGOPS_INLINE void transpose_eight(const double* from, int64_t from_stride, double* to, int64_t to_stride) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) to[i * to_stride + j] = from[j * from_stride + i];
}

// x (channels, count) to rows; 0 in the channels that a row has beyond them.
template <class T>
void pack_rows(const T* x, int64_t count, int channels, T* rows) {
  int64_t p = 0;
  if (channels == kLine<T>)
    for (; p + 8 <= count; p += 8)
      for (int c = 0; c < kLine<T>; c += 8)
        transpose_eight(x + c * count + p, count, rows + p * kLine<T> + c, kLine<T>);
  for (; p < count; ++p)
    for (int c = 0; c < kLine<T>; ++c) rows[p * kLine<T> + c] = c < channels ? x[c * count + p] : T(0);
}

template <class T>
void unpack_rows(const T* rows, int64_t count, int channels, T* x) {
  int64_t p = 0;
  if (channels == kLine<T>)
    for (; p + 8 <= count; p += 8)
      for (int c = 0; c < kLine<T>; c += 8)
        transpose_eight(rows + p * kLine<T> + c, kLine<T>, x + c * count + p, count);
  for (; p < count; ++p)
    for (int c = 0; c < channels; ++c) x[c * count + p] = rows[p * kLine<T> + c];
}
