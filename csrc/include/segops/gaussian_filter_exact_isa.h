// No include guard: compiled once for each instruction set (see foreach_isa.h) by gaussian_filter_exact.h, which
// explains Problem and its blocks.
//
// A tile is two vectors of query points against one block of key points. The tile's part of the P x P matrix is
// computed into a small array, and from the first-level cache it then multiplies every channel.

// The sums of a loop must fit the registers.
#if SEGOPS_ISA_LEVEL == 2
constexpr int kChannels = 12;  // channels summed side by side, two vectors each
constexpr int kProducts = 8;   // scalar products side by side, likewise
SEGOPS_INLINE void widen(WideFloat x, WideDouble halves[2]) {
  // gcc 12 splits __builtin_convertvector into quarters, and warns of intrinsics without a mask.
  halves[0] = (WideDouble)_mm512_maskz_cvtps_pd(0xff, (__m256)low_half(x));
  halves[1] = (WideDouble)_mm512_maskz_cvtps_pd(0xff, (__m256)high_half(x));
}
#elif SEGOPS_ISA_LEVEL == 1
constexpr int kChannels = 6;
constexpr int kProducts = 4;
SEGOPS_INLINE void widen(WideFloat x, WideDouble halves[2]) {
  halves[0] = (WideDouble)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
  halves[1] = (WideDouble)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
}
#else
constexpr int kChannels = 5;
constexpr int kProducts = 4;
SEGOPS_INLINE void widen(WideFloat x, WideDouble halves[2]) {
  halves[0] = WideDouble{x[0], x[1]};
  halves[1] = WideDouble{x[2], x[3]};
}
#endif
constexpr int kDistances = 4;  // keys whose distances are summed side by side
constexpr int kTogether = 8;   // leaves that take their turns with one block of keys while that is in cache
static_assert(kBlock % kProducts == 0 && kProducts % kDistances == 0);

template <class T>
constexpr int kTile = 2 * kWidth<T>;

// exp(-square / 2), relative error 1.1e-7 or less, 0 beyond 174.6. Where channels are few it takes most of the time, so
// it goes without what exp needs for other arguments: 2^n times a polynomial of degree 6 in -2 times the remainder.
SEGOPS_INLINE WideFloat gaussian(WideFloat square) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(WideFloat))));
  const WideFloat magic = splat<WideFloat>(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const WideFloat shifted = fma(square, splat<WideFloat>(-0.721347520f), magic);
  const WideFloat n = shifted - magic;
  WideFloat r = fma(n, splat<WideFloat>(1.38671875f), square);  // 2 ln 2 in two parts
  r = fma(n, splat<WideFloat>(-4.2438888e-4f), r);
  WideFloat p = splat<WideFloat>(2.1595228e-5f);
  p = fma(p, r, splat<WideFloat>(-2.6152137e-4f));
  p = fma(p, r, splat<WideFloat>(2.6042666e-3f));
  p = fma(p, r, splat<WideFloat>(-2.0833151e-2f));
  p = fma(p, r, splat<WideFloat>(1.2499999e-1f));
  p = fma(p, r, splat<WideFloat>(-0.5f));
  p = fma(p, r, splat<WideFloat>(1.f));
  const WideFloat scaled = (WideFloat)((Bits)p + ((Bits)shifted << 23));  // n, the lowest bits, added to the exponent
  return square > 174.6f ? WideFloat{} : scaled;
}
SEGOPS_INLINE WideDouble gaussian(WideDouble square) {
  WideDouble y;
  for (int i = 0; i < kWidth<double>; ++i) y[i] = __builtin_exp(-0.5 * square[i]);
  return y;
}

// kernel[j][lane] = exp(-|query[lane] - key[j]|^2 / 2)
template <class T>
void fill_kernel(const T* queries, const T* keys, int64_t dims, int count, T* kernel) {
  using V = Wide<T>;
  constexpr int W = kWidth<T>;
  for (int j = 0; j < count; j += kDistances) {
    V squares[kDistances][2] = {};
    for (int64_t d = 0; d < dims; ++d) {
      const V q0 = load<V>(queries + d * kBlock), q1 = load<V>(queries + d * kBlock + W);
#pragma GCC unroll 8
      for (int g = 0; g < kDistances; ++g) {
        const V key = splat<V>(keys[d * kBlock + j + g]);
        squares[g][0] = fma(q0 - key, q0 - key, squares[g][0]);
        squares[g][1] = fma(q1 - key, q1 - key, squares[g][1]);
      }
    }
#pragma GCC unroll 8
    for (int g = 0; g < kDistances; ++g) {
      store(kernel + (j + g) * kTile<T>, gaussian(squares[g][0]));
      store(kernel + (j + g) * kTile<T> + W, gaussian(squares[g][1]));
    }
  }
}

SEGOPS_INLINE void add_to(double* to, WideFloat x) {
  WideDouble halves[2];
  widen(x, halves);
  store(to, load<WideDouble>(to) + halves[0]);
  store(to + kWidth<double>, load<WideDouble>(to + kWidth<double>) + halves[1]);
}
SEGOPS_INLINE void add_to(double* to, WideDouble x) { store(to, load<WideDouble>(to) + x); }

// out[c][lane] += sum over j of kernel[j][lane] values[c][j], or with kDifferences of kernel[j][lane] (values[c][j] -
// queries[c][lane]), where subtracting one sum from another would cancel. A float's error grows with the number of
// terms: so a block is summed in short runs, and blocks are added in double.
template <class T, int C, bool kDifferences>
void multiply_few(const T* kernel, const T* values, const T* queries, int count, double* out) {
  using V = Wide<T>;
  constexpr int W = kWidth<T>, kRun = kDifferences ? 16 : 32;
  V totals[C][2] = {};
  for (int run = 0; run < count; run += kRun) {
    const int end = count < run + kRun ? count : run + kRun;
    V sums[C][2] = {};
    for (int j = run; j < end; ++j) {
      const V k0 = load<V>(kernel + j * kTile<T>), k1 = load<V>(kernel + j * kTile<T> + W);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        V v0 = splat<V>(values[c * kBlock + j]), v1 = v0;
        if constexpr (kDifferences) {
          v0 -= load<V>(queries + c * kBlock);
          v1 -= load<V>(queries + c * kBlock + W);
        }
        sums[c][0] = fma(k0, v0, sums[c][0]);
        sums[c][1] = fma(k1, v1, sums[c][1]);
      }
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      totals[c][0] += sums[c][0];
      totals[c][1] += sums[c][1];
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    add_to(out + c * kLeaf, totals[c][0]);
    add_to(out + c * kLeaf + W, totals[c][1]);
  }
}

// From a number of channels known at run time to one known to the compiler.
template <class T, int C, bool kDifferences>
void multiply_some(int64_t channels, const T* kernel, const T* values, const T* queries, int count, double* out) {
  if (channels == C)
    multiply_few<T, C, kDifferences>(kernel, values, queries, count, out);
  else if constexpr (C > 1)
    multiply_some<T, C - 1, kDifferences>(channels, kernel, values, queries, count, out);
}

template <class T, bool kDifferences>
void multiply(int64_t channels, const T* kernel, const T* values, const T* queries, int count, double* out) {
  constexpr int kMost = kDifferences ? kChannels / 2 : kChannels;
  const int64_t parts = (channels + kMost - 1) / kMost;  // of equal size, give or take one
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t c = channels * part / parts, end = channels * (part + 1) / parts;
    multiply_some<T, kMost, kDifferences>(end - c, kernel, values + c * kBlock, queries + c * kBlock, count,
                                          out + c * kLeaf);
  }
}

// weights[j][lane] = kernel[j][lane] (g[lane] . v[j] + g[j] . v[lane]), g and v being grad and values.
template <class T>
void fill_weights(const Problem<T>& p, int64_t queries, int64_t keys, int count, const T* kernel, T* weights) {
  using V = Wide<T>;
  constexpr int W = kWidth<T>, kRun = 16;
  const T *query_values = p.values + queries, *query_grad = p.grad + queries;
  for (int j = 0; j < count; j += kProducts) {
    const T *key_values = p.values + keys + j, *key_grad = p.grad + keys + j;
    V totals[kProducts][2] = {};
    for (int64_t run = 0; run < p.channels; run += kRun) {
      const int64_t end = p.channels < run + kRun ? p.channels : run + kRun;
      V sums[kProducts][2] = {};
      for (int64_t at = run * kBlock; at < end * kBlock; at += kBlock) {
        const V g0 = load<V>(query_grad + at), g1 = load<V>(query_grad + at + W);
        const V v0 = load<V>(query_values + at), v1 = load<V>(query_values + at + W);
#pragma GCC unroll 8
        for (int i = 0; i < kProducts; ++i) {
          const V v = splat<V>(key_values[at + i]), g = splat<V>(key_grad[at + i]);
          sums[i][0] = fma(g, v0, fma(v, g0, sums[i][0]));
          sums[i][1] = fma(g, v1, fma(v, g1, sums[i][1]));
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kProducts; ++i) {
        totals[i][0] += sums[i][0];
        totals[i][1] += sums[i][1];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kProducts; ++i) {
      const int to = (j + i) * kTile<T>;
      store(weights + to, load<V>(kernel + to) * totals[i][0]);
      store(weights + to + W, load<V>(kernel + to + W) * totals[i][1]);
    }
  }
}

// The tile that begins at a lane of a leaf.
template <class T, bool kBackward>
void visit_tile(const Problem<T>& p, int64_t leaf, int lane, int64_t key_block, T* kernel, T* weights) {
  const int64_t block = leaf / kLeaves, at = leaf % kLeaves * kLeaf + lane;
  const int64_t queries = block * p.dims * kBlock + at, query_channels = block * p.channels * kBlock + at;
  const int64_t keys = key_block * p.dims * kBlock, key_channels = key_block * p.channels * kBlock;
  double* out = p.out + leaf * p.channels * kLeaf + lane;
  const int64_t left = p.points - key_block * kBlock;
  const int count = left < kBlock ? int(left + kProducts - 1) / kProducts * kProducts : kBlock;
  fill_kernel(p.features + queries, p.features + keys, p.dims, count, kernel);
  if constexpr (kBackward) {
    double* grad_features = p.grad_features + leaf * p.dims * kLeaf + lane;
    multiply<T, false>(p.channels, kernel, p.grad + key_channels, p.grad, count, out);
    fill_weights(p, query_channels, key_channels, count, kernel, weights);
    multiply<T, true>(p.dims, weights, p.features + keys, p.features + queries, count, grad_features);
  } else {
    multiply<T, false>(p.channels, kernel, p.values + key_channels, p.values, count, out);
  }
}

// The queries of leaves first, first + step, ...
template <class T, bool kBackward>
void visit_leaves(const Problem<T>& p, int64_t first, int64_t step) {
  alignas(64) T kernel[kBlock * kTile<T>], weights[kBackward ? kBlock * kTile<T> : 1];
  for (int64_t begin = first; begin < p.leaves; begin += kTogether * step) {
    const int64_t end = begin + kTogether * step < p.leaves ? begin + kTogether * step : p.leaves;
    for (int64_t key_block = 0; key_block < p.blocks; ++key_block)
      for (int64_t leaf = begin; leaf < end; leaf += step) {
        if (p.far(leaf, key_block)) continue;
        for (int lane = 0; lane < kLeaf; lane += kTile<T>)
          visit_tile<T, kBackward>(p, leaf, lane, key_block, kernel, weights);
      }
  }
}

template <class T>
void filter_leaves(const Problem<T>& problem, int64_t first, int64_t step) {
  visit_leaves<T, false>(problem, first, step);
}
template <class T>
void differentiate_leaves(const Problem<T>& problem, int64_t first, int64_t step) {
  visit_leaves<T, true>(problem, first, step);
}
