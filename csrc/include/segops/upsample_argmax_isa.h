// No include guard: compiled once for each instruction set (see foreach_isa.h) by upsample_argmax.h, which explains
// Problem, Band and Candidates.
#include "segops/labels_isa.h"

template <class V>
SEGOPS_INLINE V min(V a, V b) {
  return a < b ? a : b;
}

template <class M>
SEGOPS_INLINE bool any(M mask) {
  uint64_t words[sizeof(M) / sizeof(uint64_t)], all = 0;
  __builtin_memcpy(words, &mask, sizeof(mask));
  for (uint64_t word : words) all |= word;
  return all != 0;
}

// The logits of a class at the corners of the cells from j on.
template <class V>
struct CornersOf {
  V top_left, top_right, bottom_left, bottom_right;

  template <class T>
  SEGOPS_INLINE_MEMBER CornersOf(const Band<T>& band, int64_t at)
      : top_left(load<V>(band.top + at)),
        top_right(load<V>(band.top + at + 1)),
        bottom_left(load<V>(band.bottom + at)),
        bottom_right(load<V>(band.bottom + at + 1)) {}
  SEGOPS_INLINE_MEMBER V least() const { return min(min(top_left, top_right), min(bottom_left, bottom_right)); }
  SEGOPS_INLINE_MEMBER V largest() const { return max(max(top_left, top_right), max(bottom_left, bottom_right)); }
  SEGOPS_INLINE_MEMBER Mask<V> unordered() const {
    const V sum = (top_left + top_right) + (bottom_left + bottom_right);
    return sum != sum;  // also for infinities, which costs a look
  }
};

// Classes that may win around the cells from j on, ascending. One that is NaN in a corner is NaN everywhere between
// them, and always among these.
template <class P, class T = typename P::Real>
void find_candidates(const P& p, const Band<T>& band, int64_t j, Candidates& candidates) {
  using V = Wide<T>;
  V bound = splat<V>(-__builtin_inf());
  for (int64_t c = 0; c < p.channels; ++c) bound = max(CornersOf<V>(band, c * p.pitch() + j).least(), bound);
  for (int64_t& count : candidates.count) count = 0;
  for (int64_t c = 0; c < p.channels; ++c) {
    const CornersOf<V> corners(band, c * p.pitch() + j);
    const Mask<V> chosen = (corners.largest() >= bound) | corners.unordered();
    if (!any(chosen)) continue;
    for (int i = 0; i < Lanes<V>::kCount; ++i)
      if (chosen[i]) candidates.classes[i * p.channels + candidates.count[i]++] = int32_t(c);
  }
}

// The largest of the candidates at the pixels [begin, end) of row y, right of cell j.
template <class P, class T = typename P::Real>
void label_pixels(const P& p, const Band<T>& band, int64_t j, const int32_t* classes, int64_t count, int64_t y,
                  typename P::Label* out) {
  using V = Wide<T>;
  const T down = p.rows.fraction[y];
  const int64_t end = p.columns.first[j + 1];
  for (int64_t x = p.columns.first[j]; x < end; x += Lanes<V>::kCount) {
    const V right = load<V>(p.columns.fraction.data() + x), left = 1 - right;
    V best = splat<V>(-__builtin_inf());
    Mask<V> label = Mask<V>{} + classes[0];
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = classes[k] * p.pitch() + j;
      const T a = (1 - down) * band.top[at] + down * band.bottom[at];
      const T b = (1 - down) * band.top[at + 1] + down * band.bottom[at + 1];
      const V value = fma(right, splat<V>(b), left * a);
      const Mask<V> better = (value > best) | ((value != value) & (best == best));
      best = better ? value : best;
      label = better ? Mask<V>{} + classes[k] : label;
    }
    for (int64_t i = 0; i < Lanes<V>::kCount && x + i < end; ++i) out[x + i] = typename P::Label(label[i]);
  }
}

template <class P, class T = typename P::Real>
void label_band(const P& p, const Band<T>& band, Candidates& candidates, typename P::Label* out) {
  using Label = typename P::Label;
  const int64_t width = p.columns.size;
  for (int64_t block = 0; block < p.columns.cells; block += Lanes<Wide<T>>::kCount) {
    find_candidates(p, band, block, candidates);
    for (int64_t i = 0; i < Lanes<Wide<T>>::kCount && block + i < p.columns.cells; ++i) {
      const int64_t j = block + i, count = candidates.count[i];
      const int32_t* classes = candidates.classes.data() + i * p.channels;
      for (int64_t y = band.first; y < band.last; ++y) {
        Label* row = out + y * width;
        if (count > 1) {
          label_pixels(p, band, j, classes, count, y, row);
        } else {
          for (int64_t x = p.columns.first[j]; x < p.columns.first[j + 1]; ++x) row[x] = Label(classes[0]);
        }
      }
    }
  }
}
