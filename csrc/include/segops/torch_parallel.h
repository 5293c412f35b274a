// torch's threads for the cores.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "segops/parallel.h"

namespace segops {

class TorchParallel final : public Parallel {
 public:
  int threads() const override { return std::max(1, int(torch::stable::get_num_threads())); }

 private:
  void run_tasks(int tasks, void (*task)(const void*, int), const void* context) override {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(context, int(i));
    });
  }
};

}  // namespace segops
