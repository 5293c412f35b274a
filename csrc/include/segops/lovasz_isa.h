// No include guard: compiled once for each instruction set (see foreach_isa.h) by lovasz.h, which explains Link, Row
// and Record.
#include "segops/labels_isa.h"

template <class V>
SEGOPS_INLINE V sigmoid(V x) {
  return 1 / (1 + exp(-x > 88 ? V{} + 88 : -x));  // 88 is as far as exp goes
}

// Of pixels whose class is the one at hand (foreground) or another.
template <Link kLink, class V>
SEGOPS_INLINE V error_of(V x, V peak, V scale, Mask<V> foreground) {
  if (kLink == Link::kHinge) return foreground ? 1 - x : 1 + x;
  const V p = kLink == Link::kSoftmax ? exp(x - peak) * scale : kLink == Link::kSigmoid ? sigmoid(x) : x;
  const V error = foreground ? 1 - p : p;
  return kLink == Link::kNone ? (error < 0 ? -error : error) : error;
}

template <class T, class V>
SEGOPS_INLINE Record<T>* append(Record<T>* out, V error, Mask<V> foreground, Mask<V> chosen, int64_t pixel) {
  for (int i = 0; i < Lanes<V>::kCount; ++i) {
    *out = Record<T>::of(error[i], foreground[i] != 0, pixel + i);  // written over by the next, unless chosen
    out -= chosen[i];
  }
  return out;
}

#if SEGOPS_ISA_LEVEL == 2
SEGOPS_INLINE Record<float>* append(Record<float>* out, F16 error, I16 foreground, I16 chosen, int64_t pixel) {
  const __mmask16 mask = _mm512_movepi32_mask((__m512i)chosen);
  const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const U16 key = ((U16)error << 1) - (U16)foreground;
  const U16 index = (U16)(lane + int32_t(pixel));
  const U16 keys = (U16)_mm512_maskz_compress_epi32(mask, (__m512i)key);
  const U16 indices = (U16)_mm512_maskz_compress_epi32(mask, (__m512i)index);
  const U16 low = __builtin_shufflevector(keys, indices, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const U16 high = __builtin_shufflevector(keys, indices, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __builtin_memcpy(out, &low, sizeof(low));
  __builtin_memcpy(out + 8, &high, sizeof(high));
  return out + __builtin_popcount(mask);
}
#endif

// The pixels of a row whose order decides something: errors above 0 of the foreground, and of the background those
// above the least of the foreground's, since behind the last foreground pixel every step is 0.
template <Link kLink, class T>
SEGOPS_INLINE Record<T>* select_linked(const Row<T>& row, int32_t own, T least, int64_t pixel, Record<T>* out,
                                       bool& nan) {
  using V = Wide<T>;
  const V floor = splat<V>(least);
  Mask<V> unordered{};
  for (int64_t i = 0; i < row.count; i += Lanes<V>::kCount) {
    Mask<V> label;
    load_labels(row.label + i, label);
    const V x = load_some<V>(row.value + i, row.count - i);
    V peak{}, scale{};
    if (kLink == Link::kSoftmax) peak = load<V>(row.peak + i), scale = load<V>(row.scale + i);
    const Mask<V> foreground = label == own, valid = label >= 0;
    const V error = error_of<kLink>(x, peak, scale, foreground);
    unordered |= valid & (error != error);
    out = append(out, error, foreground, valid & (error > 0) & (foreground | (error > floor)), pixel + i);
  }
  for (int i = 0; i < Lanes<V>::kCount; ++i) nan |= unordered[i] != 0;
  return out;
}

template <class T>
Record<T>* select(Link link, const Row<T>& row, int32_t own, T least, int64_t pixel, Record<T>* out, bool& nan) {
  switch (link) {
    case Link::kSoftmax:
      return select_linked<Link::kSoftmax>(row, own, least, pixel, out, nan);
    case Link::kSigmoid:
      return select_linked<Link::kSigmoid>(row, own, least, pixel, out, nan);
    case Link::kHinge:
      return select_linked<Link::kHinge>(row, own, least, pixel, out, nan);
    default:
      return select_linked<Link::kNone>(row, own, least, pixel, out, nan);
  }
}

// Steps of sorted elements, behind so many of the foreground and of the background; returns the foreground up to the
// end.
template <class Element>
int64_t jaccard_steps(const Element* elements, int64_t count, int64_t all, int64_t before, int64_t background,
                      double* steps) {
  if (all == 0) {
    for (int64_t i = 0; i < count; ++i) steps[i] = background + i == 0;
    return 0;
  }
  int64_t gained[kTile], own[kTile];  // foreground among the elements before, and whether this is another
  int64_t foreground = 0;
  for (int64_t i = 0; i < count; ++i) {
    gained[i] = foreground;
    own[i] = is_foreground(elements[i]);
    foreground += own[i];
  }
  for (int64_t i = 0; i < count; ++i)
    steps[i] = jaccard_quotient<double>(own[i], all, before + gained[i], background + i - gained[i]);
  return before + foreground;
}

template <class T>
double weighted_errors(const Record<T>* records, const double* steps, int64_t count) {
  double sums[8] = {};  // side by side, so that they need not wait for each other
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += steps[i + lane] * double(records[i + lane].error());
  for (; i < count; ++i) sums[0] += steps[i] * double(records[i].error());
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Adds the pixels of the class `own`, and the least of their errors.
template <Link kLink, class T>
SEGOPS_INLINE void count_linked(const Row<T>& row, int32_t own, Count<T>& count) {
  using V = Wide<T>;
  V least = splat<V>(count.least);
  Mask<V> pixels{};
  for (int64_t i = 0; i < row.count; i += Lanes<V>::kCount) {
    Mask<V> label;
    load_labels(row.label + i, label);
    const Mask<V> foreground = label == own;
    const V error = error_of<kLink>(load_some<V>(row.value + i, row.count - i), V{}, V{}, foreground);
    least = foreground & (error < least) ? error : least;
    pixels -= foreground;
  }
  for (int i = 0; i < Lanes<V>::kCount; ++i) {
    count.pixels += pixels[i];
    count.least = least[i] < count.least ? least[i] : count.least;
  }
}

template <class T>
void count_class(Link link, const Row<T>& row, int32_t own, Count<T>& count) {
  if (link == Link::kHinge) return count_linked<Link::kHinge>(row, own, count);
  if (link == Link::kSigmoid) return count_linked<Link::kSigmoid>(row, own, count);
  count_linked<Link::kNone>(row, own, count);
}

// Peak and scale of the pixels of a tile, whose channels lie `stride` apart, and the error of each one's own class.
// A tile is copied to `room` (channels, kTile) as it is read: channels are often a power of two apart, and then few of
// them fit a cache side by side.
template <class T>
void softmax_statistics(const Row<T>& row, int64_t channels, int64_t stride, T* room, T* peak, T* scale, T* own) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < row.count; i += kLanes) {
      const V x = load_some<V>(row.value + c * stride + i, row.count - i);
      store<V>(room + c * kTile + i, x);
      store<V>(peak + i, c == 0 ? x : max(x, load<V>(peak + i)));
    }
  for (int64_t i = 0; i < row.count; i += kLanes) store<V>(scale + i, V{}), store<V>(own + i, V{});
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < row.count; i += kLanes) {
      Mask<V> label;
      load_labels(row.label + i, label);
      const V e = exp(load<V>(room + c * kTile + i) - load<V>(peak + i));
      store<V>(scale + i, load<V>(scale + i) + e);
      store<V>(own + i, label == int32_t(c) ? e : load<V>(own + i));
    }
  for (int64_t i = 0; i < row.count; i += kLanes) {
    const V inverse = 1 / load<V>(scale + i);
    store<V>(scale + i, inverse);
    store<V>(own + i, 1 - load<V>(own + i) * inverse);
  }
}

// From the gradient of probabilities to that of logits, in place; `room` is for two tiles and a row.
template <class T>
void softmax_chain_rule(const Row<T>& row, int64_t channels, int64_t stride, const char* used, T* room, T* grad) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount;
  T *p = room, *g = room + channels * kTile, *sum = g + channels * kTile;
  for (int64_t i = 0; i < row.count; i += kLanes) store<V>(sum + i, V{});
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < row.count; i += kLanes) {
      const V x = load_some<V>(row.value + c * stride + i, row.count - i);
      const V q = exp(x - load<V>(row.peak + i)) * load<V>(row.scale + i);
      const V slope = used[c] ? load_some<V>(grad + c * stride + i, row.count - i) : V{};
      store<V>(p + c * kTile + i, q);
      store<V>(g + c * kTile + i, slope);
      store<V>(sum + i, fma(q, slope, load<V>(sum + i)));
    }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < row.count; i += kLanes) {
      Mask<V> label;
      load_labels(row.label + i, label);
      const V through = load<V>(p + c * kTile + i) * (load<V>(g + c * kTile + i) - load<V>(sum + i));
      store_some<V>(grad + c * stride + i, label >= 0 ? through : V{}, row.count - i);
    }
}

template <class T>
void sigmoid_chain_rule(const Row<T>& row, T* grad) {
  using V = Wide<T>;
  for (int64_t i = 0; i < row.count; i += Lanes<V>::kCount) {
    const int64_t count = row.count - i;
    const V p = sigmoid(load_some<V>(row.value + i, count)), g = load_some<V>(grad + i, count);
    Mask<V> label;
    load_labels(row.label + i, label);
    store_some<V>(grad + i, label >= 0 ? g * p * (1 - p) : V{}, count);
  }
}
