// No include guard: compiled once for each instruction set (see foreach_isa.h) by em_attention.h, which explains Sizes
// and Work. All functions take the tiles of the pixels [begin, end) of one image.
#include "segops/tile_product_isa.h"

template <class S, class E = Element<S>, class T = Sum<S>>
const E* pack_rows(const T* x, int64_t rows, int64_t columns, E* room) {
  return paired_rows(x, rows, columns, room);
}

// A tile of x, left in work.x, as products read it that sum over channels.
template <class S>
const Element<S>* pack_x(const Sizes& s, const S* x, int count, Work<S>& work) {
  pack_tile(x, s.pixels, s.channels, count, work.x.data());
  return paired_rows(work.x.data(), s.channels, int64_t(kTile), work.x_rows.data());
}

// total += tile z^T and sums += z, z (K, kTile).
template <class S>
void add_moments(const Sizes& s, const Sum<S>* z, int count, Work<S>& work) {
  transpose_tile(z, s.bases, count, s.lanes, work.columns.data(), work.sums.data());
  multiply_tile(s.channels, s.lanes, paired_pixels(work.x.data()), work.columns.data(), elements<Element<S>>(count),
                work.total.data());
}

// out (C, P) = or += the product of coefficients (depth, C) and rows (depth, kTile), some channels at a time.
template <class S, class E = Element<S>>
void multiply_out(const Sizes& s, const E* coefficients, const E* rows, int64_t depth, int count, S* out, bool add,
                  Work<S>& work) {
  for (int64_t c = 0; c < s.channels; c += kResults) {
    const int64_t channels = std::min(kResults, s.channels - c);
    multiply_columns(channels, count, coefficients + c, s.channels, rows, elements<E>(depth), work.out.data(),
                     int64_t(kTile), false);
    unpack_tile(work.out.data(), channels, count, out + c * s.pixels, s.pixels, add);
  }
}

// total += y z^T and sums += z over the pixels, z being the responsibilities softmax(mu^T x): the E step and, with
// y = x, the M step before it is normalised. `keep` (K, P), if given, receives z.
template <class S, class E = Element<S>>
void accumulate_tiles(const Sizes& s, const S* x, const S* y, const E* mu, int64_t begin, int64_t end, Work<S>& work,
                      S* keep) {
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    auto* z = work.z.data();
    multiply_columns(s.bases, count, mu, s.bases, pack_x(s, x + p, count, work), elements<E>(s.channels), z,
                     int64_t(kTile), false);
    softmax_tile(z, s.bases, count);
    if (keep) unpack_tile(z, s.bases, count, keep + p, s.pixels, false);
    if (y != x) pack_tile(y + p, s.pixels, s.channels, count, work.x.data());
    add_moments(s, z, count, work);
  }
}

// out (C, P) = mu z with z (K, P), which may lie in out itself: each tile is read before it is written.
template <class S, class E = Element<S>>
void reconstruct_tiles(const Sizes& s, const E* mu_transposed, const S* z, S* out, int64_t begin, int64_t end,
                       Work<S>& work) {
  Buffer<S> tile(s.bases * kTile);
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    pack_tile(z + p, s.pixels, s.bases, count, tile.data());
    const E* rows = paired_rows(tile.data(), s.bases, int64_t(kTile), work.z_rows.data());
    multiply_out(s, mu_transposed, rows, s.bases, count, out + p, false, work);
  }
}

// Back through one iteration; see Step. total += x ds^T, dx (+)= moments z + mu ds.
template <class S, class E = Element<S>, class T = Sum<S>>
void differentiate_tiles(const Sizes& s, const Step<S>& step, int64_t begin, int64_t end, Work<S>& work) {
  T *z = work.z.data(), *u = z + s.bases * kTile;
  const int64_t depth = elements<E>(s.channels);
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    if (step.grad)
      multiply_columns(s.bases, count, step.last, s.bases, pack_x(s, step.grad + p, count, work), depth, u,
                       int64_t(kTile), false);
    const E* x = pack_x(s, step.x + p, count, work);
    multiply_columns(s.bases, count, step.mu, s.bases, x, depth, z, int64_t(kTile), false);
    softmax_tile(z, s.bases, count);
    multiply_columns(s.bases, count, step.moments, s.bases, x, depth, u, int64_t(kTile), step.grad != nullptr);
    for (int64_t k = 0; k < s.bases; ++k)
      for (int i = 0; i < kTile; ++i) u[k * kTile + i] += step.sums[k];
    softmax_backward_tile(z, u, s.bases, count);
    add_moments(s, u, count, work);
    multiply_out(s, step.coefficients, paired_rows(z, 2 * s.bases, int64_t(kTile), work.z_rows.data()), 2 * s.bases,
                 count, step.grad_x + p, step.add, work);
  }
}
