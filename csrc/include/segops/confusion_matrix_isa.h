// No include guard: compiled once for each instruction set (see foreach_isa.h) by confusion_matrix.h, which explains
// kOutside and kIgnored.

// Labels in 32 bits.
template <class T>
void narrow(const T* from, int64_t count, int32_t classes, bool ignores, T ignored, int32_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t label = from[i] >= 0 && from[i] < classes ? int32_t(from[i]) : kOutside;
    to[i] = ignores & (from[i] == ignored) ? kIgnored : label;
  }
}

// Where in the matrix each pixel is counted, behind its end if ignored. Returns whether all labels are some; if not,
// places are of no use.
inline bool find_places(const int32_t* prediction, const int32_t* target, int64_t count, int32_t classes,
                        int32_t* place) {
  int32_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool skip = target[i] == kIgnored;
    wrong |= skip ? 0 : target[i] | prediction[i];
    place[i] = skip ? classes * classes : target[i] * classes + prediction[i];
  }
  return wrong >= 0;
}

// The largest of kCount vectors of pixels, which stay in registers while the channels pass: of equal ones the first,
// and the first NaN before all numbers.
template <class V, int kCount, class T>
SEGOPS_INLINE void argmax_tile(const T* logits, int64_t plane, int64_t channels, int32_t* out) {
  using Int = decltype(V{} < V{});  // -1 where it holds, else 0
  constexpr int kLanes = Lanes<V>::kCount;
  V best[kCount];
  Int label[kCount];
  for (int i = 0; i < kCount; ++i) best[i] = load<V>(logits + i * kLanes), label[i] = Int{};
  for (int c = 1; c < channels; ++c)
    for (int i = 0; i < kCount; ++i) {
      const V x = load<V>(logits + c * plane + i * kLanes);
      const Int larger = ~(x <= best[i]) & (best[i] == best[i]);
      best[i] = larger ? x : best[i];
      label[i] = larger ? Int{} + c : label[i];
    }
  for (int i = 0; i < kCount; ++i)
    for (int lane = 0; lane < kLanes; ++lane) out[i * kLanes + lane] = int32_t(label[i][lane]);
}

// The argmax of `count` neighbouring pixels; a pixel's channels lie `plane` apart.
template <class T>
void argmax_of_planes(const T* logits, int64_t plane, int64_t channels, int64_t count, int32_t* out) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount, kCount = 4;
  int64_t i = 0;
  for (; i + kCount * kLanes <= count; i += kCount * kLanes)
    argmax_tile<V, kCount>(logits + i, plane, channels, out + i);
  for (; i < count; ++i) {
    T best = logits[i];
    out[i] = 0;
    for (int64_t c = 1; c < channels; ++c) {
      const T x = logits[c * plane + i];
      if (!(x <= best) && best == best) best = x, out[i] = int32_t(c);
    }
  }
}
