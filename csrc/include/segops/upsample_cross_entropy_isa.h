// No include guard: compiled once for each instruction set (see foreach_isa.h) by upsample_cross_entropy.h, which
// explains Problem, Group, Corners and Row.

// A row of cells from planes to channels side by side, and back; a block of columns at a time, so that the lines of a
// cache that are written stay in it.
constexpr int64_t kColumns = 16;
template <class T>
void gather_channels(const T* planes, int64_t plane, int64_t channels, int64_t columns, int64_t pitch, T* cells) {
  for (int64_t begin = 0; begin < columns; begin += kColumns) {
    const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t j = begin; j < end; ++j) cells[j * pitch + c] = planes[c * plane + j];
    for (int64_t c = channels; c < pitch; ++c)
      for (int64_t j = begin; j < end; ++j) cells[j * pitch + c] = 0;
  }
}
template <class T>
void scatter_channels(const T* cells, int64_t plane, int64_t channels, int64_t columns, int64_t pitch, T* planes) {
  for (int64_t begin = 0; begin < columns; begin += kColumns) {
    const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t j = begin; j < end; ++j) planes[c * plane + j] = cells[j * pitch + c];
  }
}

template <class V, class S>
SEGOPS_INLINE V blend(V a, V b, S fraction) {
  return fma(splat<V>(fraction), b, splat<V>(1 - fraction) * a);
}

// All interpolated channels of kPixels pixels in turn, to op(pixel, vector); -inf behind the last channel.
template <int kPixels, class T, class Op>
SEGOPS_INLINE void interpolate(const Problem<T>& p, const T* left, const T* right, const T* fraction, const Op& op) {
  using V = Wide<T>;
  const auto interpolate_from = [&](int64_t c, auto last) __attribute__((always_inline)) {
    const V a = load<V>(left + c), b = load<V>(right + c);
#pragma GCC unroll 8
    for (int k = 0; k < kPixels; ++k) {
      V x = blend(a, b, fraction[k]);
      if constexpr (last.value) x += load<V>(p.behind.data() + c);
      op(k, x);
    }
  };
  const int64_t whole = p.channels / kWidth<T> * kWidth<T>;
  for (int64_t c = 0; c < whole; c += kWidth<T>) interpolate_from(c, std::false_type());
  if (whole < p.channels) interpolate_from(whole, std::true_type());
}

// kPixels pixels of a group, of channels left (pitch,) and right of them.
template <int kPixels, class T>
SEGOPS_INLINE void softmax_of_pixels(const Problem<T>& p, const Group<T>& group, int first, const T* left,
                                     const T* right, const Row<T>& row) {
  using V = Wide<T>;
  const T* fraction = group.fraction + first;
  V tops[kPixels], sums[kPixels];
  T peak[kPixels];
  for (int k = 0; k < kPixels; ++k) tops[k] = splat<V>(-__builtin_inf()), sums[k] = V{};
  interpolate<kPixels>(p, left, right, fraction, [&](int k, V x) { tops[k] = max(x, tops[k]); });
  for (int k = 0; k < kPixels; ++k) peak[k] = fold(tops[k], Max());
  interpolate<kPixels>(p, left, right, fraction, [&](int k, V x) { sums[k] += exp(x - peak[k]); });
  for (int k = 0; k < kPixels; ++k) {
    const int64_t at = group.x[first + k], label = group.label[first + k];
    row.peak[at] = peak[k];
    row.total[at] = fold(sums[k], Plus());
    row.own[at] = (1 - fraction[k]) * left[label] + fraction[k] * right[label];
  }
}

// Few classes fill no vector: here the pixels of a group lie side by side, one class after the other.
template <class V, class C, class T>
SEGOPS_INLINE V interpolate_class(const Corners<C, T>& from, int64_t c, V right) {
  const T a = (1 - from.fraction) * from.top_left[c] + from.fraction * from.bottom_left[c];
  const T b = (1 - from.fraction) * from.top_right[c] + from.fraction * from.bottom_right[c];
  return fma(right, splat<V>(b), (1 - right) * a);
}

template <class T>
SEGOPS_INLINE void softmax_of_few(const Problem<T>& p, const Group<T>& group, const Corners<const T, T>& corners,
                                  const Row<T>& row) {
  using V = Eight<T>;
  const V right = load<V>(group.fraction);
  V x[kFewChannels], top = splat<V>(-__builtin_inf()), total{}, weighted{};
  for (int64_t c = 0; c < p.channels; ++c) {
    x[c] = interpolate_class(corners, c, right);
    top = max(x[c], top);
    weighted += p.weight[c] * x[c];
  }
  for (int64_t c = 0; c < p.channels; ++c) total += exp(x[c] - top);
  for (int k = 0; k < group.count; ++k) {
    const int64_t at = group.x[k];
    row.peak[at] = top[k];
    row.total[at] = total[k];
    row.own[at] = x[group.label[k]][k];
    row.weighted[at] = weighted[k];
  }
}

// pixels<k>(first) over a group, in powers of two.
#define SEGOPS_EACH_PIXELS(count, pixels)             \
  do {                                                \
    int first = 0;                                    \
    for (; first + 8 <= count; first += 8) pixels(8); \
    if (first + 4 <= count) {                         \
      pixels(4);                                      \
      first += 4;                                     \
    }                                                 \
    if (first + 2 <= count) {                         \
      pixels(2);                                      \
      first += 2;                                     \
    }                                                 \
    if (first < count) pixels(1);                     \
  } while (0)

template <class T>
void softmax_of_group(const Problem<T>& p, const Group<T>& group, const Corners<const T, T>& corners, T* room,
                      const Row<T>& row) {
  if (p.channels <= kFewChannels) return softmax_of_few(p, group, corners, row);
  using V = Wide<T>;
  T *left = room, *right = room + p.pitch();
  for (int64_t c = 0; c < p.channels; c += kWidth<T>) {
    store<V>(left + c, blend(load<V>(corners.top_left + c), load<V>(corners.bottom_left + c), corners.fraction));
    store<V>(right + c, blend(load<V>(corners.top_right + c), load<V>(corners.bottom_right + c), corners.fraction));
  }
#define SEGOPS_PIXELS(k) softmax_of_pixels<k>(p, group, first, left, right, row)
  SEGOPS_EACH_PIXELS(group.count, SEGOPS_PIXELS);
#undef SEGOPS_PIXELS
  if (p.smoothing == 0) return;
  V sum_left{}, sum_right{};
  for (int64_t c = 0; c < p.channels; c += kWidth<T>) {
    sum_left = fma(load<V>(p.weight.data() + c), load<V>(left + c), sum_left);
    sum_right = fma(load<V>(p.weight.data() + c), load<V>(right + c), sum_right);
  }
  const T a = fold(sum_left, Plus()), b = fold(sum_right, Plus());
  for (int k = 0; k < group.count; ++k) row.weighted[group.x[k]] = (1 - group.fraction[k]) * a + group.fraction[k] * b;
}

template <class T>
void losses_of_row(const Problem<T>& p, const int64_t* labels, const Row<T>& row, T* loss, T* lse) {
  using V = Wide<T>;
  for (int64_t x = 0; x < p.columns.size; x += Lanes<V>::kCount) store<V>(row.total + x, log(load<V>(row.total + x)));
  for (int64_t x = 0; x < p.columns.size; ++x) {
    if (p.labels.is_ignored(labels[x])) {
      loss[x] = lse[x] = 0;
      continue;
    }
    lse[x] = row.peak[x] + row.total[x];
    loss[x] = (1 - p.smoothing) * p.weight[labels[x]] * (row.total[x] - (row.own[x] - row.peak[x]));
    if (p.smoothing != 0) loss[x] += p.uniform() * (p.total_weight * lse[x] - row.weighted[x]);
  }
}

// The gradient of kPixels pixels of a group to their four cells. By the logit of class c it is
// slope * p_c - (what -log p_c counts), and of the latter `all` is the share of every class, times its weight.
template <int kPixels, class T>
SEGOPS_INLINE void differentiate_pixels(const Problem<T>& p, const Group<T>& group, int first,
                                        const Corners<const T, T>& from, const Corners<T, T>& to, const T* all) {
  using V = Wide<T>;
  T sum = 0, right_sum = 0;
  for (int k = first; k < first + kPixels; ++k) sum += all[k], right_sum += group.fraction[k] * all[k];
  for (int64_t c = 0; c < p.channels; c += kWidth<T>) {
    const V left = blend(load<V>(from.top_left + c), load<V>(from.bottom_left + c), from.fraction);
    const V right = blend(load<V>(from.top_right + c), load<V>(from.bottom_right + c), from.fraction);
    const V weight = load<V>(p.weight.data() + c);
    V whole = -sum * weight, part = -right_sum * weight;
#pragma GCC unroll 8
    for (int k = first; k < first + kPixels; ++k) {
      const V q = splat<V>(group.slope[k]) * exp(blend(left, right, group.fraction[k]) - group.shift[k]);
      whole += q;
      part = fma(splat<V>(group.fraction[k]), q, part);
    }
    const V rest = whole - part;
    const auto add = [&](T* cell, V x, T factor) { store<V>(cell + c, fma(splat<V>(factor), x, load<V>(cell + c))); };
    add(to.top_left, rest, 1 - to.fraction);
    add(to.top_right, part, 1 - to.fraction);
    add(to.bottom_left, rest, to.fraction);
    add(to.bottom_right, part, to.fraction);
  }
}

template <class T>
SEGOPS_INLINE void differentiate_few(const Problem<T>& p, Group<T>& group, const Corners<const T, T>& from,
                                     const Corners<T, T>& to, T* all, const T* own) {
  using V = Eight<T>;
  T of_label[kFewChannels][kGroup] = {};
  for (int k = 0; k < group.count; ++k) of_label[group.label[k]][k] = own[k];
  for (int k = group.count; k < kGroup; ++k) {  // gives nothing
    group.shift[k] = std::numeric_limits<T>::infinity();
    group.slope[k] = all[k] = group.fraction[k] = 0;
  }
  const V right = load<V>(group.fraction);
  for (int64_t c = 0; c < p.channels; ++c) {
    const V e = exp(interpolate_class(from, c, right) - load<V>(group.shift));
    const V q = load<V>(group.slope) * e - p.weight[c] * load<V>(all) - load<V>(of_label[c]);
    const T whole = fold(q, Plus()), part = fold(right * q, Plus());
    to.top_left[c] += (1 - to.fraction) * (whole - part);
    to.top_right[c] += (1 - to.fraction) * part;
    to.bottom_left[c] += to.fraction * (whole - part);
    to.bottom_right[c] += to.fraction * part;
  }
}

template <class T>
void differentiate_group(const Problem<T>& p, Group<T>& group, const Corners<const T, T>& from, const Corners<T, T>& to,
                         const T* grad, const T* lse) {
  T all[kGroup], own[kGroup];
  for (int k = 0; k < group.count; ++k) {
    const T g = grad[group.x[k]];
    own[k] = g * (1 - p.smoothing) * p.weight[group.label[k]];
    all[k] = g * p.uniform();
    group.shift[k] = lse[group.x[k]];
    group.slope[k] = own[k] + all[k] * p.total_weight;
  }
  if (p.channels <= kFewChannels) return differentiate_few(p, group, from, to, all, own);
#define SEGOPS_PIXELS(k) differentiate_pixels<k>(p, group, first, from, to, all)
  SEGOPS_EACH_PIXELS(group.count, SEGOPS_PIXELS);
#undef SEGOPS_PIXELS
  for (int k = 0; k < group.count; ++k) {
    const int64_t c = group.label[k];
    const T right = group.fraction[k] * own[k], left = own[k] - right;
    to.top_left[c] -= (1 - to.fraction) * left;
    to.top_right[c] -= (1 - to.fraction) * right;
    to.bottom_left[c] -= to.fraction * left;
    to.bottom_right[c] -= to.fraction * right;
  }
}
#undef SEGOPS_EACH_PIXELS
