// Memory for the cores.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace segops {

// The first touch of fresh memory costs a page fault a page: large arrays ask for large pages, as far as whole ones lie
// in them. No harm where it is refused.
inline void advise_large_pages([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Memory that nobody has touched yet: every element is written before it is read. Aligned to cache lines, so that a row
// lies in as few of them as it can.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : data_(allocate(size * sizeof(T))), size_(size) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kLine{64}, kHugePage{1 << 21};
  static constexpr size_t kHuge = size_t(1) << 22;

  struct Free {
    std::align_val_t alignment = kLine;
    void operator()(T* p) const { ::operator delete(p, alignment); }
  };
  using Pointer = std::unique_ptr<T[], Free>;

  static Pointer allocate(size_t bytes) {
    const std::align_val_t alignment = bytes < kHuge ? kLine : kHugePage;
    void* p = ::operator new(bytes, alignment);
    if (bytes >= kHuge) advise_large_pages(p, bytes);
    return Pointer(static_cast<T*>(p), Free{alignment});
  }

  Pointer data_;
  int64_t size_ = 0;
};

}  // namespace segops
