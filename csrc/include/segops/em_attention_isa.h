// No include guard: compiled once for each instruction set (see foreach_isa.h) by em_attention.h, which explains Sizes
// and Work. All functions take the tiles of the pixels [begin, end) of one image.
#include "segops/tile_product_isa.h"

// total += y z^T and sums += z over the pixels, z being the responsibilities softmax(mu^T x): the E step and, with
// y = x, the M step before it is normalised. `keep` (K, P), if given, receives z.
template <class T>
void accumulate_tiles(const Sizes& s, const T* x, const T* y, const T* mu, int64_t begin, int64_t end, Work<T>& work,
                      T* keep) {
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    pack_tile(x + p, s.pixels, s.channels, count, work.x.data());
    T* z = work.z.data();
    multiply_columns<T>(s.bases, count, mu, s.bases, work.x.data(), s.channels, z, kTile, false);
    softmax_tile(z, s.bases, count);
    if (keep) unpack_tile(z, s.bases, count, keep + p, s.pixels, false);
    transpose_tile(z, s.bases, count, s.lanes, work.columns.data(), work.sums.data());
    if (y != x) pack_tile(y + p, s.pixels, s.channels, count, work.x.data());
    multiply_tile<T>(s.channels, s.lanes, work.x.data(), work.columns.data(), count, work.total.data());
  }
}

// out (C, P) = mu z with z (K, P), which may lie in out itself: each tile is read before it is written.
template <class T>
void reconstruct_tiles(const Sizes& s, const T* mu_transposed, const T* z, T* out, int64_t begin, int64_t end,
                       Work<T>& work) {
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    pack_tile(z + p, s.pixels, s.bases, count, work.z.data());
    const bool whole = count == kTile;  // else vectors would write beyond the tile
    multiply_columns<T>(s.channels, count, mu_transposed, s.channels, work.z.data(), s.bases,
                        whole ? out + p : work.x.data(), whole ? s.pixels : kTile, false);
    if (!whole) unpack_tile(work.x.data(), s.channels, count, out + p, s.pixels, false);
  }
}

// Back through one iteration; see Step. total += x ds^T, dx (+)= moments z + mu ds.
template <class T>
void differentiate_tiles(const Sizes& s, const Step<T>& step, int64_t begin, int64_t end, Work<T>& work) {
  T *z = work.z.data(), *u = z + s.bases * kTile, *tile = work.x.data();
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    if (step.grad) {
      pack_tile(step.grad + p, s.pixels, s.channels, count, tile);
      multiply_columns<T>(s.bases, count, step.last, s.bases, tile, s.channels, u, kTile, false);
    }
    pack_tile(step.x + p, s.pixels, s.channels, count, tile);
    multiply_columns<T>(s.bases, count, step.mu, s.bases, tile, s.channels, z, kTile, false);
    softmax_tile(z, s.bases, count);
    multiply_columns<T>(s.bases, count, step.moments, s.bases, tile, s.channels, u, kTile, step.grad != nullptr);
    for (int64_t k = 0; k < s.bases; ++k)
      for (int i = 0; i < kTile; ++i) u[k * kTile + i] += step.sums[k];
    softmax_backward_tile(z, u, s.bases, count);
    transpose_tile(u, s.bases, count, s.lanes, work.columns.data(), work.sums.data());
    multiply_tile<T>(s.channels, s.lanes, tile, work.columns.data(), count, work.total.data());
    multiply_columns<T>(s.channels, count, step.coefficients, s.channels, z, 2 * s.bases, tile, kTile, false);
    unpack_tile(tile, s.channels, count, step.grad_x + p, s.pixels, step.add);
  }
}
