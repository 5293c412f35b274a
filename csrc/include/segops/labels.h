// Which labels of pixels are right, and the error for one that is not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace segops {

struct LabelRange {
  int64_t count;  // labels are 0 to count - 1, or
  std::optional<int64_t> ignored;

  bool is_ignored(int64_t label) const { return ignored && label == *ignored; }
  bool is_wrong(int64_t label) const { return (label < 0 || label >= count) && !is_ignored(label); }

  [[noreturn]] void refuse(int64_t label) const {
    std::string message = "target: expected labels from 0 to " + std::to_string(count - 1);
    if (ignored) message += " or ignore_index = " + std::to_string(*ignored);
    throw std::invalid_argument(message + ", got " + std::to_string(label));
  }
  // Throws for the first that is wrong.
  void check(const int64_t* labels, int64_t size) const {
    const int64_t* wrong = std::find_if(labels, labels + size, [this](int64_t label) { return is_wrong(label); });
    if (wrong != labels + size) refuse(*wrong);
  }
};

}  // namespace segops
