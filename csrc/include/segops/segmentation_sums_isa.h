// No include guard: compiled once for each instruction set (see foreach_isa.h) by segmentation_sums.h, which explains
// Sum, Exponent and Tile.
#include "segops/labels_isa.h"

template <class V>
SEGOPS_INLINE V power(V u, const Exponent& exponent) {
  if (exponent.whole < 0) {
    const V logarithm = log(u) * typename Lanes<V>::Scalar(exponent.gamma);
    return u > 0 ? exp(logarithm) : V{};
  }
  V product = V{} + 1;
  for (int k = 0; k < exponent.whole; ++k) product *= u;
  return product;
}

// u^gamma * -log(p) by log(p), u = 1 - p.
template <class V>
SEGOPS_INLINE V focal_slope(V p, V log_p, V u, const Exponent& exponent) {
  const V raised = power(u, exponent);
  const V inner = typename Lanes<V>::Scalar(exponent.gamma) * raised / u * p * log_p;
  return ((u > 0) & (p > 0) ? inner : V{}) - raised;  // where u or p is 0, the limit
}

// Copies the tile, with 0 for the logits of ignored pixels, and finds each pixel's largest logit. Channels are often a
// power of two apart, and then few of them fit a cache side by side.
template <class V, class T>
SEGOPS_INLINE void copy_tile(const Tile<T>& tile, T* peak) {
  for (int64_t c = 0; c < tile.channels; ++c)
    for (int64_t i = 0; i < tile.count; i += Lanes<V>::kCount) {
      Mask<V> label;
      load_labels(tile.label + i, label);
      const V x = label >= 0 ? load_some<V>(tile.input + c * tile.stride + i, tile.count - i) : V{};
      store<V>(tile.at(c, i), x);
      store<V>(peak + i, c == 0 ? x : max(x, load<V>(peak + i)));
    }
}

// The softmax of a vector of pixels, p = e * inverse, and what it has of each one's own class.
template <class V>
struct Softmax {
  V total{}, inverse, own{}, log_own{};
  Mask<V> label;

  explicit SEGOPS_INLINE_MEMBER Softmax(const int32_t* labels) { load_labels(labels, label); }
  SEGOPS_INLINE_MEMBER V add(V shifted, int64_t c) {
    const V e = exp(shifted);
    total += e;
    own = label == int32_t(c) ? e : own;
    log_own = label == int32_t(c) ? shifted : log_own;
    return e;
  }
  SEGOPS_INLINE_MEMBER void finish() {
    inverse = label >= 0 ? 1 / total : V{};
    log_own -= log(total);
  }
  SEGOPS_INLINE_MEMBER V p() const { return own * inverse; }
  SEGOPS_INLINE_MEMBER V others() const { return (total - own) * inverse; }  // 1 - p, all of its digits
};

// Adds a tile to the sums of a slice, (kSums, channels).
template <class T>
void add_tile(const Tile<T>& tile, double* sums) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount;
  const int64_t channels = tile.channels;
  T *peak = tile.row(0), *inverse = peak, *own = tile.row(1), *entropy = tile.row(2), *focal = tile.row(3);
  copy_tile<V>(tile, peak);
  for (int64_t c = 0; c < channels; ++c) {
    V sum{};
    for (int64_t i = 0; i < tile.count; i += kLanes) {
      T* x = tile.at(c, i);
      const V shifted = load<V>(x) - load<V>(peak + i);
      store<V>(x, shifted);
      sum += shifted;
    }
    sums[kUniform * channels + c] -= fold(sum, Plus());
  }
  V log_totals{};
  for (int64_t i = 0; i < tile.count; i += kLanes) {
    Softmax<V> s(tile.label + i);
    for (int64_t c = 0; c < channels; ++c) store<V>(tile.at(c, i), s.add(load<V>(tile.at(c, i)), c));
    s.finish();
    log_totals += s.label >= 0 ? log(s.total) : V{};
    store<V>(inverse + i, s.inverse);
    store<V>(own + i, s.p());
    store<V>(entropy + i, -s.log_own);
    store<V>(focal + i, power(s.others(), tile.exponent) * -s.log_own);
  }
  const double log_total = fold(log_totals, Plus());
  for (int64_t c = 0; c < channels; ++c) {
    V sum{};
    for (int64_t i = 0; i < tile.count; i += kLanes) sum = fma(load<V>(tile.at(c, i)), load<V>(inverse + i), sum);
    sums[kPredicted * channels + c] += fold(sum, Plus());
    sums[kUniform * channels + c] += log_total;
  }
  for (int64_t i = 0; i < tile.count; ++i) {
    if (tile.label[i] < 0) continue;
    double* of_class = sums + tile.label[i];
    of_class[kOverlap * channels] += own[i];
    of_class[kPixels * channels] += 1;
    of_class[kCrossEntropy * channels] += entropy[i];
    of_class[kFocal * channels] += focal[i];
  }
}

// The entries of a row of gradients, (channels,), at the labels of a vector of pixels.
template <class V>
SEGOPS_INLINE V look_up(const typename Lanes<V>::Scalar* row, const int32_t* label) {
  V v{};
  for (int i = 0; i < Lanes<V>::kCount; ++i)
    if (label[i] >= 0) v[i] = row[label[i]];
  return v;
}

// From the gradient by the sums, (kSums, channels), to that by the tile's logits. With g_c the gradient by log p_c, it
// is g_c - p_c * (sum of all g).
template <class T>
void differentiate_tile(const Tile<T>& tile, const T* grad, T* out) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount;
  const int64_t channels = tile.channels;
  const T *predicted = grad + kPredicted * channels, *uniform = grad + kUniform * channels;
  T uniform_sum = 0;
  for (int64_t c = 0; c < channels; ++c) uniform_sum += uniform[c];
  T *peak = tile.row(0), *inverse = peak, *own = tile.row(1), *all = tile.row(2);
  copy_tile<V>(tile, peak);
  for (int64_t i = 0; i < tile.count; i += kLanes) {
    const int32_t* label = tile.label + i;
    const V top = load<V>(peak + i);
    Softmax<V> s(label);
    V product{};
    for (int64_t c = 0; c < channels; ++c) {
      const V e = s.add(load<V>(tile.at(c, i)) - top, c);
      store<V>(tile.at(c, i), e);
      product = fma(splat<V>(predicted[c]), e, product);
    }
    s.finish();
    const V by_overlap = look_up<V>(grad + kOverlap * channels, label);
    const V by_entropy = look_up<V>(grad + kCrossEntropy * channels, label);
    const V by_focal = look_up<V>(grad + kFocal * channels, label);
    const V slope = focal_slope(s.p(), s.log_own, s.others(), tile.exponent);
    const V of_own = s.p() * by_overlap - by_entropy + by_focal * slope;
    store<V>(inverse + i, s.inverse);
    store<V>(own + i, of_own);
    store<V>(all + i, fma(product, s.inverse, of_own - uniform_sum));
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < tile.count; i += kLanes) {
      Mask<V> label;
      load_labels(tile.label + i, label);
      const V p = load<V>(tile.at(c, i)) * load<V>(inverse + i);
      const V g = (label == int32_t(c) ? load<V>(own + i) : V{}) - uniform[c];
      const V slope = fma(p, predicted[c] - load<V>(all + i), g);
      store_some<V>(out + c * tile.stride + i, label >= 0 ? slope : V{}, tile.count - i);
    }
}
