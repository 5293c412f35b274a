// The permutohedral lattice on a CPU: which vertices each point touches, how strongly, and which vertices are
// neighbours. Built in parallel: each thread numbers the vertices of its own points in the order of their first touch
// (which keeps points that lie together on vertices that lie together), and the numberings are merged once.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "segops/buffer.h"
#include "segops/lattice_passes.h"
#include "segops/parallel.h"
#include "segops/simplex.h"

namespace segops {

// Keys to vertex numbers 1, 2, ... in order of insertion; linear probing, never more than half full. 0: no such vertex.
template <class Key>
class KeyTable {
 public:
  KeyTable() : slots_(size_t(1) << 12), shift_(64 - 12) {}

  int32_t insert(Key key) {
    size_t i = home(key);
    while (slots_[i].number) {
      if (slots_[i].key == key) return slots_[i].number;
      i = (i + 1) & (slots_.size() - 1);
    }
    keys_.push_back(key);
    slots_[i] = {key, int32_t(keys_.size())};
    if (keys_.size() * 2 > slots_.size()) grow();
    return int32_t(keys_.size());
  }

  int32_t find(Key key) const {
    size_t i = home(key);
    while (slots_[i].number && !(slots_[i].key == key)) i = (i + 1) & (slots_.size() - 1);
    return slots_[i].number;
  }

  const std::vector<Key>& keys() const { return keys_; }  // of number 1, 2, ...

 private:
  struct Slot {
    Key key = 0;
    int32_t number = 0;
  };

  size_t home(Key key) const {
    uint64_t x = uint64_t(key);
    if constexpr (sizeof(Key) > 8) x ^= uint64_t(key >> 64) * 0xD6E8FEB86659FD93u;
    return size_t((x ^ (x >> 29)) * 0x9E3779B97F4A7C15u >> shift_);
  }

  void grow() {
    shift_ -= 2;
    slots_.assign(slots_.size() * 4, Slot());
    for (size_t n = 0; n < keys_.size(); ++n) {
      size_t i = home(keys_[n]);
      while (slots_[i].number) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = {keys_[n], int32_t(n + 1)};
    }
  }

  std::vector<Slot> slots_;
  std::vector<Key> keys_;
  int shift_;
};

// The entries of a point in all lattices of a set stand side by side, so that one loop visits them all.
template <class T>
struct Entries {
  int64_t points = 0;
  int per_point = 0;
  Buffer<int32_t> order;    // in which points are visited; the other arrays are in that order
  Buffer<uint32_t> vertex;  // (points, per_point)
  Buffer<T> weight;         // (points, per_point)
};

template <class T>
struct Lattice {
  int dim = 0;
  int first_entry = 0;  // of this lattice among a point's entries
  int32_t vertices = 0;
  Buffer<int32_t> neighbour;         // (dim + 1, vertices + 1, 2): before, after; row 0 stands for what does not exist
  std::vector<VertexRange> touched;  // by each thread's points

  T alpha() const { return T(1 / (1 + std::ldexp(1.0, -dim))); }
};

// One thread's part of a lattice under construction.
template <class Key>
struct LatticePart {
  KeyTable<Key> table;
  bool in_range = true;
  std::vector<int32_t> global;  // number in this part to number in the whole

  template <class T>
  void add_points(const T* features, int64_t stride, const Lattice<T>& lattice, Entries<T>& entries, int64_t begin,
                  int64_t end) {
    if (lattice.dim == 2)  // an image's two kernels have loops of their own
      add(std::integral_constant<int, 2>(), features, stride, lattice, entries, begin, end);
    else if (lattice.dim == 5)
      add(std::integral_constant<int, 5>(), features, stride, lattice, entries, begin, end);
    else
      add(lattice.dim, features, stride, lattice, entries, begin, end);
  }

 private:
  template <class Dim, class T>
  void add(Dim dim, const T* features, int64_t stride, const Lattice<T>& lattice, Entries<T>& entries, int64_t begin,
           int64_t end) {
    const KeyLayout<Key> layout(dim);
    Key unit[kMaxDim + 1];
    for (int i = 0; i <= dim; ++i) unit[i] = layout.unit(i);
    const int32_t zero[kMaxDim] = {};
    const Key origin = layout.origin(zero);
    const auto find_simplices = SEGOPS_BY_ISA(find_simplices<T>);
    T gathered[kMaxDim * kLanes];
    alignas(64) T quotient[(kMaxDim + 1) * kLanes], rank[(kMaxDim + 1) * kLanes], weight[(kMaxDim + 1) * kLanes];
    int32_t q[(kMaxDim + 1) * kLanes], k[(kMaxDim + 1) * kLanes];
    Key last_key[kMaxDim + 1] = {}, by_rank[kMaxDim + 1];
    int32_t number[kMaxDim + 1] = {};
    for (int64_t p = begin; p < end; p += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, end - p));
      const T* block = features + entries.order[p];
      const bool together = is_run(&entries.order[p], count);
      if (!together) {
        for (int i = 0; i < dim; ++i)
          for (int lane = 0; lane < count; ++lane)
            gathered[i * kLanes + lane] = features[i * stride + entries.order[p + lane]];
        block = gathered;
      }
      if (!find_simplices(block, together ? stride : kLanes, dim, count, T(layout.limit()), quotient, rank, weight)) {
        in_range = false;
        return;
      }
      for (int i = 0; i <= dim; ++i)
        for (int lane = i * kLanes; lane < i * kLanes + count; ++lane)
          q[lane] = int32_t(quotient[lane]), k[lane] = int32_t(rank[lane]);
      for (int lane = 0; lane < count; ++lane) {
        const int64_t entry = (p + lane) * entries.per_point + lattice.first_entry;
        Key key = origin;  // as KeyLayout::vertices has it, with multiplications for its shifts
        for (int i = 0; i <= dim; ++i) {
          key += Key(int64_t(q[i * kLanes + lane])) * unit[i];
          by_rank[k[i * kLanes + lane]] = unit[i];
        }
        for (int r = 0; r <= dim; ++r) {
          if (r > 0) key += 1 - by_rank[dim - r + 1];
          // Neighbouring points share most of their vertices: look up only what changed.
          if (key != last_key[r]) number[r] = table.insert(last_key[r] = key);
          entries.vertex[entry + r] = uint32_t(number[r]);
          entries.weight[entry + r] = weight[r * kLanes + lane];
        }
      }
    }
  }
};

template <class T>
void check_finite(const T* features, int64_t stride, int dim, int64_t points) {
  for (int i = 0; i < dim; ++i)
    for (int64_t p = 0; p < points; ++p)
      if (!std::isfinite(features[i * stride + p]))
        throw std::invalid_argument("features: expected finite values, got NaN or inf");
}

template <class Key, class T>
void find_neighbours(const KeyTable<Key>& table, Lattice<T>& lattice, Parallel& parallel) {
  const int dim = lattice.dim;
  const int64_t rows = int64_t(lattice.vertices) + 1;
  lattice.neighbour = Buffer<int32_t>((dim + 1) * rows * 2);
  int32_t* neighbour = lattice.neighbour.data();
  parallel.range(rows * (dim + 1) * 2, 1 << 16,
                 [&](int64_t begin, int64_t end) { std::fill(neighbour + begin, neighbour + end, 0); });
  const KeyLayout<Key> layout(dim);
  const Key all = layout.all_units();
  parallel.range(lattice.vertices, 1 << 10, [&](int64_t begin, int64_t end) {
    for (int axis = 0; axis <= dim; ++axis)
      for (int64_t v = begin; v < end; ++v) {
        const int32_t before = table.find(layout.before(table.keys()[v], axis, all));
        if (!before) continue;  // whoever has a neighbour before it is the neighbour after that one
        neighbour[(axis * rows + v + 1) * 2] = before;
        neighbour[(axis * rows + before) * 2 + 1] = int32_t(v + 1);
      }
  });
}

template <class Key, class T>
bool try_build(const T* features, int64_t stride, Lattice<T>& lattice, Entries<T>& entries, Parallel& parallel) {
  if (KeyLayout<Key>(lattice.dim).bits < 4) return false;
  const int parts = std::max(1, int(std::min<int64_t>(parallel.threads(), entries.points / 256)));
  const auto cut = [&](int i) { return Parallel::cut(entries.points, i, parts); };
  std::vector<LatticePart<Key>> part(parts);
  parallel.run(parts, [&](int i) { part[i].add_points(features, stride, lattice, entries, cut(i), cut(i + 1)); });
  for (const auto& p : part)
    if (!p.in_range) return false;

  KeyTable<Key>& whole = part[0].table;
  lattice.touched.assign(parts, {1, int32_t(whole.keys().size()) + 1});
  for (int i = 1; i < parts; ++i) {
    const auto& keys = part[i].table.keys();
    part[i].global.assign(keys.size() + 1, 0);
    int32_t low = INT32_MAX, high = 0;
    for (size_t n = 0; n < keys.size(); ++n) {
      const int32_t number = part[i].global[n + 1] = whole.insert(keys[n]);
      low = std::min(low, number), high = std::max(high, number);
    }
    lattice.touched[i] = {std::min(low, high), high + 1};
  }
  lattice.vertices = int32_t(whole.keys().size());
  parallel.run(parts, [&](int i) {
    if (i == 0) return;
    for (int64_t p = cut(i); p < cut(i + 1); ++p) {
      uint32_t* vertex = &entries.vertex[p * entries.per_point + lattice.first_entry];
      for (int r = 0; r <= lattice.dim; ++r) vertex[r] = uint32_t(part[i].global[vertex[r]]);
    }
  });
  find_neighbours(whole, lattice, parallel);
  return true;
}

// Features (dim, points), rows `stride` apart. lattice.dim and first_entry are set, entries allocated.
template <class T>
void build_lattice(const T* features, int64_t stride, Lattice<T>& lattice, Entries<T>& entries, Parallel& parallel) {
  if (try_build<uint64_t>(features, stride, lattice, entries, parallel)) return;
  check_finite(features, stride, lattice.dim, entries.points);
#if defined(__SIZEOF_INT128__)
  if (try_build<unsigned __int128>(features, stride, lattice, entries, parallel)) return;
#endif
  throw std::invalid_argument("features: values span too many lattice cells in " + std::to_string(lattice.dim) +
                              " dimensions; use larger sigmas");
}

}  // namespace segops
