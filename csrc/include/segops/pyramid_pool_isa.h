// No include guard: compiled once for each instruction set (see foreach_isa.h) by pyramid_pool.h, which explains
// Pyramid and Work.

// line[w] = the sum of `count` rows.
template <class T>
void sum_rows(const T* x, int64_t count, int64_t width, T* line) {
  constexpr int W = kWidth<T>;
  int64_t w = 0;
  for (; w + 4 * W <= width; w += 4 * W) {
    Wide<T> sums[4] = {};
    for (int64_t y = 0; y < count; ++y)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[v] += load<Wide<T>>(x + y * width + w + v * W);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store(line + w + v * W, sums[v]);
  }
  for (; w < width; ++w) {
    T sum = 0;
    for (int64_t y = 0; y < count; ++y) sum += x[y * width + w];
    line[w] = sum;
  }
}

// A plane to the sums of its cells.
template <class T>
void sum_cells(const Pyramid& p, const T* x, Work<T>& work) {
  const int64_t width = p.columns.length(), *cut = p.columns.cuts.data();
  T *line = work.line.data(), *cell = work.cells.data();
  for (int64_t r = 0; r < p.rows.intervals(); ++r) {
    const int64_t begin = p.rows.cuts[r];
    sum_rows(x + begin * width, p.rows.cuts[r + 1] - begin, width, line);
    for (int64_t c = 0; c < p.columns.intervals(); ++c) {
      T sum = 0;
      for (int64_t w = cut[c]; w < cut[c + 1]; ++w) sum += line[w];
      *cell++ = sum;
    }
  }
}

// Cells to bins, row of bins by row of bins.
template <class T>
void average_bins(const Pyramid& p, Work<T>& work, T* out) {
  const int64_t cells = p.columns.intervals();
  T* line = work.line.data();
  for (size_t l = 0; l < p.rows.levels.size(); ++l)
    for (const Bin& row : p.rows.levels[l]) {
      sum_rows(work.cells.data() + row.first * cells, row.last - row.first, cells, line);
      for (const Bin& column : p.columns.levels[l]) {
        T sum = 0;
        for (int64_t c = column.first; c < column.last; ++c) sum += line[c];
        *out++ = sum / T(row.length * column.length);
      }
    }
}

// The gradients of bins to those of the cells' positions.
template <class T>
void gather_bins(const Pyramid& p, const T* grad, Work<T>& work) {
  const int64_t cells = p.columns.intervals();
  T* line = work.line.data();
  for (int64_t i = 0; i < work.cells.size(); ++i) work.cells[i] = 0;
  for (size_t l = 0; l < p.rows.levels.size(); ++l)
    for (const Bin& row : p.rows.levels[l]) {
      for (int64_t c = 0; c < cells; ++c) line[c] = 0;
      for (const Bin& column : p.columns.levels[l]) {
        const T share = *grad++ / T(row.length * column.length);
        for (int64_t c = column.first; c < column.last; ++c) line[c] += share;
      }
      for (int64_t r = row.first; r < row.last; ++r)
        for (int64_t c = 0; c < cells; ++c) work.cells[r * cells + c] += line[c];
    }
}

// Every position gets what its cell has.
template <class T>
void spread_cells(const Pyramid& p, Work<T>& work, T* x) {
  const int64_t width = p.columns.length(), *cut = p.columns.cuts.data();
  const T* cell = work.cells.data();
  T* line = work.line.data();
  for (int64_t r = 0; r < p.rows.intervals(); ++r) {
    for (int64_t c = 0; c < p.columns.intervals(); ++c, ++cell)
      for (int64_t w = cut[c]; w < cut[c + 1]; ++w) line[w] = *cell;
    for (int64_t y = p.rows.cuts[r]; y < p.rows.cuts[r + 1]; ++y)
      __builtin_memcpy(x + y * width, line, width * sizeof(T));
  }
}
