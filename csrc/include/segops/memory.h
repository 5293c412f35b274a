// Ask before taking: Linux promises memory that it does not have, and then ends the process that uses it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <new>
#include <sstream>
#include <string>

namespace segops {

// Reaches Python as MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Bytes that can still be used, or a very large number where the system does not say.
inline double available_memory() {
  double available = std::numeric_limits<double>::infinity();
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    double kilobytes;
    if (std::sscanf(line.c_str(), "MemAvailable: %lf kB", &kilobytes) == 1) available = kilobytes * 1024;
  }
  double limit, used;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit && std::ifstream("/sys/fs/cgroup/memory.current") >> used)
    available = std::min(available, limit - used);
  return available;
}

inline void require_memory(double bytes, const std::string& what) {
  if (bytes < 256e6) return;  // not worth the look
  const double available = available_memory();
  if (bytes <= available) return;
  std::ostringstream message;
  message.precision(3);
  message << what << ": about " << bytes / 1e9 << " GB are needed, " << available / 1e9 << " GB are available";
  throw OutOfMemory(message.str());
}

}  // namespace segops
