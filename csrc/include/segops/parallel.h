// How the cores run on threads without knowing whose: torch's pool in the operators, plain threads in the NumPy module.
#pragma once

#include <algorithm>
#include <cstdint>

namespace segops {

class Parallel {
 public:
  virtual ~Parallel() = default;
  virtual int threads() const = 0;

  // task(i) for i in [0, tasks), in any order, at the same time where there are threads.
  template <class Task>
  void run(int tasks, const Task& task) {
    if (tasks == 1) return task(0);
    run_tasks(tasks, [](const void* context, int i) { (*static_cast<const Task*>(context))(i); }, &task);
  }

  // The chunk of [0, count) that task i of n has; the cut depends on nothing else.
  static int64_t cut(int64_t count, int i, int n) { return count * i / n; }

  // body(begin, end) over [0, count), in as many pieces as are worth a thread.
  template <class Body>
  void range(int64_t count, int64_t grain, const Body& body) {
    const int n = int(std::clamp<int64_t>(count / grain, 1, threads()));
    run(n, [&](int i) { body(cut(count, i, n), cut(count, i + 1, n)); });
  }

 private:
  virtual void run_tasks(int tasks, void (*task)(const void*, int), const void* context) = 0;
};

// No threads, inside a task of another.
class Serial final : public Parallel {
 public:
  int threads() const override { return 1; }

 private:
  void run_tasks(int tasks, void (*task)(const void*, int), const void* context) override {
    for (int i = 0; i < tasks; ++i) task(context, i);
  }
};

}  // namespace segops
