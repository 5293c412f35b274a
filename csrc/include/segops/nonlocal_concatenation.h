// Attention with the weights relu(query score + key score), one image at a time; see
// segops/reference/nonlocal_concatenation.py.
//
// As a function of t, sum over keys of relu(t + key score) value is piecewise linear, and its slope is the sum of the
// values whose scores are above -t. So queries stand at their score and keys at minus theirs, in one sorted list, and a
// walk up this list integrates the slope: what is added are the terms of the sum themselves, where a difference of
// prefix sums would cancel. The gradients of the query scores are products with the slope. From the top down, and with
// queries and keys exchanged, the same walk gives the gradients of the values and of the key scores.
//
// A walk takes a cache line of channels: the maps are transposed, so that a position is a line of its own. Slope and
// integral are float64.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/radix_sort.h"

namespace segops::concatenation {

template <class T>
constexpr int kLine = 64 / sizeof(T);  // channels of a row

// A position at its place: queries first, then keys.
template <class T>
struct Place {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
  Bits descending;
  uint32_t position;

  // A key that is not a number comes before everything and a query that is not one after it, to spoil the right sums.
  static Place query(T score, int64_t i) { return {std::isnan(score) ? Bits(0) : Bits(~order(score)), uint32_t(i)}; }
  static Place key(T score, int64_t i) { return {std::isnan(score) ? ~Bits(0) : Bits(~order(-score)), uint32_t(i)}; }
  Bits rank() const { return descending; }

 private:
  static Bits order(T x) {
    const Bits bits = std::bit_cast<Bits>(x + T(0));  // of -0 makes 0
    return bits & kSign ? Bits(~bits) : Bits(bits | kSign);
  }
};

// The sorted list, from low to high: rows, and the distance of each from the one before; 0 behind the last.
struct Path {
  int64_t queries, count;
  Buffer<uint32_t> row;
  Buffer<double> gap;
};

#define SEGOPS_ISA_FILE "segops/nonlocal_concatenation_isa.h"
#include "segops/foreach_isa.h"

template <class T>
class Images {
 public:
  Images(int64_t channels, int64_t queries, int64_t keys, Parallel& parallel)
      : channels_(channels),
        keys_(keys),
        blocks_((channels + kLine<T> - 1) / kLine<T>),
        threads_(int(std::min<int64_t>(blocks_, parallel.threads()))),
        parallel_(parallel),
        places_(queries + keys),
        room_(queries + keys),
        path_{queries, queries + keys, Buffer<uint32_t>(queries + keys), Buffer<double>(queries + keys + 1)} {
    for (int i = 0; i < threads_; ++i) rows_.emplace_back(path_.count * kLine<T>);
  }

  // Scores (Q) and (K), value (C, K), out (C, Q), of one image.
  void forward(const T* query, const T* key, const T* value, T* out) {
    sort(query, key);
    each_block([&](int thread, int64_t first, int channels) {
      T *queries = rows_[thread].data(), *keys = queries + path_.queries * kLine<T>;
      SEGOPS_BY_ISA(pack_rows<T>)(value + first * keys_, keys_, channels, keys);
      SEGOPS_BY_ISA(integrate<T>)(path_, queries, 1. / keys_);
      SEGOPS_BY_ISA(unpack_rows<T>)(queries, path_.queries, channels, out + first * path_.queries);
    });
  }

  void backward(const T* grad, const T* query, const T* key, const T* value, T* grad_query, T* grad_key,
                T* grad_value) {
    sort(query, key);
    for (int i = int(dots_.size()); i < threads_; ++i) dots_.emplace_back(path_.count);
    for (auto& dots : dots_) std::fill_n(dots.data(), path_.count, 0.);
    each_block([&](int thread, int64_t first, int channels) {
      T *queries = rows_[thread].data(), *keys = queries + path_.queries * kLine<T>;
      SEGOPS_BY_ISA(pack_rows<T>)(grad + first * path_.queries, path_.queries, channels, queries);
      SEGOPS_BY_ISA(pack_rows<T>)(value + first * keys_, keys_, channels, keys);
      SEGOPS_BY_ISA(differentiate<T>)(path_, queries, 1. / keys_, dots_[thread].data());
      SEGOPS_BY_ISA(unpack_rows<T>)(keys, keys_, channels, grad_value + first * keys_);
    });
    for (int64_t i = 0; i < path_.count; ++i) {
      double sum = 0;
      for (const auto& dots : dots_) sum += dots[i];
      (i < path_.queries ? grad_query[i] : grad_key[i - path_.queries]) = T(sum / keys_);
    }
  }

 private:
  void sort(const T* query, const T* key) {
    for (int64_t i = 0; i < path_.queries; ++i) places_[i] = Place<T>::query(query[i], i);
    for (int64_t j = 0; j < keys_; ++j) places_[path_.queries + j] = Place<T>::key(key[j], path_.queries + j);
    sort_descending(places_, room_, path_.count);  // among equals queries stay first: there the weight is 0, not above
    double before = std::numeric_limits<double>::quiet_NaN();
    for (int64_t i = 0; i < path_.count; ++i) {
      const uint32_t row = path_.row[i] = places_[i].position;
      const double at = row < path_.queries ? double(query[row]) : -double(key[row - path_.queries]);
      const bool start = i == 0 && !std::isnan(at);
      path_.gap[i] = start || at == before ? 0 : at - before;  // infinite places may be equal
      before = at;
    }
    path_.gap[path_.count] = 0;
  }

  // body(thread, first channel, channels)
  template <class Body>
  void each_block(const Body& body) {
    parallel_.run(threads_, [&](int i) {
      for (int64_t b = Parallel::cut(blocks_, i, threads_); b < Parallel::cut(blocks_, i + 1, threads_); ++b)
        body(i, b * kLine<T>, int(std::min<int64_t>(kLine<T>, channels_ - b * kLine<T>)));
    });
  }

  int64_t channels_, keys_, blocks_;
  int threads_;
  Parallel& parallel_;
  Buffer<Place<T>> places_, room_;
  Path path_;
  std::vector<Buffer<T>> rows_;
  std::vector<Buffer<double>> dots_;
};

}  // namespace segops::concatenation
